"""Long work on the store for which the daemon's workers are needed, or its network: what comes in
is tried before it is a version, and a variant is made by a quantizer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hxd.config import ModelSettings
from hxd.config.live import Live
from hxd.daemon.admin import conversion
from hxd.daemon.admin.relabel import Relabel
from hxd.daemon.admin.store_asks import Convert, Import, Incoming, Pull, Quantize, SetLabel
from hxd.daemon.admin.store_operations import (
    Operations,
    already,
    check_incoming,
    golden_bytes,
    published,
)
from hxd.daemon.rollout.golden import Golden, GoldenError, parse
from hxd.daemon.rollout.validation import Findings, Rejected, Validation
from hxd.daemon.store import demo, disk, pull
from hxd.daemon.store.candidates import SHARD
from hxd.daemon.store.derived import add_variant
from hxd.daemon.store.faults import Corrupt, SameContent, StoreError
from hxd.daemon.store.foreign import Convertible
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.pull import Wanted
from hxd.daemon.store.pull.refetch import folder_for
from hxd.daemon.store.reference import ModelName, Reference, VariantName
from hxd.daemon.store.sources import QUANTIZABLE, SourceError, for_file, stored_name, why_not_made
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.stores import Stores
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work
from hxd.daemon.supervise.quantizer import memory_for, quantize
from hxd.daemon.supervise.workers import PrepareError
from hxd.errors import BackendError, HxdError, nearest
from hxd.pluginfile import PluginError

P = ParamSpec("P")
T = TypeVar("T")
_MODEL_SUFFIX = re.compile(r"\.(gguf|ggml|bin)$", re.IGNORECASE)


async def to_its_end(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a blocking call gives. Whoever cancels a job stops its work first, so the call ends soon
    by itself; what it has done by then is not forgotten."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    while not running.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    return running.result()


class StoreJobs:
    def __init__(
        self,
        live: Live,
        stores: Stores,
        operations: Operations,
        validation: Validation,
        relabel: Relabel,
    ) -> None:
        self._live = live
        self._stores = stores
        self._library = stores.models
        self._operations = operations
        self._validation = validation
        self._relabel = relabel

    async def take_in(self, ask: Import, work: Work) -> dict[str, Any]:
        if demo.is_builtin(ask.path):
            return await to_its_end(self._operations.bring_back, ask)
        try:
            stage = await to_its_end(self._operations.stage, ask, work)
        except SameContent as same:
            return await self._there(same, ask)
        return await self._accept(stage, ask, work)

    async def pull(self, ask: Pull, wanted: Wanted, work: Work) -> dict[str, Any]:
        """What arrived is kept for the next try unless it is of no use."""
        folder = folder_for(self._library, wanted)
        with self._library.workspaces.alone(folder):
            return await self._pull(ask, wanted, folder, work)

    async def _pull(self, ask: Pull, wanted: Wanted, folder: Path, work: Work) -> dict[str, Any]:
        name = ModelName(ask.name or default_name(wanted))
        try:
            await to_its_end(self._refuse_known, name, wanted)
            proxies = pull.proxies(self._live.config.pull, os.environ)
            fetched = await to_its_end(pull.fetch, wanted, folder, work, proxies=proxies)
            stage = await to_its_end(
                Stage.of,
                self._library,
                [one.path for one in fetched],
                name,
                take="move",
                origin=fetched[0].url,
                origin_sha256=ask.sha256 or "",
                urls=[one.url for one in fetched],
                description=ask.description,
                work=work,
            )
        except SameContent as same:
            await to_its_end(disk.delete, folder)
            return await self._there(same, ask)
        except Corrupt:
            await to_its_end(disk.delete, folder)
            raise
        done = await self._accept(stage, ask, work)
        await to_its_end(disk.delete, folder)
        return done

    async def convert(self, ask: Convert, found: Convertible, work: Work) -> dict[str, Any]:
        name = ModelName(ask.name)
        space = await to_its_end(self._library.workspace, "convert")
        try:
            made = await conversion.make(
                found,
                space,
                name,
                ask.variant,
                await to_its_end(self._stores.catalog, self._live.config),
                self._settings(name).plugin,
                work,
            )
            stage = await to_its_end(
                Stage.of,
                self._library,
                [made.file],
                name,
                take="move",
                origin=f"{ask.path}, by {made.by}",
                description=ask.description,
                work=work,
            )
            done = await self._accept(stage, ask, work)
        except SameContent as same:
            return await self._there(same, ask)
        finally:
            await to_its_end(self._library.drop, space)
        done["notes"] = [*done.get("notes", ()), *made.notes]
        return done

    async def quantize(self, ask: Quantize, work: Work) -> dict[str, Any]:
        reference, variant = Reference.parse(ask.ref), VariantName(ask.variant)
        version = await to_its_end(self._library.resolve, reference)
        if variant in version.variants():
            text = f"{version} has a variant {variant} already"
            return _variant(version, variant) | {"already": True, "message": text}
        stored = reference.variant or next(iter(version.manifest.variants()))
        file = await to_its_end(ensure, self._library, version, str(stored), work)
        if version.manifest.format != "gguf":
            raise StoreError(f"{version} is a {version.manifest.format} file; only GGUF is made")
        if (why := why_not_made(variant, str(stored))) is not None:
            raise StoreError(f"{version}: {why}")
        space = await to_its_end(self._library.workspace, "quantize")
        try:
            return await self._quantize(version, file, str(stored), variant, space, work)
        finally:
            await to_its_end(self._library.drop, space)

    async def _quantize(
        self,
        version: Version,
        file: Path,
        stored: str,
        variant: VariantName,
        space: Path,
        work: Work,
    ) -> dict[str, Any]:
        size = sum(one.stat().st_size for one in version.files(stored))
        await to_its_end(disk.check_room, space, size, f"quantize {version}")
        settings = self._settings(version.name)
        target = space / f"{version.name.replace('/', '-')}-{variant}.gguf"
        loop = asyncio.get_running_loop()
        began = loop.time()

        def told(share: float, note: str) -> None:
            # The sizes are the source's: how much of it has been read. A plugin that can't tell
            # says 0 until the end.
            work.progress("quantize", int(size * min(1.0, max(0.0, share))), size if share else 0)

        try:
            plugin = await to_its_end(
                self._stores.catalog(self._live.config).choose, settings.plugin, "gguf"
            )
            work.check()
            await quantize(plugin, file, target, str(variant), told, memory_for(size), aside=True)
        except (PrepareError, PluginError) as error:
            raise BackendError(str(error)) from None
        seconds = round(loop.time() - began, 2)
        made = await to_its_end(
            add_variant,
            self._library,
            version,
            variant,
            target,
            made_by=f"{plugin.reference} from {stored}",
            validation={"seconds": seconds, "source_bytes": size},
            work=work,
        )
        return _variant(made, variant) | {"already": False, "seconds": seconds}

    # Accepting

    async def _accept(self, stage: Stage, ask: Incoming, work: Work) -> dict[str, Any]:
        try:
            findings = Findings()
            if ask.validate:
                findings = await self._tried(stage, check_incoming(ask), work)
            if findings.against is not None and not ask.force:
                raise Rejected(
                    f"{stage.name} is not taken: {findings.against}. --force takes it all the same"
                )
            work.told("publish", 0, 0)
            following = [
                label for label in ask.labels or () if self._relabel.followers(stage.name, label)
            ]
            labels = ask.labels
            if labels is not None:
                labels = [label for label in labels if label not in following]
            version = await to_its_end(
                stage.publish, findings.table, labels=labels, golden=golden_bytes(ask)
            )
        finally:
            await to_its_end(stage.discard)
        done = published(version, self._library)
        if findings.against is not None:
            done["notes"] = [findings.against]
        for label in following:
            await self._follow(version.name, version.number, label, done)
        return done

    async def _there(self, same: SameContent, ask: Incoming) -> dict[str, Any]:
        """Nothing comes in. The labels that were asked for move all the same."""
        done = already(same)
        pointing = await to_its_end(self._library.labels, same.name)
        for label in ask.labels or ():
            if pointing.get(label) != same.number:
                await self._follow(same.name, same.number, label, done)
        return done

    async def _follow(self, name: str, number: int, label: str, done: dict[str, Any]) -> None:
        """The version is there; that a label can't move yet does not undo it."""
        try:
            moved = await self._relabel.move(SetLabel(name=name, label=label, version=number))
        except HxdError as error:
            done.setdefault("notes", []).append(f"{label} was not moved: {error.message}")
        else:
            done["rollouts"] = done.get("rollouts", []) + moved.get("rollouts", [])
            if moved["moved"]:
                done.setdefault("notes", []).append(f"{label} points at {name}@{number} now")

    async def _tried(self, stage: Stage, golden: Golden | None, work: Work) -> Findings:
        settings = self._settings(stage.name)
        plugins = await to_its_end(self._stores.catalog, self._live.config)
        try:
            source = await to_its_end(
                for_file, stage.name, stage.file, stage.size, settings, plugins
            )
        except SourceError as error:
            raise Corrupt(
                f"{stage.name} can't be loaded: {error}. With --no-validate nobody tries it"
            ) from None
        asked = golden or await to_its_end(self._golden, stage.name)
        return await self._validation.run(source, asked, work.told)

    def _golden(self, name: ModelName) -> Golden | None:
        """The prompts of the versions that there are."""
        data = self._library.golden(name)
        if data is None and name == demo.NAME:
            data = demo.golden()
        try:
            return None if data is None else parse(data)
        except GoldenError as error:
            raise StoreError(f"the golden prompts of {name}: {error}", param="golden") from None

    def _settings(self, name: ModelName) -> ModelSettings:
        """As the model is served, where it is; variants are another matter."""
        for model, settings in self._live.config.models.items():
            if stored_name(model, self._live.config) == name:
                return _alone(settings)
        return ModelSettings()

    def _refuse_known(self, name: ModelName, wanted: Wanted) -> None:
        """Where all digests are known before a byte is fetched."""
        digests = tuple(sorted(file.sha256 or "" for file in wanted.files))
        if "" in digests:
            return
        for number in self._library.versions(name):
            with contextlib.suppress(Corrupt):
                version = self._library.version(name, number)
                if version.manifest.digests == digests and not version.quarantined:
                    raise SameContent(f"{version} has just this content", name, number)


def default_name(wanted: Wanted) -> str:
    """A model's name after its file; raises `BadName` where that makes none."""
    file = wanted.files[0].name
    match = SHARD.fullmatch(file)
    stem = match[1] if match else _MODEL_SUFFIX.sub("", file)
    return ModelName(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._"))


def wanted(ask: Pull) -> Wanted:
    """Raises `BadName`. The daemon's own token goes to the daemon's own endpoint only: an address
    that somebody else names must not get it."""
    endpoint, token = ask.endpoint, ask.token
    if endpoint is None:
        endpoint = os.environ.get("HF_ENDPOINT")
        token = token or os.environ.get("HF_TOKEN")
    return pull.parse(
        ask.url, endpoint=endpoint, token=token, sha256=ask.sha256, allow_http=ask.allow_http
    )


def check_variant(variant: str) -> None:
    """Raises `StoreError` for one that no quantizer makes."""
    VariantName(variant)
    if variant not in QUANTIZABLE:
        raise StoreError(
            f"no variant {variant!r}.{nearest(variant, QUANTIZABLE)} There are: "
            f"{', '.join(QUANTIZABLE)}",
            param="variant",
        )


def check_convertible_to(variant: str) -> None:
    """Raises `StoreError`."""
    if variant not in conversion.WEIGHTS:
        check_variant(variant)


def _alone(settings: ModelSettings) -> ModelSettings:

    return replace(settings, replicas=1, variants=(), weights=())


def _variant(version: Version, variant: str) -> dict[str, Any]:
    _, manifest = version.part(variant)
    return {
        "name": str(version.name),
        "version": version.number,
        "variant": str(variant),
        "bytes": sum(entry.bytes for entry in manifest.files.values() if entry.variant == variant),
    }

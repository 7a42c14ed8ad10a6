"""What is done to the store without a worker: the same for the admin API and for an operator who
works on a store that no daemon has. Everything here blocks.

Names, labels, references and paths become their types here, before any file is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from hxd.config.settings import Pull as PullSettings
from hxd.daemon.admin import store_view
from hxd.daemon.admin.store_asks import (
    Backup,
    Doctor,
    Import,
    Incoming,
    Remove,
    Restore,
    SetGolden,
    SetLabel,
    Verify,
    absolute,
)
from hxd.daemon.admin.store_view import How, Use
from hxd.daemon.rollout.golden import Golden, GoldenError, parse
from hxd.daemon.store import backup, candidates, demo, doctor, integrity, removal, seed, snapshots
from hxd.daemon.store.doctor import Fetch
from hxd.daemon.store.faults import Conflict, NotThere, SameContent, StoreError
from hxd.daemon.store.labels import STABLE
from hxd.daemon.store.library import Library
from hxd.daemon.store.pull import proxies, refetch
from hxd.daemon.store.reference import Label, ModelName, Reference, shown, version_number
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work


class Operations:
    """`pulling` is asked when something is fetched."""

    def __init__(self, library: Library, pulling: Callable[[], PullSettings]) -> None:
        self.library = library
        self._pulling = pulling

    # Looking

    def models(self, uses: Sequence[Use]) -> list[dict[str, Any]]:
        return store_view.models(self.library, uses)

    def show(self, ref: str, uses: Sequence[Use]) -> dict[str, Any]:
        return store_view.detail(self.library, self.library.resolve(Reference.parse(ref)), uses)

    def snapshots(self, path: str) -> list[dict[str, Any]]:
        return [info.to_body() for info in backup.snapshots(absolute(path))]

    def verify(self, ask: Verify, work: Work) -> dict[str, Any]:
        """Every file is read again. `ok` is whether all are the manifests'."""
        name = number = None
        if ask.ref is not None:
            reference = Reference.parse(ask.ref)
            name = reference.name
            if reference.selector is not None:
                number = self.library.resolve(reference).number
        found = integrity.verify(self.library, name, number, work)
        return {"ok": not found, "findings": [finding.to_body() for finding in found]}

    # Coming in

    def stage(self, ask: Import, work: Work) -> Stage:
        """Raises `SameContent` where a version has it already."""
        name = ModelName(ask.name)
        check_incoming(ask)
        files = candidates.collect(absolute(ask.path))
        return Stage.of(self.library, files, name, description=ask.description, work=work)

    def bring_back(self, ask: Import) -> dict[str, Any]:
        """Versions of the demo model that were removed: those that `builtin:demo` or
        `builtin:demo@VERSION` names. As they were, so nobody tries them."""
        check_incoming(ask)
        reference = demo.reference(ask.path)
        number = demo.STABLE if reference.selector == STABLE else reference.selector
        known = demo.numbers()
        if number is not None and number not in known:
            listed = ", ".join(f"builtin:demo@{one}" for one in known)
            raise NotThere(f"{shown(ask.path)} is not built in; {listed} are", param="path")
        if ask.name != demo.NAME:
            raise StoreError(
                f"builtin:demo is {demo.NAME} in the store; to have it as {shown(ask.name)} too, "
                f"import its file: {demo.find('builtin:demo').file}",
                param="name",
            )
        numbers = known if number is None else [number]
        put = seed.bring_back(self.library, numbers)
        if not put:
            message = f"{demo.NAME} has {'this version' if number else 'all its versions'}"
            return already(SameContent(message, demo.NAME, numbers[-1]))
        for label in ask.labels or ():
            self.library.set_label(demo.NAME, label, put[-1])
        done = published(self.library.version(demo.NAME, put[-1]), self.library)
        if put[:-1]:
            done["notes"] = [f"{demo.NAME}@{other} is back too" for other in put[:-1]]
        return done

    def take_in(self, ask: Import, work: Work) -> dict[str, Any]:
        """Without a look at how it answers."""
        if demo.is_builtin(ask.path):
            return self.bring_back(ask)
        try:
            with self.stage(ask, work) as stage:
                version = stage.publish({}, labels=ask.labels, golden=golden_bytes(ask))
        except SameContent as same:
            for label in ask.labels or ():
                self.label(SetLabel(name=same.name, label=label, version=same.number))
            return already(same)
        return published(version, self.library)

    # Labels, golden prompts, removal

    def target(self, ask: SetLabel) -> int | None:
        """The version that a label is to point at."""
        name, _ = ModelName(ask.name), Label(ask.label)
        if ask.version is None:
            return None
        text = str(ask.version)
        if text.isdigit():
            return self.library.version(name, version_number(text)).number
        return self.library.resolve(Reference(name, None, Label(text))).number

    def label(self, ask: SetLabel, uses: Sequence[Use] = ()) -> dict[str, Any]:
        number = self.target(ask)
        self.library.set_label(ask.name, ask.label, number)
        return {"name": ask.name, "label": ask.label, "version": number, "moved": True}

    def golden(self, ask: SetGolden) -> dict[str, Any]:
        name = ModelName(ask.name)
        prompts = parsed(ask.golden)
        self.library.set_golden(name, ask.golden.encode())
        return {"name": str(name), "prompts": len(prompts.prompts), "floor": prompts.floor}

    def remove(self, ask: Remove, uses: Sequence[Use]) -> dict[str, Any]:
        reference = Reference.parse(ask.ref)
        name = reference.name
        uses = [
            use for use in uses if use.name == name and (use.how is not How.FORMER or not ask.force)
        ]
        if reference.selector is None:
            return self._remove_all(reference, ask, uses)
        version = self.library.resolve(reference)
        for use in uses:
            if use.number == version.number and reference.variant in (None, use.variant):
                raise _used(version, use)
        removal.remove(self.library, name, version.number, variant=reference.variant)
        variant = "" if reference.variant is None else f":{reference.variant}"
        return {"removed": [f"{name}{variant}@{version.number}"]}

    def _remove_all(self, reference: Reference, ask: Remove, uses: Sequence[Use]) -> dict[str, Any]:
        name = reference.name
        numbers = self.library.versions(name)
        if not numbers:
            raise self.library.unknown(name)
        if not ask.all or reference.variant is not None:
            listed = ", ".join(f"{name}@{number}" for number in numbers[:10])
            raise StoreError(
                f"{ask.ref} is not one version; there are {listed}, and --all for all of {name}",
                param="ref",
            )
        for use in uses:
            raise _used(self.library.version(name, use.number), use)
        removal.remove_model(self.library, name)
        return {"removed": [f"{name}@{number}" for number in numbers]}

    # Copies

    def backup(self, ask: Backup, work: Work) -> dict[str, Any]:
        target = absolute(ask.path)
        done = backup.backup(self.library, target, work, ask.names, verify=ask.verify)
        return done.to_body()

    def restore(self, ask: Restore, work: Work) -> dict[str, Any]:
        done = backup.restore(
            self.library, absolute(ask.path), work, ask.names, ask.snapshot, labels=ask.labels
        )
        return done.to_body()

    # Mending

    def doctor(self, ask: Doctor, work: Work) -> dict[str, Any]:
        """`whole`: nothing is wrong any more."""
        saved = None if ask.backup is None else absolute(ask.backup, "backup")
        if saved is not None and not snapshots.ids(saved):
            raise NotThere(f"no backup in {saved}; hxctl model backup {saved} makes one")
        found = doctor.examine(self.library, work, deep=not ask.quick)
        cures = []
        if not ask.dry_run:
            fetch = self._fetch() if ask.pull else None
            cures = doctor.mend(self.library, found, work, backup=saved, fetch=fetch)
        return {
            "whole": all(cure.done for cure in cures) if not ask.dry_run else not found,
            "troubles": [trouble.to_body() for trouble in found],
            "cures": [cure.to_body() for cure in cures],
        }

    def _fetch(self) -> Fetch:
        known = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN")
        through = proxies(self._pulling(), os.environ)
        return refetch.into(self.library, *known, proxies=through)


def _used(version: Version, use: Use) -> Conflict:
    variant = "" if use.variant is None else f":{use.variant}"
    what = f"{version.name}{variant}@{version.number}"
    said = {
        How.SERVES: f"serves {use.model}; hxctl swap {use.model} VERSION takes another one first",
        How.WORKS: f"has workers of {use.model}, beside those that serve; hxctl models shows them, "
        "and how long they stay",
        How.FORMER: f"is what hxctl rollback {use.model} would come back to; --force removes it "
        "all the same",
    }
    return Conflict(f"{what} {said[use.how]}", code="in_use")


def check_incoming(ask: Incoming) -> Golden | None:
    """The golden prompts that come along; raises `StoreError` for these and for labels."""
    for label in ask.labels or ():
        Label(label)
    return None if ask.golden is None else parsed(ask.golden)


def golden_bytes(ask: Incoming) -> bytes | None:
    return None if ask.golden is None else ask.golden.encode()


def parsed(text: str) -> Golden:
    """Raises `StoreError`."""
    try:
        return parse(text.encode())
    except GoldenError as error:
        raise StoreError(f"the golden prompts: {error}", param="golden") from None


def published(version: Version, library: Library) -> dict[str, Any]:
    labels = library.labels(version.name)
    return {
        "name": str(version.name),
        "version": version.number,
        "already": False,
        "labels": sorted(label for label, at in labels.items() if at == version.number),
        "bytes": version.size,
        "variants": [str(variant) for variant in version.variants()],
        "validation": version.manifest.validation,
    }


def already(same: SameContent) -> dict[str, Any]:
    return {
        "name": str(same.name),
        "version": same.number,
        "already": True,
        "message": same.message,
    }

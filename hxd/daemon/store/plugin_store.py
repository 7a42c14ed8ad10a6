"""Installed plugins: several versions side by side, each as it was when the operator trusted it.

`NAME/VERSION/` has the files, `trust.toml` what is trusted (plugin_trust.py), `.venvs/`
environments (plugin_environment.py), `.tmp/` what is not finished. A version appears whole, under
its name, or not at all.

Protects: from files that changed since they were trusted, whoever changed them by accident or
without access to trust.toml; from archives that write elsewhere. Does not protect: from the code of
a plugin that is trusted, before or after it is loaded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from hxd import pluginfile
from hxd.daemon.store import (
    disk,
    plugin_intake,
    plugin_listing,
    plugin_package,
    plugin_requirements,
    plugins,
)
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Conflict, Corrupt, NotThere, StoreError
from hxd.daemon.store.plugin_disk import Staging
from hxd.daemon.store.plugin_environment import Environments
from hxd.daemon.store.plugin_intake import as_store_errors
from hxd.daemon.store.plugin_trust import Trust, Verdict
from hxd.daemon.store.plugins import Plugin, Plugins
from hxd.daemon.store.work import Work
from hxd.errors import nearest
from hxd.pluginfile import MANIFEST, PluginError, PluginFile

TEMPORARY = ".tmp"
ENVIRONMENTS = ".venvs"
# Seconds that a change waits for another one before it is refused.
PATIENCE = 5.0


@dataclass(frozen=True)
class Installed:
    """What `install` did. `trusted` is as in `Plugin`, or `no`; `added` is false where the same
    content was there already; `environment` is its own interpreter, once it has one."""

    name: str
    version: str
    digest: str
    trusted: str
    added: bool
    environment: Path | None = None


def split(reference: str) -> tuple[str, str]:
    """NAME and VERSION of NAME@VERSION; raises `BadName`."""
    name, _, version = reference.partition("@")
    if not pluginfile.NAME.fullmatch(name) or not pluginfile.VERSION.fullmatch(version):
        raise BadName(f"{reference!r} is not a plugin's NAME@VERSION, as hxctl plugin list has it")
    return name, version


class PluginStore:
    """Thread-safe, and everything blocks. One change at a time: a second one waits for the first,
    as long as its `Work` lasts, or `PATIENCE`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = Staging(root / TEMPORARY)
        self._trust = Trust(root, self._staging)
        self._environments = Environments(root / ENVIRONMENTS, self._staging)
        self._changing = threading.Lock()

    def prepare(self) -> None:
        """After a crash or not: nothing half done is left. Call it before anything else, once."""
        with guarded("prepare the plugin store"):
            disk.make_folder(self._root)
            self._staging.clear()
            self._environments.prepare()
            self._sweep()

    def install(self, path: Path, work: Work, *, trust: bool = False) -> Installed:
        """A folder, a wheel, a .zip or a .tar.gz. An environment of its own is made where it needs
        one and is trusted; should that fail, nothing is installed. Raises `StoreError`."""
        with plugin_package.opened(path) as package:
            data, manifest = plugin_intake.manifest(package, path)
            with self._change(work), self._staging.fresh() as folder, as_store_errors():
                with guarded(f"install the plugin {manifest.name}"):
                    plugin_intake.unpack(package, data, manifest, folder, path, work)
                pluginfile.verify(folder, manifest)
                return self._install(manifest, folder, work, trust=trust)

    def _install(self, manifest: PluginFile, folder: Path, work: Work, *, trust: bool) -> Installed:
        reference = f"{manifest.name}@{manifest.version}"
        home = self._place(manifest.name, manifest.version)
        verdict = self._trust.judge(reference, folder)
        self._refuse_other_content(reference, verdict, home)
        environment = None
        if trust or verdict.trusted:
            environment = self._environments.ensure(manifest, work)
        with guarded(f"install the plugin {reference}"):
            added = self._publish(folder, home)
        if trust and verdict.how != "digest":
            self._trust.add(reference, home, verdict.digest)
            verdict = self._trust.judge(reference, home)
        return Installed(
            manifest.name, manifest.version, verdict.digest, verdict.how, added, environment
        )

    def _refuse_other_content(self, reference: str, verdict: Verdict, home: Path) -> None:
        """What is there, or was and is trusted still, is mended by its own content and by no
        other."""
        there = home.exists()
        kept = self._trust.digest(reference) or (plugin_intake.digest(home) if there else None)
        if there and kept is None:
            kept = f"unknown: {home / MANIFEST} can't be read"
        if kept not in (None, verdict.digest):
            raise Conflict(
                f"plugin {reference} is {'installed' if there else 'trusted'} with other content: "
                f"its digest is {kept}, and that of this one {verdict.digest}. Give this one "
                f"another version, or hxctl plugin {'rm' if there else 'untrust'} {reference} first"
            )

    def _publish(self, folder: Path, home: Path) -> bool:
        """Whether it was not there already."""
        if home.exists():
            if plugin_intake.same(home, folder):
                return False
            self._staging.discard(home)
        disk.make_folder(home.parent)
        disk.move(folder, home)
        return True

    def trust(self, name: str, version: str, work: Work | None = None) -> Installed:
        """Lets an installed version run as it is now, and makes the environment that it needs.
        Raises `StoreError`."""
        work = work or Work()
        with self._change(work), as_store_errors():
            home = self._there(name, version)
            reference = f"{name}@{version}"
            manifest, digest = _read(home, name, version)
            if self._trust.digest(reference) not in (None, digest):
                why = self._trust.judge(reference, home).why
                raise Conflict(
                    f"{why}. If these files are meant, hxctl plugin untrust {reference} first"
                )
            pluginfile.verify(home, manifest)
            environment = self._environments.ensure(manifest, work)
            self._trust.add(reference, home, digest)
            return Installed(name, version, digest, "digest", False, environment)

    def untrust(self, name: str, version: str) -> None:
        """A version that runs goes on until its workers end. Raises `StoreError`."""
        split(f"{name}@{version}")
        with self._change():
            if not self._trust.drop(f"{name}@{version}"):
                raise NotThere(
                    f"nobody trusts the digest of {name}@{version}: nothing to take back"
                )

    def trust_key(self, name: str, text: str) -> str:
        """A public Ed25519 key in PEM or base64; it as base64. Raises `StoreError`."""
        with self._change(), guarded("trust a key"):
            disk.make_folder(self._root)
            return self._trust.add_key(name, text)

    def untrust_key(self, name: str) -> None:
        with self._change():
            self._trust.drop_key(name)

    def keys(self) -> dict[str, str]:
        """Trusted public keys as base64, by name; raises `StoreError`."""
        with as_store_errors():
            return self._trust.keys()

    def remove(self, name: str, version: str, in_use: Collection[tuple[str, str]] = ()) -> None:
        """With its trust, and the environment if it was the last to use it. Raises `StoreError`."""
        with self._change():
            home = self._there(name, version)
            if (name, version) in in_use:
                raise Conflict(
                    f"workers run plugin {name}@{version}; hxctl swap their models to another one "
                    "first"
                )
            self._trust.drop(f"{name}@{version}")
            with guarded(f"remove the plugin {name}@{version}"):
                self._staging.discard(home)
                with contextlib.suppress(OSError):
                    home.parent.rmdir()
                self._sweep()

    def ensure_environment(self, manifest: PluginFile, work: Work) -> Path | None:
        """The interpreter of its environment, made if need be; None where the daemon's will do.
        Only for a plugin that is trusted. Raises `StoreError`."""
        with self._change(work):
            return self._environments.ensure(manifest, work)

    def catalog(self, folders: Iterable[Path] = ()) -> Plugins:
        """What may run: of the operator's `folders`, built-in, and installed and trusted."""
        usable, refused = plugins.scan_all([plugins.builtin_folder(), *folders])
        for name, version in self._installed():
            try:
                plugin = self._load(name, version)
            except PluginError as error:
                refused[f"{name}@{version}"] = str(error)
            else:
                usable.setdefault(name, []).append(plugin)
        for found in usable.values():
            # Folders and built-in ones stay where they are.
            found.sort(key=_precedence, reverse=True)
        return Plugins(usable, refused, self.recheck)

    def recheck(self, plugin: Plugin) -> None:
        """Call it before every start of a worker: its files, its trust and its environment are what
        they were. Raises `PluginError`, naming what changed."""
        if plugin.source != "installed":
            plugins.check(plugin)
            return
        self._judge(plugin.reference, plugin.folder)
        plugins.check_files(plugin)
        if plugin.python != self._environments.python(plugin.manifest):
            raise PluginError(f"plugin {plugin.reference}: the packages beside hxd changed; reload")
        if plugin.python is not None:
            self._environments.recheck(plugin.manifest)

    def listing(self, folders: Iterable[Path] = ()) -> list[dict[str, Any]]:
        """Every version of every plugin, for people and JSON; `problem` is None where it may
        run."""
        return plugin_listing.rows(self.catalog(folders), self.read)

    def read(self, name: str, version: str) -> tuple[PluginFile, str]:
        """The manifest of an installed version and its digest, trusted or not; raises
        `StoreError`."""
        with as_store_errors():
            return _read(self._there(name, version), name, version)

    def verify(
        self,
        name: str | None = None,
        version: str | None = None,
        work: Work | None = None,
        folders: Iterable[Path] = (),
    ) -> list[dict[str, str]]:
        """Hash everything again, environments too: `plugin` and `problem` of each that is not as it
        should be. Raises `NotThere` for one that there is not."""
        work = work or Work()
        catalog = self.catalog(folders)
        found = [plugin for several in catalog.usable.values() for plugin in several]
        chosen = [plugin for plugin in found if _meant(plugin.reference, name, version)]
        refused = {key: why for key, why in catalog.refused.items() if _meant(key, name, version)}
        if name is not None and not chosen and not refused:
            asked = f"{name}@{version}" if version else name
            raise NotThere(f"there is no plugin {asked}.{nearest(name, catalog.usable)}")
        findings = [{"plugin": key, "problem": why} for key, why in sorted(refused.items())]
        for number, plugin in enumerate(chosen):
            work.told(f"checking {plugin.reference}", number, len(chosen))
            if problem := self._problem(plugin, work):
                findings.append({"plugin": plugin.reference, "problem": problem})
        return findings

    def _problem(self, plugin: Plugin, work: Work) -> str | None:
        try:
            if plugin.source == "installed":
                self.recheck(plugin)
            else:
                # That packages are missing which nobody may ever need is no fault of the files.
                plugins.check_files(plugin)
            if plugin.python is not None:
                self._environments.verify(plugin.manifest, work)
        except PluginError as error:
            return str(error)
        return None

    def _load(self, name: str, version: str) -> Plugin:
        """Raises `PluginError` for what may not run. Its files are not looked at yet."""
        with _as_plugin_errors():
            home = self._there(name, version)
        verdict = self._judge(f"{name}@{version}", home)
        manifest, digest = _read(home, name, version)
        plugin = Plugin(home, manifest, digest, source="installed", trusted=verdict.how)
        return replace(plugin, python=self._environments.python(manifest))

    def _judge(self, reference: str, home: Path) -> Verdict:
        verdict = self._trust.judge(reference, home)
        if verdict.why is not None:
            raise PluginError(verdict.why)
        return verdict

    def _installed(self) -> Iterator[tuple[str, str]]:
        """Names and versions that there are folders of."""
        for name in _entries(self._root):
            if pluginfile.NAME.fullmatch(name):
                for version in _entries(self._root / name):
                    if pluginfile.VERSION.fullmatch(version):
                        yield name, version

    def _place(self, name: str, version: str) -> Path:
        """Where it is or would be; raises `StoreError` where something else stands in the way."""
        split(f"{name}@{version}")
        home = self._root / name / version
        for folder in (home.parent, home):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise Corrupt(
                    f"{folder} is not a folder of the store but something else that was put there; "
                    "look at it, and remove it"
                )
        return home

    def _there(self, name: str, version: str) -> Path:
        home = self._place(name, version)
        if not home.is_dir():
            known = [f"{one}@{another}" for one, another in self._installed()]
            raise NotThere(
                f"plugin {name}@{version} is not installed.{nearest(f'{name}@{version}', known)} "
                f"There are: {', '.join(known) or 'none'}"
            )
        return home

    def _sweep(self) -> None:
        """Environments that no installed plugin asks for go."""
        keys = []
        for name, version in self._installed():
            try:
                manifest, _ = pluginfile.read(self._root / name / version)
                keys.append(plugin_requirements.key(manifest))
            except PluginError:
                # Nobody knows which one is its own: it may be mended, and then wants it back.
                return
        self._environments.keep(keys)

    @contextlib.contextmanager
    def _change(self, work: Work | None = None) -> Iterator[None]:
        if work is None:
            if not self._changing.acquire(timeout=PATIENCE):
                raise Conflict("another plugin is being installed; try again when it is done")
        else:
            while not self._changing.acquire(timeout=0.5):
                work.told("waiting for another plugin's installation", 0, 0)
        try:
            yield
        finally:
            self._changing.release()


def _read(home: Path, name: str, version: str) -> tuple[PluginFile, str]:
    manifest, digest = pluginfile.read(home)
    if (manifest.name, manifest.version) != (name, version):
        raise PluginError(
            f"{home / MANIFEST} is that of {manifest.name}@{manifest.version}; hxctl plugin rm "
            f"{name}@{version}, and install it again"
        )
    return manifest, digest


def _precedence(plugin: Plugin) -> tuple[Any, ...]:
    if plugin.source != "installed":
        return (1,)
    try:
        return (0, 1, Version(plugin.manifest.version), plugin.manifest.version)
    except InvalidVersion:
        return (0, 0, plugin.manifest.version)


def _meant(reference: str, name: str | None, version: str | None) -> bool:
    found, _, other = reference.partition("@")
    return name is None or (found == name and version in (None, other))


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _as_plugin_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise PluginError(str(error)) from None

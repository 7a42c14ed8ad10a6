"""A plugin on its way into the store: its manifest as it will be, and its files, one by one the
listed ones. Writes into the folder that it is given, and nowhere else."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from hxd import pluginfile
from hxd.config import durable
from hxd.daemon.store import disk, plugin_requirements
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.plugin_package import Contents
from hxd.daemon.store.work import Work
from hxd.pluginfile import MANIFEST, SIGNATURE, PluginError, PluginFile


def manifest(package: Contents, path: Path) -> tuple[bytes, PluginFile]:
    """plugin.toml as it will be installed. What a wheel requires is written into one that says
    nothing of requirements, so that its digest covers them; a signed one is taken at its word."""
    data = package.read(MANIFEST, pluginfile.MAX_MANIFEST)
    with as_store_errors():
        manifest = pluginfile.parse(data, path / MANIFEST)
        wanted = package.requires()
        says = "requirements" in tomllib.loads(data.decode()) or SIGNATURE in package.names
        if wanted and not says:
            data = tomli_w.dumps({"requirements": wanted}).encode() + data
            manifest = pluginfile.parse(data, path / MANIFEST)
        plugin_requirements.parse(manifest)
    return data, manifest


def unpack(
    package: Contents, data: bytes, manifest: PluginFile, folder: Path, path: Path, work: Work
) -> None:
    """Every listed file and no other, on the disk when it returns."""
    extra = set(package.names) - manifest.files.keys() - {MANIFEST, SIGNATURE}
    if extra:
        raise Corrupt(
            f"{path}: {min(extra)!r} is not listed in {MANIFEST}; remove it, or list it with "
            "scripts/plugin-digest"
        )
    missing = manifest.files.keys() - set(package.names)
    if missing:
        raise Corrupt(f"{path}: {min(missing)!r}, which {MANIFEST} lists, is not in it")
    for number, name in enumerate(package.names):
        work.told("copying files", number, len(manifest.files) + 1)
        target = folder / name
        disk.make_folder(target.parent)
        disk.write_new(target, data if name == MANIFEST else package.read(name))
    for inside in sorted(folder.rglob("*")):
        if inside.is_dir():
            durable.sync(inside)
    durable.sync(folder)


def digest(home: Path) -> str | None:
    with contextlib.suppress(PluginError):
        return pluginfile.read(home)[1]
    return None


def same(home: Path, folder: Path) -> bool:
    """Whether what is installed is whole, and has what the new copy has, signature included."""
    try:
        manifest, digest = pluginfile.read(home)
        pluginfile.verify(home, manifest)
        if digest != pluginfile.read(folder)[1]:
            return False
        if not (folder / SIGNATURE).exists():
            return True
        signatures = [
            pluginfile.contents(where / SIGNATURE, pluginfile.MAX_MANIFEST)
            for where in (home, folder)
        ]
    except PluginError:
        return False
    return signatures[0] == signatures[1]


@contextlib.contextmanager
def as_store_errors() -> Iterator[None]:
    """A plugin that can't be used is, to who installs it, a corrupt file."""
    try:
        yield
    except PluginError as error:
        raise Corrupt(str(error)) from None

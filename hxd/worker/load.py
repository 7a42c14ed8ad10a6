"""Imports one plugin from verified bytes and asks it for its backend.

What was hashed is what runs: source text is read once, checked against plugin.toml and compiled
from memory. Cached bytecode is never read, and no other file of the folder can be imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

import pluggy

from hxd import hookspecs, pluginfile
from hxd.pluginfile import PluginError, PluginFile


class _Verified(InspectLoader):
    def __init__(self, folder: Path, name: str, digest: str) -> None:
        self.folder, self.name, self.digest = folder, name, digest

    def get_source(self, fullname: str) -> str:
        return pluginfile.verified(self.folder, self.name, self.digest).decode("utf-8")

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_source(fullname), str(self.folder / self.name), "exec")

    def is_package(self, fullname: str) -> bool:
        return self.name.endswith("__init__.py")


class _Finder(MetaPathFinder):
    """Serves `PACKAGE` and everything below it from one plugin folder."""

    def __init__(self, package: str, folder: Path, files: dict[str, str]) -> None:
        self.package, self.folder, self.files = package, folder, files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        inside = fullname[len(self.package) + 1 :].replace(".", "/")
        for name in (f"{inside}.py", f"{inside}/__init__.py".lstrip("/")):
            if name in self.files:
                loader = _Verified(self.folder, name, self.files[name])
                return spec_from_loader(fullname, loader, origin=str(self.folder / name))
        if not inside:
            # A folder without __init__.py is a package all the same; its modules are the content.
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        return None


def import_plugin(folder: Path, digest: str) -> tuple[pluggy.PluginManager, PluginFile]:
    """A plugin manager that holds exactly the plugin in `folder`.

    `digest` is the sha256 of the plugin.toml that the daemon verified. Raises `PluginError`; lets
    through what the plugin's own code raises.
    """
    manifest, found = pluginfile.read(folder)
    if found != digest:
        raise PluginError(f"{folder / pluginfile.MANIFEST} changed since the daemon verified it")
    package = f"hxd_plugin_{manifest.name}"
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Finder(package, folder, manifest.files))
    module = importlib.import_module(f"{package}.{manifest.entry}")
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs.Hooks)
    manager.register(module, name=manifest.name)
    # A misspelt hook would otherwise never be called, in silence.
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{folder}: {error}") from None
    for required in (("hxd_describe",), ("hxd_backend", "hxd_convert")):
        if not any(getattr(manager.hook, hook).get_hookimpls() for hook in required):
            raise PluginError(f"{folder}: the module {manifest.entry!r} has no hook {required[0]}")
    return manager, manifest


def describe(manager: pluggy.PluginManager, manifest: PluginFile) -> hookspecs.Description:
    description = manager.hook.hxd_describe()
    if not isinstance(description, hookspecs.Description):
        raise PluginError(f"hxd_describe gave {type(description).__name__}, not a Description")
    if description.formats != set(manifest.formats):
        raise PluginError(
            f"hxd_describe names the formats {sorted(description.formats)}, "
            f"{pluginfile.MANIFEST} {sorted(manifest.formats)}"
        )
    return description

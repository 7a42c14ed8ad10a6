"""Which plugins there are, by their manifests; verified, never imported.

Three sources, in the order in which a bare name is looked up: `folder`, where the operator said
that there are plugins; `builtin`; `installed`, in the plugin store, of which only what is trusted
comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hxd import pluginfile
from hxd.daemon.store import plugin_requirements
from hxd.errors import nearest
from hxd.pluginfile import PluginError, PluginFile

AUTO = "auto"
SourceKind = Literal["builtin", "folder", "installed"]


@dataclass(frozen=True)
class Plugin:
    """`digest` is the sha256 of plugin.toml. `python` is the interpreter of an environment of its
    own, None where the daemon's will do. `trusted` says by what: `builtin`, `folder`, `digest` or
    `signature by KEY`."""

    folder: Path
    manifest: PluginFile
    digest: str
    python: Path | None = None
    source: SourceKind = "folder"
    trusted: str = "folder"

    @property
    def reference(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"


def check(plugin: Plugin) -> None:
    """Every listed file is unchanged, plugin.toml is the one that was read, and this interpreter
    has what is required. Raises `PluginError`, naming the file."""
    check_files(plugin)
    plugin_requirements.check(plugin.manifest)


def check_files(plugin: Plugin) -> None:
    """The first half of `check`."""
    pluginfile.verify(plugin.folder, plugin.manifest)
    _, digest = pluginfile.read(plugin.folder)
    if digest != plugin.digest:
        where = plugin.folder / pluginfile.MANIFEST
        raise PluginError(f"{where} changed since the daemon read it: sha256 differs")


@dataclass(frozen=True)
class Plugins:
    """`usable` has each name's plugins, first the one that the bare name means. `refused` says why
    others may not run, by folder, NAME or NAME@VERSION. `recheck` is called before a plugin runs;
    it blocks, and raises `PluginError`."""

    usable: Mapping[str, Sequence[Plugin]]
    refused: Mapping[str, str] = field(default_factory=dict)
    recheck: Callable[[Plugin], None] = check

    def choose(self, asked: str, format: str | None) -> Plugin:
        """By NAME or NAME@VERSION, or by file format for `auto`: of those that load it, the one
        that names it earliest among its formats; an installed one only where no other does.

        It has passed `recheck`. Raises `PluginError`.
        """
        plugin = self._by_format(format) if asked == AUTO else self.find(asked)
        self.recheck(plugin)
        return plugin

    def _by_format(self, format: str | None) -> Plugin:
        places = [
            (
                plugins[0].source == "installed",
                plugins[0].manifest.formats.index(format),
                plugins[0],
            )
            for plugins in self.usable.values()
            if format is not None and format in plugins[0].manifest.formats
        ]
        if not places:
            raise PluginError(f"no plugin loads {format} files")
        return min(places, key=lambda place: place[:2])[2]

    def find(self, asked: str) -> Plugin:
        """By NAME or NAME@VERSION, unchecked; raises `PluginError`."""
        name, at, version = asked.partition("@")
        there = self.usable.get(name, ())
        for plugin in there:
            if not at or plugin.manifest.version == version:
                return plugin
        if asked in self.refused:
            raise PluginError(self.refused[asked])
        # A bare name whose only versions may not run: the reason of one says what to do.
        for reference, why in self.refused.items():
            if not at and reference.startswith(f"{name}@"):
                raise PluginError(why)
        if there:
            versions = ", ".join(plugin.manifest.version for plugin in there)
            raise PluginError(
                f"no plugin {asked!r}; of {name} there are: {versions}. hxctl plugin install adds "
                "one"
            )
        raise PluginError(
            f"no plugin {asked!r}.{nearest(asked, self.usable)} "
            f"There are: {', '.join(sorted(self.usable)) or 'none'}"
        )


def builtin_folder() -> Path:
    """`hxd/plugins` in an installed package, `plugins` beside `hxd` in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "plugins"
    return installed if installed.is_dir() else package.parent / "plugins"


def scan(folders: Iterable[Path]) -> tuple[dict[str, Plugin], dict[str, str]]:
    """Plugins by name, and for each folder that looks like one but can't be used, why. A later
    folder's plugin replaces an earlier one of the same name."""
    usable, refused = scan_all(folders)
    return {name: plugins[0] for name, plugins in usable.items()}, refused


def scan_all(folders: Iterable[Path]) -> tuple[dict[str, list[Plugin]], dict[str, str]]:
    """As `scan`, with all plugins of a name, those of later folders first."""
    usable: dict[str, list[Plugin]] = {}
    refused: dict[str, str] = {}
    builtin = builtin_folder()
    for parent in folders:
        source: SourceKind = "builtin" if parent == builtin else "folder"
        try:
            candidates = sorted(path for path in parent.iterdir() if path.is_dir())
        except OSError as error:
            refused[str(parent)] = f"can't be read: {error.strerror}"
            continue
        for folder in candidates:
            if not (folder / pluginfile.MANIFEST).exists():
                continue
            try:
                manifest, digest = pluginfile.read(folder)
            except PluginError as error:
                refused[folder.name] = str(error)
            else:
                plugin = Plugin(folder, manifest, digest, source=source, trusted=source)
                usable.setdefault(manifest.name, []).insert(0, plugin)
                refused.pop(manifest.name, None)
    return usable, refused


def choose(
    asked: str, format: str | None, plugins: Mapping[str, Plugin], refused: Mapping[str, str]
) -> Plugin:
    """As `Plugins.choose`, where each name has one plugin."""
    usable = {name: [plugin] for name, plugin in plugins.items()}
    return Plugins(usable, refused).choose(asked, format)

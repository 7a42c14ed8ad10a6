"""Which plugins there are, by their manifests; verified, never imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hxd import pluginfile
from hxd.errors import nearest
from hxd.pluginfile import PluginError, PluginFile

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:(==|>=)\s*([0-9][0-9.]*))?\s*$")


@dataclass(frozen=True)
class Plugin:
    folder: Path
    manifest: PluginFile
    digest: str


def builtin_folder() -> Path:
    """`hxd/plugins` in an installed package, `plugins` beside `hxd` in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "plugins"
    return installed if installed.is_dir() else package.parent / "plugins"


def scan(folders: Iterable[Path]) -> tuple[dict[str, Plugin], dict[str, str]]:
    """Plugins by name, and for each folder that looks like one but can't be used, why. A later
    folder's plugin replaces an earlier one of the same name."""
    plugins: dict[str, Plugin] = {}
    refused: dict[str, str] = {}
    for parent in folders:
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
                plugins[manifest.name] = Plugin(folder, manifest, digest)
                refused.pop(manifest.name, None)
    return plugins, refused


def choose(
    asked: str, format: str | None, plugins: Mapping[str, Plugin], refused: Mapping[str, str]
) -> Plugin:
    """The plugin by name, or by file format for `auto`: of those that load it, the one that names
    it earliest among its formats. Verified and with its requirements met.

    Raises `PluginError`.
    """
    if asked == "auto":
        places = [
            (plugin.manifest.formats.index(format), plugin)
            for plugin in plugins.values()
            if format in plugin.manifest.formats
        ]
        if not places:
            raise PluginError(f"no plugin loads {format} files")
        plugin = min(places, key=lambda place: place[0])[1]
    elif asked in plugins:
        plugin = plugins[asked]
    elif asked in refused:
        raise PluginError(refused[asked])
    else:
        raise PluginError(
            f"no plugin {asked!r}.{nearest(asked, plugins)} "
            f"There are: {', '.join(sorted(plugins)) or 'none'}"
        )
    pluginfile.verify(plugin.folder, plugin.manifest)
    _check_requirements(plugin.manifest)
    return plugin


def _check_requirements(manifest: PluginFile) -> None:
    for requirement in manifest.requirements:
        match = _REQUIREMENT.match(requirement)
        if not match:
            raise PluginError(
                f"plugin {manifest.name}: requirement {requirement!r} is not NAME, NAME==VERSION "
                "or NAME>=VERSION"
            )
        name, operator, wanted = match.groups()
        extra = f": install hxd[{manifest.extra}]" if manifest.extra else f": install {requirement}"
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise PluginError(f"plugin {manifest.name} needs {requirement}{extra}") from None
        if operator and not _satisfies(installed, operator, wanted):
            raise PluginError(
                f"plugin {manifest.name} needs {requirement}, {installed} is installed{extra}"
            )


def _satisfies(installed: str, operator: str, wanted: str) -> bool:
    have, want = _numbers(installed), _numbers(wanted)
    return have == want if operator == "==" else have >= want


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])

"""The files of a configuration as a set: what lies on the disk now, and what somebody proposes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hxd.config.load import FOLDER, MAIN, read
from hxd.errors import ConfigError


def snapshot(config_file: Path) -> dict[str, bytes]:
    """What `load(config_file)` reads, byte for byte.

    Raises `ConfigError` for what can't be read. To know what was loaded, take this and give it to
    `load_as`: read twice, a file may have changed in between.
    """
    folder = config_file.parent / FOLDER
    places = {MAIN: config_file}
    places |= {f"{FOLDER}/{file.name}": file for file in sorted(folder.glob("*.toml"))}
    files: dict[str, bytes] = {}
    findings: list[str] = []
    for name, file in places.items():
        try:
            files[name] = read(file)
        except ConfigError as error:
            findings += error.findings
    if findings:
        raise ConfigError(findings)
    return files


def stage(candidate: Path, origin: Path) -> dict[str, bytes]:
    """What the configuration of `origin` would consist of with `candidate`, for `load_as`.

    A folder is a whole configuration, with a hxd.toml and perhaps a conf.d; what it lacks would be
    removed. A single file takes the place of the main file, and conf.d stays as it is.
    """
    if candidate.is_dir():
        return snapshot(candidate / MAIN)
    # A file may well lie in a folder with a conf.d that has nothing to do with it.
    return snapshot(origin) | {MAIN: read(candidate, wait=True)}


def as_called(
    findings: Iterable[str], origin: Path, candidate: Path, names: Iterable[str]
) -> list[str]:
    """Findings of `load_as(files, origin)` under the names that the files have where they lie:
    `candidate` is the main one, and `names` are those that came from there."""
    places = {str(_place(origin, name)): str(_place(candidate, name)) for name in names}
    renamed = []
    for finding in findings:
        start = next((place for place in places if finding.startswith(f"{place}: ")), "")
        finding = places.get(start, "") + finding.removeprefix(start)
        for place, called in places.items():
            # Where a key stands twice, the other file is named as well.
            if finding.endswith(f" stands in {place} too"):
                finding = finding.removesuffix(f"{place} too") + f"{called} too"
        renamed.append(finding)
    return renamed


def _place(main: Path, name: str) -> Path:
    return main if name == MAIN else main.parent / name

"""Looks through the whole store for what is wrong with it; changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hxd.daemon.store import findings
from hxd.daemon.store import labels as labelling
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Corrupt, NotThere, StoreError
from hxd.daemon.store.findings import Finding, What
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName, version_number
from hxd.daemon.store.shelf import GOLDEN, numbered
from hxd.daemon.store.troubles import Kind, Trouble
from hxd.daemon.store.version import VARIANTS, Version
from hxd.daemon.store.work import Work

# Nobody else may look into folders; files in them may be hard links that the operator can read.
_FOLDER_BITS = 0o077
_FILE_BITS = 0o022


def examine(library: Library, work: Work | None = None, *, deep: bool = True) -> list[Trouble]:
    """All that is wrong. `deep` reads every file; without it a file's size is believed."""
    work = work or Work()
    with guarded("examine the store"):
        found = [
            _trouble(library, Kind.LEFTOVER, path, "a workspace that nobody works in")
            for path in library.workspaces.leftovers()
        ]
        if not library.digests.readable():
            path = library.digests.file
            found.append(_trouble(library, Kind.CACHE, path, "it can't be read"))
        found += _folder(library, library.models, "", work, deep)
        found += _rights(library, library.models)
    return found


def label_troubles(library: Library, name: ModelName) -> list[Trouble]:
    """Of one model; none where it has no versions left and no labels."""
    file = library.folder(name) / labelling.FILE
    try:
        known = library.labels(name)
    except Corrupt as error:
        return [_trouble(library, Kind.LABELS, file, error.message, name)]
    there = library.versions(name)
    return [
        _trouble(library, Kind.LABEL, file, f"{label} points at {at}, which is not there", name, at)
        for label, at in known.items()
        if at not in there
    ]


def _folder(
    library: Library, folder: Path, prefix: str, work: Work, deep: bool
) -> Iterator[Trouble]:
    """Of models, or of one model and those whose names begin with its."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        work.check()
        if path.is_symlink():
            yield _trouble(library, Kind.LINK, path, "a symbolic link, never followed")
        elif not path.is_dir():
            if not prefix or path.name not in (labelling.FILE, GOLDEN):
                yield _trouble(library, Kind.EXTRA, path, "no file of the store")
        elif prefix and _is_version(path.name):
            yield from _version(library, ModelName(prefix[:-1]), int(path.name), work, deep)
        elif _is_model(prefix + path.name):
            yield from _folder(library, path, f"{prefix}{path.name}/", work, deep)
        else:
            yield _trouble(library, Kind.EXTRA, path, "no folder of the store")
    if prefix and (numbered(folder) or (folder / labelling.FILE).exists()):
        yield from label_troubles(library, ModelName(prefix[:-1]))


def _version(
    library: Library, name: ModelName, number: int, work: Work, deep: bool
) -> Iterator[Trouble]:
    folder = library.folder(name) / str(number)
    try:
        version = library.version(name, number)
    except NotThere:
        detail = "no manifest"
        yield _trouble(library, Kind.MANIFEST, folder, detail, name, number)
        return
    except Corrupt as error:
        yield _trouble(library, Kind.MANIFEST, folder, error.message, name, number)
        return
    for finding in findings.examine(library.tree, library.digests, version, work, deep=deep):
        yield _of_finding(library, version, finding)
    for variant, mark in [("", version.mark), *version.marks.items()]:
        if mark is not None:
            path = version.folder / VARIANTS / variant if variant else version.folder
            yield _trouble(library, Kind.QUARANTINED, path, str(mark), name, number, variant)


def _of_finding(library: Library, version: Version, finding: Finding) -> Trouble:
    path = version.folder / finding.file
    listed = {file for files in version.variants().values() for file in files}
    if finding.what is What.EXTRA:
        kind = Kind.EXTRA
    elif finding.what is What.MANIFEST:
        kind = Kind.VARIANT
    elif finding.what is What.LINK and path not in listed:
        kind = Kind.LINK
    else:
        kind = Kind.FILE
    below = path.relative_to(version.folder).parts
    variant = below[1] if below[0] == VARIANTS and len(below) > 1 else ""
    name, number = version.name, version.number
    return _trouble(library, kind, path, finding.detail, name, number, variant, str(finding.what))


def _rights(library: Library, folder: Path) -> Iterator[Trouble]:
    """The root's owner is the one that all should have: root may be the one who looks."""
    owner = library.root.stat().st_uid
    for parent, folders, files in os.walk(folder):
        for path in [Path(parent), *(Path(parent) / file for file in files)]:
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
                continue
            bits = _FOLDER_BITS if stat.S_ISDIR(found.st_mode) else _FILE_BITS
            if found.st_mode & bits:
                mode = oct(stat.S_IMODE(found.st_mode))[2:]
                yield _trouble(library, Kind.MODE, path, f"others may enter or write it: {mode}")
            if found.st_uid != owner:
                detail = f"it belongs to user {found.st_uid}, the store to {owner}"
                yield _trouble(library, Kind.OWNER, path, detail)
        folders[:] = [one for one in folders if not (Path(parent) / one).is_symlink()]


def _trouble(
    library: Library,
    kind: Kind,
    path: Path,
    detail: str,
    name: str = "",
    version: int = 0,
    variant: str = "",
    what: str = "",
) -> Trouble:
    below = str(path.relative_to(library.root))
    return Trouble(kind, below, detail, str(name), version, str(variant), what)


def _is_version(name: str) -> bool:
    try:
        version_number(name)
    except BadName:
        return False
    return True


def _is_model(name: str) -> bool:
    try:
        ModelName(name)
    except StoreError:
        return False
    return True

"""The built-in demo model, put into the store so that it is served like any other.

Copied and never linked: what happens to the store's files must not happen to the package's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from hxd.daemon.store import demo, intake, quarantine
from hxd.daemon.store import labels as labelling
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.labels import STABLE
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.work import Work
from hxd.errors import HxdError

log = logging.getLogger("hxd.store")

NAME = ModelName(demo.NAME)


def seed(library: Library) -> None:
    """Where a version is missing that nobody removed; `stable` is set only where the model has no
    labels yet. A package that is damaged, or a disk that is full, keeps nobody from being
    served."""
    try:
        with guarded("put the demo model into the store"), library.writing:
            # What came back, from a backup perhaps, is a version like any other.
            library.unseeded.forget(n for n in demo.numbers() if _there(library, n))
            removed = library.unseeded.numbers()
        _put(library, [number for number in demo.numbers() if number not in removed])
        if not (library.folder(NAME) / labelling.FILE).exists():
            library.set_label(NAME, STABLE, demo.STABLE)
    except HxdError as error:
        log.error("the demo model is not in the store: %s", error)


def bring_back(library: Library, numbers: Collection[int]) -> list[int]:
    """Those that were missing, for an operator who removed them and wants them again. `stable` is
    set where the model has no label. Raises `StoreError` and `StoreBroken`."""
    put = _put(library, numbers)
    with guarded("put the demo model into the store"), library.writing:
        library.unseeded.forget(numbers)
    if put and not library.labels(NAME) and demo.STABLE in library.versions(NAME):
        library.set_label(NAME, STABLE, demo.STABLE)
    return put


def replace(library: Library, number: int) -> bool:
    """Whether the package has this version; what the store has in its place is taken out."""
    source = demo.folder() / str(number) / manifests.FILE
    if not source.exists():
        return False
    _copy(library, source)
    return True


def find(sha256: str) -> Path | None:
    """The package's file with this content, by what its manifest says."""
    for source in demo.folder().glob("[0-9]*/manifest.toml"):
        for name, entry in manifests.read(source.read_bytes(), str(source)).files.items():
            if entry.sha256 == sha256:
                return source.parent / name
    return None


def _there(library: Library, number: int) -> bool:
    return (library.folder(NAME) / str(number) / manifests.FILE).exists()


def _put(library: Library, numbers: Collection[int]) -> list[int]:
    missing = [number for number in numbers if not _there(library, number)]
    for number in missing:
        _copy(library, demo.folder() / str(number) / manifests.FILE)
    return missing


def _copy(library: Library, source: Path) -> None:
    folder = library.workspace("demo")
    try:
        with guarded("put the demo model into the store"):
            manifest = manifests.read(source.read_bytes(), str(source))
            files = [(source.parent / one, folder / one) for one in manifest.files]
            taken = intake.take(files, "copy", Work())
        for one in taken:
            if one.sha256 != manifest.files[one.path.name].sha256:
                raise Corrupt(f"{one.source} is corrupted; install hxd again")
        place = library.folder(NAME) / str(manifest.version)
        if os.path.lexists(place):
            quarantine.impound(library, place, "replaced by the built-in model")
        origin = f"builtin:demo@{manifest.version}"
        library.enter(folder, msgspec.structs.replace(manifest, origin=origin), taken)
    finally:
        library.drop(folder)

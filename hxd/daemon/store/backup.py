"""A copy of the store on another disk: files by their digest, each of them once, and snapshots.

`TARGET/objects/ab/SHA256` and `TARGET/snapshots/TIME.toml`. A snapshot is written last and in one
step, so a backup that was cut off is none, and the next one completes it. What is written is read
back and hashed; what was there before is taken by its name and size, unless that is asked for too.
Restoring hashes everything again, and believes no name, size or digest in the folder.
"""

from __future__ import annotations

import datetime
import errno
import os
import secrets
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hxd.daemon.store import disk, intake
from hxd.daemon.store import snapshots as tables
from hxd.daemon.store.digests import hash_file
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict, Corrupt, NotThere
from hxd.daemon.store.library import Library
from hxd.daemon.store.lockfile import locked
from hxd.daemon.store.manifest import FileEntry
from hxd.daemon.store.mark import Mark
from hxd.daemon.store.reference import Digest, ModelName
from hxd.daemon.store.restore import Restored, restore
from hxd.daemon.store.snapshots import (
    OBJECTS,
    SavedModel,
    SavedVersion,
    Snapshot,
    SnapshotInfo,
    object_path,
)
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work

__all__ = ["Report", "Restored", "SnapshotInfo", "backup", "restore", "snapshots"]

# Emptied at every start: a name that nobody else gives a folder.
_UNFINISHED = ".hxd-unfinished"


@dataclass
class Report:
    """What a backup did. `replaced`: of the copied files, those that had rotted in the backup.
    `problems` are versions that are not in the snapshot, and why."""

    snapshot: str = ""
    versions: list[str] = field(default_factory=list)
    copied: int = 0
    copied_bytes: int = 0
    kept: int = 0
    replaced: int = 0
    problems: list[str] = field(default_factory=list)

    def to_body(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "versions": self.versions,
            "copied": self.copied,
            "copied_bytes": self.copied_bytes,
            "kept": self.kept,
            "replaced": self.replaced,
            "problems": self.problems,
        }


def backup(
    library: Library,
    target: Path,
    work: Work | None = None,
    names: Collection[str] | None = None,
    *,
    verify: bool = False,
) -> Report:
    """Raises `StoreBroken` when the target takes no more; versions whose files are not the
    manifest's are left out and reported. `verify`: of what is there already, every byte is read."""
    work = work or Work()
    root = disk.resolved(target)
    if root.is_relative_to(library.root.resolve()):
        raise Conflict(f"{target} lies in the store itself; name a folder on another disk")
    wanted = _wanted(library, names)
    with (
        locked(root, "another backup is being written; wait for it"),
        guarded(f"write the backup in {target}"),
    ):
        disk.delete(root / _UNFINISHED)
        for folder in (root / OBJECTS, root / tables.FOLDER, root / _UNFINISHED):
            _make_folder(folder)
        report = Report()
        models: dict[str, SavedModel] = {}
        for name in wanted:
            models[name] = _save(library, name, root, report, work, verify=verify)
        snapshot = Snapshot(library.today(), models)
        report.snapshot = _write(library, root, snapshot)
    return report


def snapshots(target: Path) -> list[SnapshotInfo]:
    """Those in a backup, oldest first."""
    return tables.infos(disk.resolved(target))


def _wanted(library: Library, names: Collection[str] | None) -> list[ModelName]:
    there = library.names()
    if names is None:
        return [ModelName(name) for name in there]
    asked = [ModelName(name) for name in names]
    for name in asked:
        if name not in there:
            raise library.unknown(name)
    return asked


def _save(
    library: Library, name: ModelName, root: Path, report: Report, work: Work, *, verify: bool
) -> SavedModel:
    versions: dict[int, SavedVersion] = {}
    for number in library.versions(name):
        try:
            version = library.version(name, number)
            _save_files(library, version, root, report, work, verify=verify)
        except (Corrupt, NotThere) as error:
            report.problems.append(f"{name}@{number}: {error.message}")
            continue
        versions[number] = SavedVersion(
            version.manifest,
            dict(version.derived),
            _behaviour(version.mark),
            {one: why for one, mark in version.marks.items() if (why := _behaviour(mark))},
        )
        report.versions.append(str(version))
    try:
        known = library.labelled(name)
    except Corrupt as error:
        report.problems.append(f"{name}: {error.message}")
        return SavedModel(name, max(versions, default=0) + 1, {}, library.golden(name), versions)
    labels = {label: at for label, at in known.labels.items() if at in versions}
    next = max(known.next, max(versions, default=0) + 1)
    return SavedModel(name, next, labels, library.golden(name), versions)


def _behaviour(mark: Mark | None) -> str:
    """Why it was marked. Of one that was for its bytes: nothing, since the backup's are good."""
    return mark.why if mark is not None and mark.cause == "behaviour" else ""


def _save_files(
    library: Library, version: Version, root: Path, report: Report, work: Work, *, verify: bool
) -> None:
    for variant, files in version.variants().items():
        _, manifest = version.part(variant)
        for file in files:
            entry = manifest.files[file.name]
            place = object_path(root, entry.sha256)
            there = _is_there(place, entry.bytes)
            rotten = there and verify and _rotten(place, entry, work)
            if there and not rotten:
                report.kept += 1
                continue
            try:
                source = library.tree.open(file)
            except FileNotFoundError:
                raise Corrupt(f"{file} is missing; run hxctl model doctor") from None
            try:
                _copy(source, file, entry, place, root, work)
            finally:
                os.close(source)
            report.copied += 1
            report.copied_bytes += entry.bytes
            report.replaced += rotten


def _copy(source: int, file: Path, entry: FileEntry, place: Path, root: Path, work: Work) -> None:
    """Into the backup, synced, and read back from the disk before it gets its name."""
    disk.check_room(root, entry.bytes, f"back up {file.name}")
    part = root / _UNFINISHED / secrets.token_hex(8)
    try:
        found = _copied(source, file, part, work)
        if found != entry.sha256:
            raise Corrupt(
                f"{file} is corrupted: its sha256 is {found.short}, the manifest says "
                f"{entry.sha256.short}; run hxctl model doctor"
            )
        again = _read_back(part, work)
        if again != entry.sha256:
            raise disk.broken(
                f"back up {file.name}: what was written to {root} reads differently",
                OSError(5, os.strerror(5)),
            )
        _make_folder(place.parent)
        disk.delete(place)
        disk.move(part, place)
    finally:
        part.unlink(missing_ok=True)


def _copied(source: int, file: Path, part: Path, work: Work) -> Digest:
    """Raises `Corrupt` where it is the store's disk that fails: others may still be saved."""
    try:
        return intake.copy(source, file, part, work).sha256
    except OSError as error:
        if error.errno == errno.EIO:
            try:
                hash_file(source, file.name, work)
            except OSError:
                raise Corrupt(
                    f"{file} can't be read: {error.strerror}; run hxctl model doctor"
                ) from None
        raise


def _is_there(place: Path, size: int) -> bool:
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _rotten(place: Path, entry: FileEntry, work: Work) -> bool:
    try:
        return _read_back(place, work) != entry.sha256
    except OSError as error:
        if error.errno == errno.EIO:
            return True
        raise


def _make_folder(folder: Path) -> None:
    """A link would lead what is written to somewhere else."""
    if folder.is_symlink():
        raise Conflict(f"{folder} is a symbolic link; remove it, or name another folder")
    disk.make_folder(folder)


def _read_back(part: Path, work: Work) -> Digest:
    with part.open("rb", buffering=0) as stream:
        # Without this the kernel would answer from the pages that it has.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hash_file(stream.fileno(), f"{part.name[:12]} in the backup", work)


def _write(library: Library, root: Path, snapshot: Snapshot) -> str:
    now = datetime.datetime.fromtimestamp(library.wall(), datetime.UTC)
    id = time = now.strftime("%Y%m%dT%H%M%SZ")
    taken = set(tables.ids(root))
    number = 1
    while id in taken:
        number += 1
        id = f"{time}-{number}"
    data = tables.write(snapshot)
    tables.read(data, id)  # What could not be read again is no backup.
    disk.write_atomic(root / tables.FOLDER / f"{id}.toml", data, root / _UNFINISHED)
    return id

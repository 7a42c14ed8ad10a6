"""Brings files into a folder of the store: as a clone, as a second name, or as a copy.

A clone (reflink) costs no space and is a file of its own; a hard link costs none either, and who
later writes to the source writes to the store as well, which the digests notice before the next
load. A copy needs the space, and is synced. In every case the bytes are hashed as they come in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hxd.daemon.store import disk
from hxd.daemon.store.digests import Seen, hash_file
from hxd.daemon.store.faults import Corrupt, NotThere, StoreError
from hxd.daemon.store.reference import Digest, shown
from hxd.daemon.store.work import Work

_FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h

# `share`: the source stays as it is. `move`: it is gone once the version is published. `copy`: the
# store's file must not be the source's.
Take = Literal["share", "move", "copy"]


@dataclass(frozen=True)
class Taken:
    """A file in the store, `path`, and what it holds. `seen` is the file when it was hashed, and
    `origin` the source then."""

    source: Path
    origin: Seen
    path: Path
    sha256: Digest
    bytes: int
    seen: Seen
    how: Literal["clone", "link", "copy"]


def open_source(source: Path) -> int:
    """A descriptor of a regular file that the operator named; raises `NotThere`, `StoreError`."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotThere(f"no such file: {shown(str(source))}", param="path") from None
    except OSError as error:
        raise StoreError(
            f"can't read {shown(str(source))}: {error.strerror}. The daemon reads it as its own "
            "user; chmod it, or copy it to where that user may read",
            param="path",
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{shown(str(source))} is not a regular file", param="path")
    return descriptor


def take(files: Sequence[tuple[Path, Path]], how: Take, work: Work) -> list[Taken]:
    """Pairs of source and target, which must not be there. Raises `StoreBroken` before the first
    copy when the disk has no room, and `Corrupt` for a source that changes meanwhile."""
    sources = [open_source(source) for source, _ in files]
    try:
        shared = [
            _share(descriptor, source, target, how)
            for descriptor, (source, target) in zip(sources, files, strict=True)
        ]
        sizes = [os.fstat(descriptor).st_size for descriptor in sources]
        wanted = sum(size for size, way in zip(sizes, shared, strict=True) if way == "copy")
        if wanted:
            disk.check_room(files[0][1].parent, wanted, f"copy {files[0][0].name} into the store")
        watched = _Sum(work, sum(sizes))
        taken = []
        for descriptor, way, (source, target) in zip(sources, shared, files, strict=True):
            taken.append(_take(descriptor, source, target, way, watched.next()))
            watched.before += taken[-1].bytes
        return taken
    finally:
        for descriptor in sources:
            os.close(descriptor)


@dataclass
class _Sum:
    """Progress over several files as one."""

    work: Work
    total: int
    before: int = 0

    def next(self) -> Work:
        before = self.before

        def progress(step: str, done: int, _: int) -> None:
            self.work.told(step, before + done, self.total)

        return Work(progress)


def _share(
    descriptor: int, source: Path, target: Path, how: Take
) -> Literal["clone", "link", "copy"]:
    """Tries the ways that cost nothing; any error of theirs means only that they can't be had
    here: another file system, one that can't, or `fs.protected_hardlinks`."""
    if how != "move":
        clone = disk.create(target)
        try:
            fcntl.ioctl(clone, _FICLONE, descriptor)
            return "clone"
        except OSError:
            target.unlink()
        finally:
            os.close(clone)
    if how != "copy":
        try:
            target.hardlink_to(source)
        except OSError:
            return "copy"
        if not os.path.samestat(target.lstat(), os.fstat(descriptor)):
            target.unlink()
            raise Corrupt(f"{source.name} was replaced while it was read")
        return "link"
    return "copy"


def _take(
    descriptor: int,
    source: Path,
    target: Path,
    how: Literal["clone", "link", "copy"],
    work: Work,
) -> Taken:
    before = Seen.of(descriptor)
    if how == "copy":
        inside = disk.create(target)
    else:
        inside = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if how == "copy":
            sha256 = _copy(descriptor, inside, source.name, before.size, work)
        else:
            sha256 = hash_file(inside, source.name, work)
        os.fsync(inside)
        seen = Seen.of(inside)
    finally:
        os.close(inside)
    if Seen.of(descriptor) != before or seen.size != before.size:
        raise Corrupt(
            f"{source.name} changed while it was read; import it again when nobody writes it"
        )
    return Taken(source, before, target, sha256, seen.size, seen, how)


def copy(descriptor: int, source: Path, target: Path, work: Work) -> Taken:
    """Of an open file, whatever `source` names by now."""
    return _take(descriptor, source, target, "copy", work)


def _copy(descriptor: int, into: int, name: str, size: int, work: Work) -> Digest:
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(disk.CHUNK))
    done = 0
    while count := os.preadv(descriptor, [buffer], done):
        part = buffer[:count]
        hasher.update(part)
        written = 0
        while written < count:
            written += os.write(into, part[written:])
        done += count
        if done > size:
            break  # As in `hash_file`.
        work.told(f"copying {name}", done, size)
    return Digest(hasher.hexdigest())


def give_up_sources(taken: Sequence[Taken]) -> dict[Seen, Digest]:
    """After a move: the sources' names go, and what is known of the files is returned, since that
    changes their times. A source that somebody wrote to meanwhile stays, and what can't be removed
    does: the version is there already."""
    found: dict[Seen, Digest] = {}
    for one in taken:
        with contextlib.suppress(OSError, StoreError):
            descriptor = open_source(one.source)
            try:
                if Seen.of(descriptor) != one.origin:
                    continue
                one.source.unlink()
                if one.how == "link":
                    os.fchmod(descriptor, disk.FILE_MODE)
                    found[Seen.of(descriptor)] = one.sha256
            finally:
                os.close(descriptor)
    return found

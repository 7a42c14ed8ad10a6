"""Writes that survive a power cut, and words for a disk that does not take them. A rename is on the
disk only when its folder is synced."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_CURES = {
    errno.ENOSPC: "free some space (hxctl model rm NAME@VERSION, or see what df shows)",
    errno.EDQUOT: "the disk quota is used up; raise it or remove versions (hxctl model rm)",
    errno.EFBIG: "the file is larger than a limit allows (LimitFSIZE of the unit, ulimit -f)",
    errno.ENOTDIR: "a file stands where a folder has to be; name another place",
    errno.EROFS: "the file system is mounted read-only, often after a fault; see dmesg",
    errno.EIO: "the disk fails; see dmesg, then run hxctl model doctor --backup FOLDER",
    errno.EACCES: "the daemon's user may not; hxctl model doctor may help, or chown to that user",
    errno.EPERM: "the daemon's user may not; hxctl model doctor may help, or chown to that user",
}


def refusal(error: OSError, where: Path | None = None, otherwise: str = "see dmesg") -> str:
    """What the disk refuses, at `where` if the error does not say, and what mends it: `otherwise`
    for what has no cure of its own. It follows "can't do something: "."""
    place = error.filename or where
    cure = _CURES.get(error.errno or 0, otherwise)
    named = f" ({place})" if place else ""
    return f"{error.strerror or error}{named}. {cure[0].upper()}{cure[1:]}"


def create(file: Path, data: bytes) -> None:
    """A new file for its owner only, synced; its folder is not. Raises `FileExistsError` rather
    than touch one that is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(file, flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def part_of(file: Path) -> Path:
    """What a crash in the middle of `replace` may leave, until the next one."""
    return file.with_name(f".{file.name}.part")


def sweep(folder: Path) -> None:
    """Removes what crashes in the middle of `replace` have left in a folder of hxd's own. Nobody
    may be writing there."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def replace(file: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = part_of(file)
    part.unlink(missing_ok=True)
    try:
        create(part, data)
        part.rename(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """A folder whose entries have changed, or a file whose attributes have."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writes that survive a power cut, and words for a disk that does not take them.

Knows nothing of models. A file is written beside its place, synced and renamed; a folder is synced
after its entries changed, since a rename is only on the disk when its folder is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hxd.config import durable
from hxd.daemon.store.faults import StoreBroken

CHUNK = 1 << 20
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# Kept free when files are copied in: labels, manifests and the audit log need room as well. Of a
# small file system a twentieth.
RESERVE = 64 << 20
RESERVED_PART = 20

_HINTS = {
    errno.ENOSPC: "free some space (hxctl model rm NAME@VERSION, or see what df shows)",
    errno.EDQUOT: "the disk quota is used up; raise it or remove versions (hxctl model rm)",
    errno.EFBIG: "the file is larger than a limit allows (LimitFSIZE of the unit, ulimit -f)",
    errno.EROFS: "the file system is mounted read-only, often after a fault; see dmesg",
    errno.EIO: "the disk fails; see dmesg, then run hxctl model doctor --backup FOLDER",
    errno.EACCES: "the daemon's user may not; hxctl model doctor may help, or chown to that user",
    errno.EPERM: "the daemon's user may not; hxctl model doctor may help, or chown to that user",
}


@contextlib.contextmanager
def guarded(doing: str) -> Iterator[None]:
    """What the disk refuses becomes `StoreBroken`; `doing` follows "can't"."""
    try:
        yield
    except OSError as error:
        raise broken(doing, error) from error


def broken(doing: str, error: OSError) -> StoreBroken:
    hint = _HINTS.get(error.errno or 0, "run hxctl model doctor")
    where = f" ({error.filename})" if error.filename else ""
    return StoreBroken(
        f"can't {doing}: {error.strerror or error}{where}. {hint[0].upper()}{hint[1:]}"
    )


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """With its parents, for the owner only. One that is there stays as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(FOLDER_MODE)
        # Another thread may have narrowed the umask just now, for a socket's sake.
        folder.chmod(FOLDER_MODE)
        sync_folder(folder.parent)


def create(file: Path) -> int:
    """A new file to write; raises `FileExistsError` rather than touch one that is there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, FILE_MODE)


def write_new(file: Path, data: bytes) -> None:
    """A new file, synced; its folder is not."""
    durable.create(file, data)


def write_atomic(file: Path, data: bytes, beside: Path) -> None:
    """Whole or not at all: written in the folder `beside` on the same file system, then renamed."""
    part = beside / f"write-{secrets.token_hex(8)}"
    try:
        write_new(part, data)
        part.rename(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def move(source: Path, target: Path) -> None:
    """A rename that is on the disk when it returns. `target` must not be there."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def delete(path: Path) -> None:
    """A file, a symbolic link or a whole folder; nothing there is as good."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reserve(folder: Path, most: int = RESERVE) -> int:
    """Bytes of the folder's file system that models may not use."""
    there = os.statvfs(folder)
    return min(most, there.f_blocks * there.f_frsize // RESERVED_PART)


def check_room(folder: Path, wanted: int, doing: str) -> None:
    """Raises `StoreBroken` unless `wanted` bytes fit, with a reserve left."""
    there = os.statvfs(folder)
    free = there.f_bavail * there.f_frsize
    kept = reserve(folder)
    if wanted and wanted + kept > free:
        raise StoreBroken(
            f"can't {doing}: {wanted >> 20} MiB and a reserve of {kept >> 20} MiB are needed, "
            f"{free >> 20} MiB are free in {folder}. Free some space (hxctl model rm NAME@VERSION)"
        )

"""The store's writes, which survive a power cut as those of `durable` do, and its room.

Knows nothing of models. A file is written beside its place, synced and renamed; a folder is synced
after its entries changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hxd.config import durable
from hxd.daemon.store.faults import BadName, StoreBroken
from hxd.daemon.store.reference import shown

CHUNK = 1 << 20
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# Kept free when files are copied in: labels, manifests and the audit log need room as well. Of a
# small file system a twentieth.
RESERVE = 64 << 20
RESERVED_PART = 20


@contextlib.contextmanager
def guarded(doing: str) -> Iterator[None]:
    """What the disk refuses becomes `StoreBroken`; `doing` follows "can't"."""
    try:
        yield
    except OSError as error:
        raise broken(doing, error) from error


def broken(doing: str, error: OSError) -> StoreBroken:
    said = durable.refusal(error, otherwise="run hxctl model doctor")
    return StoreBroken(f"can't {doing}: {said}")


def expanded(text: str) -> Path:
    """With the home folder in place of `~`; of a user that there is not, as it stands."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def resolved(path: Path) -> Path:
    """Every link in it followed, whether or not it is there; raises `BadName`."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadName(f"{shown(str(path))} leads nowhere: {error}", param="path") from None


def make_folder(folder: Path) -> None:
    """With its parents, for the owner only. One that is there stays as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(FOLDER_MODE)
        # Another thread may have narrowed the umask just now, for a socket's sake.
        folder.chmod(FOLDER_MODE)
        durable.sync(folder.parent)


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
    durable.sync(file.parent)


def move(source: Path, target: Path) -> None:
    """A rename that is on the disk when it returns. `target` must not be there."""
    source.rename(target)
    durable.sync(target.parent)
    if source.parent != target.parent:
        durable.sync(source.parent)


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

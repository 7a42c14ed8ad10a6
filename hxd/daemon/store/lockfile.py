"""One process at a time writes to a folder; the kernel forgets the lock when that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hxd.daemon.store import disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict

FILE = "lock"


@contextlib.contextmanager
def locked(folder: Path, instead: str) -> Iterator[None]:
    """Raises `Conflict` naming the process that holds it, and what to do `instead`."""
    with guarded(f"lock {folder}"):
        disk.make_folder(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(folder / FILE, flags, disk.FILE_MODE)
    try:
        with guarded(f"lock {folder}"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip("\0\n ")
                raise Conflict(
                    f"{folder} is in use by process {owner or 'unknown'}; {instead}"
                ) from None
            # Only a help to whoever is refused: a full disk keeps nobody from the lock itself.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)

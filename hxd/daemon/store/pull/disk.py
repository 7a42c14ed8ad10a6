"""The disk that a pull writes to, and what its errors mean. Blocks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from hxd.daemon.store.faults import StoreBroken

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Disk:
    """As it is; tests pass one that fails."""

    def room(self, folder: Path) -> int:
        """Bytes that can still be written there, without what is kept for root."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def write(self, descriptor: int, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written


@contextlib.contextmanager
def trouble(folder: Path) -> Iterator[None]:
    """Turns a failure of the disk into an answer for the operator."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreBroken(
                f"no space left in {folder}; what arrived is kept: make room and pull again"
            ) from error
        raise StoreBroken(f"{folder}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_text(size: int) -> str:
    """`1.5 GB`, for a sentence."""
    number = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        number /= 1000
    return f"{number:.3g} TB"

"""Writes that survive a power cut. A rename is on the disk only when its folder is synced."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def create(file: Path, data: bytes) -> None:
    """A new file for its owner only, synced; its folder is not. Raises `FileExistsError` rather
    than touch one that is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(file, flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace(file: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.part")
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
    """A folder, or a file whose attributes have changed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

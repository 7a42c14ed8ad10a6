"""A disk that gives nothing of some files but their names and sizes."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

import pytest


def unreadable(monkeypatch: pytest.MonkeyPatch, files: Collection[Path]) -> None:
    bad = {file.stat().st_ino for file in files}
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(descriptor).st_ino in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)

"""What a pull writes to. Blocks."""

from __future__ import annotations

import os
from pathlib import Path


class Medium:
    """The disk as it is; tests pass one that fails."""

    def room(self, folder: Path) -> int:
        """Bytes that can still be written there, without what is kept for root."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def write(self, descriptor: int, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written


def size_text(size: int) -> str:
    """`1.5 GB`, for a sentence."""
    if size < 1000:
        return f"{size} bytes"
    number, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"

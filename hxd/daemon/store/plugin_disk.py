"""What is not finished yet in the plugin store, or not wanted any more."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from hxd.daemon.store import disk


class Staging:
    """A folder on the store's own file system. Nothing in it is ever read, and a start empties
    it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clear(self) -> None:
        disk.delete(self._folder)

    def _name(self) -> Path:
        disk.make_folder(self._folder)
        return self._folder / secrets.token_hex(8)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty folder; what is still there afterwards is deleted, now or by the next start."""
        folder = self._name()
        disk.make_folder(folder)
        try:
            yield folder
        finally:
            # A process that was killed just now may still end what it was doing there.
            with contextlib.suppress(OSError):
                disk.delete(folder)

    def replace(self, file: Path, data: bytes) -> None:
        """The file has these bytes afterwards, or is as it was."""
        disk.make_folder(self._folder)
        disk.write_atomic(file, data, self._folder)

    def discard(self, path: Path) -> None:
        """Gone at once for who looks, then deleted. What is not there is gone already."""
        away = self._name()
        with contextlib.suppress(FileNotFoundError):
            disk.move(path, away)
            disk.delete(away)

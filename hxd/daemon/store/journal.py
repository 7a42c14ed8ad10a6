"""What is left to do for a version that has its place, should the process end before its labels
are set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hxd.daemon.store import disk

FILE = "journal.json"


class Publication(msgspec.Struct, frozen=True):
    name: str
    version: int
    labels: tuple[str, ...]
    golden: bytes | None


class Journal:
    """At most one publication; the caller sees to it that no two threads are at it."""

    def __init__(self, file: Path, beside: Path) -> None:
        self._file = file
        self._beside = beside

    def begin(self, name: str, version: int, labels: Sequence[str], golden: bytes | None) -> None:
        # msgspec takes no subclasses of str.
        words = tuple(str(label) for label in labels)
        half = Publication(str(name), version, words, golden)
        disk.write_atomic(self._file, msgspec.json.encode(half), self._beside)

    def begun(self) -> Publication | None:
        """Nonsense counts as nothing: then a version lacks a label, and no more."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Publication)
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):
            return None

    def done(self) -> None:
        self._file.unlink(missing_ok=True)

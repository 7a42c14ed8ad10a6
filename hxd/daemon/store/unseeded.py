"""Which built-in versions an operator removed: these are not put in again, as damaged ones are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from hxd.daemon.store import disk

FILE = "removed.json"


class Unseeded:
    """Numbers of the demo model. The caller sees to it that no two threads change them."""

    def __init__(self, file: Path, beside: Path) -> None:
        self._file = file
        self._beside = beside

    def numbers(self) -> frozenset[int]:
        """Nonsense counts as nothing: then a version comes back, and can be removed again."""
        try:
            return frozenset(msgspec.json.decode(self._file.read_bytes(), type=list[int]))
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):
            return frozenset()

    def add(self, numbers: Iterable[int]) -> None:
        self._write(self.numbers() | set(numbers))

    def forget(self, numbers: Iterable[int]) -> None:
        self._write(self.numbers() - set(numbers))

    def _write(self, numbers: frozenset[int]) -> None:
        if numbers != self.numbers():
            disk.write_atomic(self._file, msgspec.json.encode(sorted(numbers)), self._beside)

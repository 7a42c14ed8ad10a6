"""Digests of files' contents, and which of them are known without reading the file again.

A digest is remembered by device, inode, size and both times of change: who writes to the file
changes one of them. Not seen: bits that rot on the disk; `hxctl model verify` recomputes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from hxd.daemon.store import disk
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.reference import Digest
from hxd.daemon.store.work import Work

MAX_REMEMBERED = 4096
MAX_BYTES = 4 << 20
# Kernels before 6.13 stamp files with the time of the last tick, up to 10 ms ago: two writes in one
# tick look the same. A younger file is not remembered.
_TICK = 0.02


class Seen(NamedTuple):
    """What changes when a file's content does; times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, descriptor: int) -> Seen:
        found = os.fstat(descriptor)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Digests:
    """Thread-safe. `file` is read at the first use, and only ever a help: nonsense in it is
    dropped."""

    def __init__(self, file: Path, beside: Path, wall: Callable[[], float]) -> None:
        self.file = file
        self._beside = beside
        self._wall = wall
        self._lock = threading.Lock()
        self._known: dict[Seen, Digest] | None = None
        self._hashing: dict[tuple[int, int], threading.Lock] = {}

    def of(self, descriptor: int, name: str, work: Work) -> Digest:
        """From memory where the file is the one remembered; raises `Corrupt` where it changes
        meanwhile. Two threads that ask for one file read it once."""
        seen = Seen.of(descriptor)
        if (found := self._recall(seen)) is not None:
            return found
        with self._lock:
            turn = self._hashing.setdefault(seen[:2], threading.Lock())
        with turn:
            found = self._recall(seen)
            return found if found is not None else self.recompute(descriptor, name, work)

    def recompute(self, descriptor: int, name: str, work: Work) -> Digest:
        """Read the whole file again, and remember what it is now."""
        started = self._wall()
        seen = Seen.of(descriptor)
        digest = hash_file(descriptor, name, work)
        if Seen.of(descriptor) != seen:
            raise Corrupt(f"{name} changed while it was read; try again when nobody writes it")
        self.remember({seen: digest}, started)
        return digest

    def remember(self, found: dict[Seen, Digest], now: float) -> None:
        """`now`: seconds since the epoch when the files began to be read."""
        with self._lock:
            known = self._load()
            for seen, digest in found.items():
                known.pop(seen, None)
                if abs(now - seen.changed / 1e9) > _TICK:
                    known[seen] = digest
            while len(known) > MAX_REMEMBERED:
                known.pop(next(iter(known)))
            self._save(known)

    def forget(self) -> None:
        """All of it; every file is read again at its next use."""
        with self._lock:
            self._known = {}
            self.file.unlink(missing_ok=True)

    def readable(self) -> bool:
        """False where the file is there and is nonsense."""
        try:
            self._read()
        except (msgspec.DecodeError, StoreError, RecursionError, OSError):
            return not self.file.exists()
        return True

    def _recall(self, seen: Seen) -> Digest | None:
        with self._lock:
            return self._load().get(seen)

    def _load(self) -> dict[Seen, Digest]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(msgspec.DecodeError, StoreError, RecursionError, OSError):
                self._known = self._read()
        return self._known

    def _read(self) -> dict[Seen, Digest]:
        descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            data = stream.read(MAX_BYTES)
        rows = msgspec.json.decode(data, type=list[tuple[int, int, int, int, int, str]])
        return {Seen(*row[:5]): Digest(row[5]) for row in rows[:MAX_REMEMBERED]}

    def _save(self, known: dict[Seen, Digest]) -> None:
        rows = [[*seen, str(digest)] for seen, digest in known.items()]
        # A disk that takes no more must not keep a model from loading: the file is only a help.
        with contextlib.suppress(OSError):
            disk.write_atomic(self.file, msgspec.json.encode(rows), self._beside)


def hash_file(descriptor: int, name: str, work: Work) -> Digest:
    """SHA-256 of the whole file, from its start."""
    hasher = hashlib.sha256()
    total = os.fstat(descriptor).st_size
    buffer = memoryview(bytearray(disk.CHUNK))
    done = 0
    while count := os.preadv(descriptor, [buffer], done):
        hasher.update(buffer[:count])
        done += count
        if done > total:
            break  # It grows as fast as it is read; whoever compares its times says so.
        work.told(f"checking {name}", done, total)
    return Digest(hasher.hexdigest())

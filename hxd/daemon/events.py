"""What happens to versions, plugins and the configuration, step by step: a line in the log, a place
in a bounded memory for whoever asks, and a line in a file that outlives the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from hxd.clock import Clock

log = logging.getLogger("hxd.events")

FILE = "events.jsonl"
MOST_KEPT = 1000
MOST_UNWRITTEN = 10_000
# One former file is kept, so the two never take more than twice this.
MOST_BYTES = 8 << 20


class Event(msgspec.Struct, frozen=True):
    """`kind` is a word such as `rollout`, `number` counts from the daemon's start, `at` is in Unix
    seconds."""

    number: int
    at: float
    kind: str
    subject: str
    step: str
    detail: dict[str, Any]


class Events:
    """`run` writes what was recorded and never ends by itself; `flush` writes the rest at the end.
    A disk that takes nothing costs the file its lines, and nobody else anything."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        self._clock = clock
        self._file = folder / FILE
        self._kept: deque[Event] = deque(maxlen=MOST_KEPT)
        self._unwritten: deque[Event] = deque()
        self._numbers = 0
        self._more = asyncio.Event()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.lost = 0
        self.listeners: list[Callable[[Event], None]] = []

    def record(self, kind: str, subject: str, step: str, **detail: Any) -> Event:
        self._numbers += 1
        event = Event(self._numbers, self._clock.wall(), kind, subject, step, detail)
        said = " ".join(f"{key}={value!r}" for key, value in detail.items())
        log.info("event=%s subject=%s step=%s %s", kind, subject, step, said[:1000])
        self._kept.append(event)
        self.counts[kind, step] += 1
        if len(self._unwritten) >= MOST_UNWRITTEN:
            self._unwritten.popleft()
            self.lost += 1
        self._unwritten.append(event)
        self._more.set()
        for listener in self.listeners:
            listener(event)
        return event

    def since(self, number: int = 0, subject: str | None = None) -> list[Event]:
        """Those after `number`, oldest first."""
        return [
            event
            for event in self._kept
            if event.number > number and subject in (None, event.subject)
        ]

    async def run(self) -> None:
        while True:
            await self._more.wait()
            await self.flush()

    async def flush(self) -> None:
        self._more.clear()
        batch = list(self._unwritten)
        self._unwritten.clear()
        if not batch:
            return
        try:
            await asyncio.to_thread(_append, self._file, batch)
        except OSError as error:
            self.lost += len(batch)
            log.error("%d events not written to %s: %s", len(batch), self._file, error.strerror)


def _append(file: Path, events: Iterable[Event]) -> None:
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    with contextlib.suppress(FileNotFoundError):
        if file.lstat().st_size + len(lines) > MOST_BYTES:
            file.replace(file.with_suffix(".old.jsonl"))
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(file, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # A daemon that was killed or a disk that was full has cut a line off; it must not take
            # the next one along.
            lines = b"\n" + lines
        while lines:
            lines = lines[os.write(descriptor, lines) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)

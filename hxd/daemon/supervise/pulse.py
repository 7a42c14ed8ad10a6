"""Whether a worker that serves is alive, suspect or dead, by its heartbeat and its progress. Pure.

A heartbeat thread proves nothing about a decode that hangs, and a decode that goes on proves
nothing about a reader that takes no requests; so both are watched. Times are seconds that the
daemon itself has lived through: what it could not see while it was starved is not held against a
worker.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

HEARTBEAT = 0.1  # between pings
HEARTBEAT_DEADLINE = 0.25  # DESIGN 6; from there on a worker is suspect
# A worker that is only starved answers sooner or later, and killing it would cost a load.
SILENCE = 5.0
# A debugger or a profiler stops a process for some milliseconds.
STOPPED = 0.1
# Longest step that is not a hang: so many times the longest one seen lately, but never less than
# what a page fault storm takes.
STEPS_LONGER = 20.0
LEAST_STALL = 5.0
# What is left of the longest step that is remembered, for each heartbeat that sees another one:
# half of it after some 140.
FORGET = 0.995
USUAL_AFTER = 20  # steps before what is usual is known


class Sign(enum.StrEnum):
    FINE = "fine"
    SUSPECT = "suspect"  # no heartbeat in time: its calls go elsewhere if they can
    STOPPED = "stopped"  # by a signal, and does not go on
    SILENT = "silent"  # no heartbeat for so long that nothing is to be hoped for
    HUNG = "hung"  # has sequences, and no step ends


DEAD = frozenset({Sign.STOPPED, Sign.SILENT, Sign.HUNG})


@dataclass
class Pulse:
    """One worker since it became ready. `stall_time` bounds a step before its usual length is
    known, and always."""

    stall_time: float
    _asked: float | None = None
    _stopped: float | None = None
    _moved: float | None = None
    _steps: int = -1
    _seen: int = 0
    _longest: float = 0.0

    def asked(self, now: float) -> None:
        """A ping went out; only the oldest without an answer matters."""
        if self._asked is None:
            self._asked = now

    @property
    def waits(self) -> bool:
        """Whether a ping is unanswered."""
        return self._asked is not None

    def answered(self, now: float, steps: int, held: int) -> None:
        """The pong: `steps` so far, and the sequences that the worker has to serve."""
        self._asked = None
        if steps != self._steps or not held:
            if self._moved is not None and steps != self._steps:
                self._seen += steps - self._steps
                self._longest = max(self._longest * FORGET, now - self._moved)
            self._steps = steps
            self._moved = now if held else None
        elif self._moved is None:
            self._moved = now

    def stopped(self, now: float, stopped: bool) -> None:
        """What the kernel says of the process."""
        if not stopped:
            self._stopped = None
        elif self._stopped is None:
            self._stopped = now

    @property
    def limit(self) -> float:
        """Seconds without a step after which the worker counts as hung."""
        if self._seen < USUAL_AFTER:
            return self.stall_time
        return min(self.stall_time, max(LEAST_STALL, STEPS_LONGER * self._longest))

    def stillness(self, now: float) -> float:
        """Seconds since the last step over the limit, 0 when there is nothing to do. Of a worker
        that is silent nothing is known since it was asked: a hang is its own doing, and being
        frozen or starved is not."""
        if self._moved is None:
            return 0.0
        seen = now
        if self._asked is not None and now - self._asked >= HEARTBEAT_DEADLINE:
            seen = self._asked
        return max(0.0, seen - self._moved) / self.limit

    def sign(self, now: float) -> Sign:
        if self._stopped is not None and now - self._stopped >= STOPPED:
            return Sign.STOPPED
        if self.stillness(now) > 1.0:
            return Sign.HUNG
        silent = 0.0 if self._asked is None else now - self._asked
        if silent >= SILENCE:
            return Sign.SILENT
        return Sign.SUSPECT if silent >= HEARTBEAT_DEADLINE else Sign.FINE

"""When to try again after a failure that may pass, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Callable

from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull.limits import Limits


class Again(Exception):
    """It failed in a way that may pass. `after` is the server's own advice, in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Tries:
    """Counts failures in a row; progress by anyone ends the row, so one connection that a server
    refuses does not end a pull that goes on over others."""

    def __init__(self, limits: Limits, chance: Callable[[], float] = random.random) -> None:
        self._limits = limits
        self._chance = chance
        self._count = 0
        self._progress = 0

    def failed(self, again: Again, progress: int) -> float:
        """Seconds to wait before the next try; raises `SourceFailed` when there is none.

        `progress` only ever grows. Full jitter, as in the AWS Architecture Blog's "Exponential
        Backoff And Jitter"; the server's advice is a lower bound, as far as it is reasonable.
        """
        limits = self._limits
        if progress > self._progress:
            self._count = 0
        self._progress = progress
        self._count += 1
        if self._count >= limits.tries:
            raise SourceFailed(f"{again}; {self._count} tries in a row brought nothing")
        jitter = self._chance() * limits.backoff * 2.0 ** (self._count - 1)
        return min(limits.longest_wait, max(0.0, again.after or 0.0) + jitter)

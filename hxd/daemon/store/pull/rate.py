"""How fast something goes and how long it still takes, from what is done at which time."""

from __future__ import annotations

import math


class Rate:
    """An average in which a second counts less the longer ago it is: by 1/e after `over` seconds.
    Divided by the sum of the weights, so that the first numbers are right too."""

    def __init__(self, over: float = 10.0) -> None:
        self._over = over
        self._last: tuple[float, int] | None = None
        self._sum = 0.0
        self._weight = 0.0

    def saw(self, now: float, done: int) -> None:
        """`done` bytes at `now`, monotonic seconds. Less than before: it began anew."""
        if self._last is None or done < self._last[1]:
            self._last, self._sum, self._weight = (now, done), 0.0, 0.0
            return
        passed = now - self._last[0]
        if passed <= 0:
            return
        keep = math.exp(-passed / self._over)
        self._sum = self._sum * keep + (done - self._last[1]) / passed * (1 - keep)
        self._weight = self._weight * keep + 1 - keep
        self._last = (now, done)

    @property
    def speed(self) -> float | None:
        """Bytes per second; None before there are two samples."""
        return self._sum / self._weight if self._weight else None

    def left(self, total: int) -> float | None:
        """Seconds until `total`; None where that can't be said."""
        speed = self.speed
        if self._last is None or not speed or total <= 0:
            return None
        return max(0, total - self._last[1]) / speed

"""When memory that grows without a break will be full. Pure.

`drift.Leak` wants minutes of evidence, and is right to where nothing hurries. A worker that will
hit its limit within half a minute can't wait for that; here it is enough that it has grown at every
look for some seconds.
"""

from __future__ import annotations

import math
from collections import deque

LOOKS = 8  # about a second apart
# Less than this over all the looks is the ordinary life of a heap.
LEAST_GROWTH = 8 * 2**20


class Trend:
    """The last `LOOKS` sizes of one worker's private memory."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=LOOKS)

    def feed(self, private_bytes: int, now: float) -> None:
        """What is not later than the look before is ignored; a fall begins anew."""
        if self._seen and not now > self._seen[-1][0]:
            return
        if self._seen and private_bytes <= self._seen[-1][1]:
            self._seen.clear()
        if math.isfinite(now) and private_bytes > 0:
            self._seen.append((now, private_bytes))

    def full_in(self, limit: float) -> float | None:
        """Seconds until `limit` bytes at the pace of the last looks; None while it does not grow
        at every one of them."""
        if len(self._seen) < LOOKS:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        if last - first < LEAST_GROWTH:
            return None
        return max(0.0, (limit - last) / ((last - first) / (now - began)))

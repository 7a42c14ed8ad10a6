"""How many tokens of a prompt one step reads, so that a cancel is heard soon. Pure."""

from __future__ import annotations

# A step may last so long (s): cancels and new sequences wait for it.
LONGEST = 0.3
_FIRST = 8
_WEIGHT = 0.3


class Pace:
    """`limit`: tokens in one step at most. Learns from the steps' durations."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.step_seconds = 0.0
        self._cost: float | None = None

    @property
    def chunk(self) -> int:
        if self._cost is None:
            return min(_FIRST, self.limit)
        return max(1, min(self.limit, int(LONGEST / self._cost)))

    def observe(self, tokens: int, seconds: float) -> None:
        self.step_seconds = _blend(self.step_seconds or None, seconds)
        self._cost = _blend(self._cost, max(seconds, 1e-6) / tokens)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)

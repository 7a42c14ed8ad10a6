"""A smoothed value that forgets by time, however often samples come. Pure."""

from __future__ import annotations

import math


class Ewma:
    """Exponentially weighted moving average (Roberts, "Control chart tests based on geometric
    moving averages", Technometrics 1, 1959) with a weight that follows from the time between
    samples: after `half_life` seconds what was known before counts half.

    `value` is None until the first sample.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self.value: float | None = None
        self._at = -math.inf

    def update(self, value: float, now: float) -> float:
        """Take `value` as what has held since the last sample, and give the smoothed value.

        A sample that is not finite, or not later than the one before it, is ignored. Without any
        sample that counts the answer is 0.
        """
        if -math.inf < value < math.inf and self._at < now < math.inf:
            if self.value is None:
                self.value = value
            else:
                kept = 0.5 ** ((now - self._at) / self.half_life)
                self.value = kept * self.value + (1.0 - kept) * value
            self._at = now
        return 0.0 if self.value is None else self.value

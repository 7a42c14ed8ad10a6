"""When a dead worker may start again: at once after the first death, then with growing pauses; and
whether it dies so often that starting it again is no answer.

Counts process deaths and nothing else; outcomes of requests are the breaker's business. Pure.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# One death is forgiven for each such stretch of healthy time.
FORGIVEN_AFTER = 60.0
# So many deaths within so many seconds are a crash loop. The pauses before the fifth come to 3.5 s
# at most, so it takes lives of 14 s or less on average; a worker that loads for longer before it
# dies is held back by the pauses alone.
CRASHES = 5
CRASH_WINDOW = 60.0


@dataclass
class Restart:
    """Deaths of one replica: how many are not forgiven yet, and when the last ones were."""

    deaths: int = 0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES))

    def died(self, now: float, healthy: float, random: random.Random) -> float:
        """Seconds to wait before the next start; `healthy` is how long the replica was ready.

        Full jitter (a uniform draw below the bound), so that replicas that died together don't
        come back together.
        """
        self._last.append(now)
        self.deaths = max(0, self.deaths - int(healthy // FORGIVEN_AFTER)) + 1
        if self.deaths == 1:
            return 0.0
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.deaths - 2, 16))
        return random.uniform(0, bound)

    def crash_loop(self, now: float, ready_since: float | None = None) -> bool:
        """Whether the last `CRASHES` deaths lie within `CRASH_WINDOW` seconds of one another, and
        nothing has spoken for the replica since.

        Only `FORGIVEN_AFTER` seconds of being ready do that: `ready_since` is when it became ready,
        None while it is not. Waiting and loading prove nothing, however long. A death after such a
        stretch needs no care: the deaths before it are then too far back.
        """
        if len(self._last) < CRASHES or self._last[-1] - self._last[0] > CRASH_WINDOW:
            return False
        return ready_since is None or now - ready_since < FORGIVEN_AFTER

"""When a dead worker may start again: at once after the first death, then with growing pauses.

Counts process deaths and nothing else; outcomes of requests are the breaker's business. Pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# One death is forgiven for each such stretch of healthy time.
FORGIVEN_AFTER = 60.0


@dataclass
class Restart:
    """Deaths of one replica that are not forgiven yet."""

    deaths: int = 0

    def died(self, healthy: float, random: random.Random) -> float:
        """Seconds to wait before the next start; `healthy` is how long the replica was ready.

        Full jitter (a uniform draw below the bound), so that replicas that died together don't
        come back together.
        """
        self.deaths = max(0, self.deaths - int(healthy // FORGIVEN_AFTER)) + 1
        if self.deaths == 1:
            return 0.0
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.deaths - 2, 16))
        return random.uniform(0, bound)

"""When a request is tried again, and after which pause. Pure.

Only before anything of an answer has been handed on, only for what another try may mend, and only
as often as the budget of the worker allows: a server in trouble must not get a multiple of the
load that troubled it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SHARE = 0.2  # of the requests in flight may be second tries
LEAST = 3  # that are always allowed
BASE = 0.25  # seconds; the first pause is between 0 and this
LONGEST = 2.0  # seconds; a server that asks for a longer pause is not tried again


@dataclass
class Budget:
    """`active`: requests in flight, whichever try they are at. `retrying`: of these, how many are
    at a second try or beyond, their pause included."""

    active: int = 0
    retrying: int = 0

    def take(self) -> bool:
        """A permit for the further tries of one request, which `give` returns."""
        if self.retrying >= max(LEAST, int(self.active * SHARE)):
            return False
        self.retrying += 1
        return True

    def give(self) -> None:
        self.retrying -= 1


def pause(attempt: int, asked: float | None, rng: random.Random) -> float | None:
    """Seconds before the try after the `attempt`-th (from 0), None when it is not worth waiting.
    `asked`: the server's Retry-After. Full jitter, as in "Exponential Backoff And Jitter" (AWS
    Architecture Blog, 2015)."""
    if asked is not None and asked > LONGEST:
        return None
    jitter = rng.uniform(0.0, min(LONGEST, BASE * 2**attempt))
    return jitter + (asked or 0.0)

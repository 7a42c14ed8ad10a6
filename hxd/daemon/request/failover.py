"""What becomes of a sequence that has lost its worker or was failed by it. Pure.

A death that was done from outside costs the sequence nothing: it goes on elsewhere, as often as it
takes. A worker that ended by itself may have been ended by one of its sequences; so each of those
gets one more try, in a worker of its own and never in the last one that lives, and who is there at
a second such death is stopped. Without that, failover would carry one hostile request through
every replica.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from hxd.daemon.supervise.link import Loss

# In flight at so many deaths that nothing outside explains: DESIGN 6, "poison".
FATAL_CRASHES = 2
# Losses from outside without a single token in between; a bound, and far beyond bad luck.
FRUITLESS_MOVES = 16
# A live worker that fails a request may have a reason that lies in the request.
TRIES = 3
# A share of what runs may be tried again at a time, so that retries can't storm.
BUDGET_SHARE = 0.2
BUDGET_LEAST = 3
PAUSE = 0.05  # seconds, doubled with each try, before which a uniform draw decides
# Tokens that a suspect must have gained in a worker of its own before others may join it: the first
# is the one that it did not get before, and the second shows that the step after it goes well too.
PROBATION = 2


class Next(enum.Enum):
    """What to do with the sequence."""

    ELSEWHERE = enum.auto()  # at once, on any replica
    ALONE = enum.auto()  # on a replica of its own
    LATER = enum.auto()  # after a pause, if the budget has room
    GIVE_UP = enum.auto()
    POISON = enum.auto()  # give up, and refuse the like for a while


@dataclass
class Trail:
    """What has befallen one sequence so far."""

    crashes: int = 0
    moves: int = 0
    failures: int = 0

    def gained(self) -> None:
        """It got on since."""
        self.moves = 0

    def lost(self, loss: Loss, *, companions: int) -> Next:
        """Its worker is gone, or wants it gone. `companions`: how many other replicas the model
        has, up or on their way."""
        if loss is not Loss.CRASHED:
            self.moves += 1
            return Next.ELSEWHERE if self.moves <= FRUITLESS_MOVES else Next.GIVE_UP
        self.crashes += 1
        if self.crashes >= FATAL_CRASHES:
            return Next.POISON
        return Next.ALONE if companions else Next.GIVE_UP

    def failed(self) -> Next:
        """A worker that lives could not serve it."""
        self.failures += 1
        return Next.LATER if self.failures < TRIES else Next.GIVE_UP

    def pause(self, draw: float) -> float:
        """Seconds to wait before the next try, by full jitter; `draw` is uniform in 0..1."""
        return draw * PAUSE * 2.0 ** max(0, self.failures - 1)


class RetryBudget:
    """Bounds the tries again of one model that are under way. `active` is how much runs now.
    Continuing after a death is no retry."""

    def __init__(self, active: Callable[[], int]) -> None:
        self._active = active
        self.taken = 0

    def take(self) -> bool:
        if self.taken >= max(BUDGET_LEAST, int(BUDGET_SHARE * self._active())):
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        self.taken -= 1

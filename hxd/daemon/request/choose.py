"""Which replica takes the next sequence, by policy. Pure, but for what a policy recalls of its
choices; knows nothing of why a replica weighs what it does.

`pack`, for replicas that share a device: they share its memory bandwidth, and there one full batch
beats two half ones; so one is filled before the next is used, which stays a warm standby. The other
policies spread sequences over replicas that have devices of their own.

Weights steer and never make a sequence wait: a replica of weight 0 is taken when no other has room.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# A replica without room may be left out for a while; one left out of so many choices is forgotten,
# and at the latest one left out of twice as many.
KEPT_FOR = 1000


@dataclass(frozen=True)
class Candidate:
    """A replica as a policy sees it.

    `busy` sequences run on it and `room` more can. `weight`, 0 to 1, is how much of its traffic it
    should take now, as its health and recovery allow; `score`, 0 to 1, is its health; `share` the
    operator's own weight. `latency` is in seconds per token, None where nothing is known yet.
    """

    id: str
    busy: int
    room: int
    weight: float
    score: float
    share: float = 1.0
    latency: float | None = None


class Policy(ABC):
    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """One of those with room; None when there is none."""
        roomy = [candidate for candidate in candidates if candidate.room > 0]
        open_to = [candidate for candidate in roomy if candidate.weight > 0] or roomy
        return self._pick(open_to, candidates) if open_to else None

    @abstractmethod
    def _pick(self, open_to: Sequence[Candidate], offered: Sequence[Candidate]) -> Candidate:
        """One of `open_to`: at least one, with room, and weights all above 0 or all 0."""


class Pack(Policy):
    """The busiest of the heaviest, the earlier one when equal.

    A weight below 1 opens that part of a replica's slots; the rest only when all others are used.
    """

    def _pick(self, open_to: Sequence[Candidate], offered: Sequence[Candidate]) -> Candidate:
        return max(open_to, key=lambda one: (one.busy < self._slots(one), one.weight, one.busy))

    @staticmethod
    def _slots(candidate: Candidate) -> int:
        # 0.07 * 100 is a little more than 7, and shall not open an eighth.
        return math.ceil(candidate.weight * (candidate.busy + candidate.room) - 1e-9)


class Recent:
    """A number for each replica that was offered lately, 0 at first."""

    def __init__(self) -> None:
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._left = KEPT_FOR

    def turn(self, offered: Sequence[Candidate]) -> None:
        """Count a choice among `offered`."""
        if self._left == 0:
            self._old, self._young, self._left = self._young, {}, KEPT_FOR
        self._left -= 1
        for candidate in offered:
            if candidate.id not in self._young:
                self._young[candidate.id] = self._old.pop(candidate.id, 0.0)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __getitem__(self, candidate: Candidate) -> float:
        return self._young[candidate.id]

    def __setitem__(self, candidate: Candidate, number: float) -> None:
        self._young[candidate.id] = number


class InTurn(Policy):
    """Smooth weighted round robin, as nginx has it, among those with room.

    Each is owed its part of a choice, and the chosen one pays for all: so the choices of a heavy
    replica are spread evenly among those of the others.
    """

    def __init__(self, weigh: Callable[[Candidate], float]) -> None:
        self._weigh = weigh
        self._owed = Recent()

    def _pick(self, open_to: Sequence[Candidate], offered: Sequence[Candidate]) -> Candidate:
        self._owed.turn(offered)
        weights = [(one, weight) for one in open_to if (weight := self._weigh(one)) > 0]
        # Where nothing weighs anything, all are equal.
        weights = weights or [(one, 1.0) for one in open_to]
        for one, weight in weights:
            self._owed[one] += weight
        chosen = max((one for one, _ in weights), key=self._owed.__getitem__)
        self._owed[chosen] -= sum(weight for _, weight in weights)
        return chosen


class LeastBusy(Policy):
    """The one with the fewest sequences for its weight; the one owed most when equal.

    By numbers of sequences alone, a light replica would take as much of little traffic as a full
    one, or nothing, since a sequence can't be divided. So each is owed its part of every choice,
    and what it is owed counts as room. That is less than a whole sequence, so among replicas of
    equal weight it only breaks ties.
    """

    def __init__(self) -> None:
        self._owed = Recent()

    def _pick(self, open_to: Sequence[Candidate], offered: Sequence[Candidate]) -> Candidate:
        self._owed.turn(offered)
        weights = {one.id: one.weight or 1.0 for one in open_to}
        total = sum(weights.values())
        for one in open_to:
            # Bounded, for a slow replica is owed ever more, and shall not be paid all of it later.
            self._owed[one] = min(total, self._owed[one] + weights[one.id])

        def load(one: Candidate) -> tuple[float, float]:
            owed = self._owed[one]
            room = min(max(0.0, owed / total), 1 - 1e-9)
            return (one.busy + 1 - room) / weights[one.id], -owed

        chosen = min(open_to, key=load)
        self._owed[chosen] = max(-total, self._owed[chosen] - total)
        return chosen


class Fastest(Policy):
    """The quicker of two drawn at random, by latency times the sequences it would then run.

    Two random choices come close to the best one, and the crowd doesn't run to one replica on an
    old number: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001). One of
    unknown latency is taken to be as quick as any, so that it is tried.

    A weight says how often a replica is drawn from at all, and wins a tie when it is. As a factor
    of the cost it would keep a light replica from all traffic until the others are full.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _pick(self, open_to: Sequence[Candidate], offered: Sequence[Candidate]) -> Candidate:
        known = [one.latency for one in open_to if one.latency is not None]
        quickest = min(known, default=1.0)
        heaviest = max(one.weight for one in open_to)

        def cost(one: Candidate) -> tuple[float, float]:
            latency = quickest if one.latency is None else one.latency
            return latency * (one.busy + 1), one.weight

        drawn = [one for one in open_to if self._rng.random() * heaviest <= one.weight]
        return min(self._rng.sample(drawn, min(2, len(drawn))), key=cost)


POLICIES: Mapping[str, Callable[[random.Random], Policy]] = {
    "pack": lambda _: Pack(),
    "round_robin": lambda _: InTurn(lambda one: one.weight),
    "weighted": lambda _: InTurn(lambda one: one.weight * one.share),
    "least_busy": lambda _: LeastBusy(),
    "health_weighted": lambda _: InTurn(lambda one: one.weight * one.score),
    "fastest": Fastest,
}


def make(name: str, rng: random.Random) -> Policy:
    """The policy of that name, which is one of `POLICIES`; for one model, as it recalls choices."""
    return POLICIES[name](rng)

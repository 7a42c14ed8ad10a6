"""How well a replica does, as one number made of visible parts, and how much traffic that earns.

Knows nothing of requests, processes or time; whoever measures fills in `Signs`. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Requests that went well, added to those that were seen: the least number that the breaker judges
# by. One failure of one request is then 1 in 21.
ASSUMED_REQUESTS = 20
# Share of failures at which nothing is left: 10 %, the breaker's threshold, leaves 0.6.
HOPELESS_RATE = 0.25
# Up to here a step is as slow as usual: contexts grow, clocks and neighbours change.
USUAL_SLOWDOWN = 1.25
LOST_PER_DOUBLING = 0.2
LOST_PER_FULL_QUEUE = 0.2
# A queue alone never stops the traffic: it is no fault of the worker's, and it passes.
LEAST_FOR_QUEUE = 0.6
LOST_TO_LEAK = 0.35
# The part of the limit of standing still that is no news: one long prompt does that.
PATIENCE = 0.5

# (score at least, share of the usual traffic)
WEIGHTS = ((0.9, 1.0), (0.8, 0.7), (0.7, 0.4), (0.6, 0.1))

RAMP_STEP = 5.0
# What a replica that comes back takes in each step of being ready, and 1.0 after them.
RAMP = (0.1, 0.3)

_MANY = 1e9


@dataclass(frozen=True)
class Signs:
    """What is known of a replica. `failures` and `requests` are of the last minute; `slowdown` is
    the smoothed step time over the worker's own baseline for that batch size, None if unknown;
    `memory_growth` is 0 for none to 1 for a leak alarm; `still` is the time since the last decode
    step while sequences run, over the limit at which the worker counts as hung."""

    failures: int = 0
    requests: int = 0
    slowdown: float | None = None
    queued: int = 0
    slots: int = 1
    memory_growth: float = 0.0
    still: float = 0.0


@dataclass(frozen=True)
class Health:
    """`score` is the product of the parts. Each is 0 to 1, and 1 is best."""

    score: float
    errors: float
    latency: float
    queue: float
    memory: float
    progress: float


def assess(signs: Signs) -> Health:
    """The parts, and their product.

    - errors: falls from 1 to 0 as the share of failures goes from none to a quarter, with
      `ASSUMED_REQUESTS` that went well among the requests, so that few of them weigh less.
    - latency: 1 up to 1.25 times the usual step, 0.8 at twice, and 0.2 less per further doubling.
    - queue: 0.2 less when as many wait as have a slot; 0.6 at worst.
    - memory: falls to 0.65 as the leak alarm comes nearer.
    - progress: 1 for half of the time after which the worker counts as hung, then falls to 0.

    They are multiplied, since one bad part is enough: a worker that is quick, has no queue and
    fails every request must get none, and an average would give it most of its share. Two middling
    parts weigh more than one for the same reason.

    Signs come from workers, which may say anything. What is not a number is no news, and what is
    beyond its range is taken as the nearest end of it. A worker gains nothing by that which a
    plausible lie would not give it too; what the daemon counts itself doesn't depend on it.
    """
    errors = _errors(signs.failures, signs.requests)
    latency = 1.0 if signs.slowdown is None else _latency(signs.slowdown)
    queue = _queue(signs.queued, signs.slots)
    memory = 1.0 - LOST_TO_LEAK * _within(signs.memory_growth, 1.0)
    progress = min(1.0, (1.0 - _within(signs.still, 1.0)) / (1.0 - PATIENCE))
    score = errors * latency * queue * memory * progress
    return Health(score, errors, latency, queue, memory, progress)


def weight(score: float) -> float:
    """Share of its usual traffic that a replica with this score gets."""
    return next((share for least, share in WEIGHTS if score >= least), 0.0)


def ramp(ready_for: float) -> float:
    """Share of its weight that a replica takes after so many seconds of being ready.

    A worker that comes back has cold caches, and may die of the first thing that it is given.
    """
    for step, share in enumerate(RAMP, start=1):
        if not ready_for >= step * RAMP_STEP:
            return share
    return 1.0


def _errors(failures: float, requests: float) -> float:
    failed = _within(failures, _MANY)
    seen = max(failed, _within(requests, _MANY))
    return max(0.0, 1.0 - failed / (seen + ASSUMED_REQUESTS) / HOPELESS_RATE)


def _latency(slowdown: float) -> float:
    times = _within(slowdown, _MANY)
    if times <= USUAL_SLOWDOWN:
        return 1.0
    # In doublings; the first one is lost between the usual slowdown and 2, the others one by one.
    doublings = math.log2(times)
    if times < 2.0:
        usual = math.log2(USUAL_SLOWDOWN)
        doublings = (doublings - usual) / (1.0 - usual)
    return max(0.0, 1.0 - LOST_PER_DOUBLING * doublings)


def _queue(queued: float, slots: float) -> float:
    waiting = _within(queued, _MANY) / max(1.0, _within(slots, _MANY))
    return max(LEAST_FOR_QUEUE, 1.0 - LOST_PER_FULL_QUEUE * waiting)


def _within(value: float, top: float) -> float:
    """`value` between 0 and `top`; 0 for what is not a number. Takes integers of any size."""
    if value != value:
        return 0.0
    return float(min(max(value, 0.0), top))

"""Whether one replica may take requests, judged by how its requests ended. Pure.

```
CLOSED ── errors, streak ──► OPEN ── isolation is over ──► HALF_OPEN ── successes ──► CLOSED
                              ▲                                │
                              └── probe failed, undecided ─────┘        death: from any to OPEN
```

Counts outcomes of requests; of processes it knows only what `died` tells it. What says nothing
about the replica is not reported at all: faults of the caller, cancelled requests, full queues.

Time is in seconds of a monotonic clock and is passed in. What time alone changes is reckoned from
when it was due and not from when somebody asked, so asking late or seldom changes no answer.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class State(enum.StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Cause(enum.StrEnum):
    """Why a breaker opened."""

    DEATH = "death"
    ERRORS = "errors"
    STREAK = "streak"
    PROBE = "probe"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class BreakerNumbers:
    """When a breaker opens, for how long, and what closes it; times in seconds."""

    window: int = 60
    # Opens when a larger part than this of the window failed, judged at each outcome, and the
    # window has enough requests for that to mean something.
    threshold: float = 0.10
    least_requests: int = 20
    # Opens on more failures in a row than this.
    streak: int = 3
    # Isolated for `isolation` times the trips in a row, of which healthy time forgives some.
    isolation: float = 30.0
    longest_isolation: float = 300.0
    forgiven_after: float = 60.0
    # Probes: a share of the model's demand; of little demand that is nothing, hence synthetic ones.
    share: float = 0.01
    synthetic_every: float = 5.0
    lease: float = 30.0
    successes: int = 5
    # Counted from the latest success: five answers in turn of a replica that is well but slow may
    # take longer.
    verdict_within: float = 60.0


DEFAULTS = BreakerNumbers()


class Window:
    """Outcomes of the last `seconds`, the current one included, in buckets of one second."""

    def __init__(self, seconds: int) -> None:
        self._failures = [0] * seconds
        self._totals = [0] * seconds
        self.clear()

    def clear(self) -> None:
        self._failures[:] = self._totals[:] = [0] * len(self._totals)
        self.failures = self.total = 0
        self._second = 0

    def slide(self, now: float) -> None:
        second = math.floor(now)
        size = len(self._totals)
        for past in range(max(self._second, second - size) + 1, second + 1):
            at = past % size
            self.failures -= self._failures[at]
            self.total -= self._totals[at]
            self._failures[at] = self._totals[at] = 0
        self._second = max(self._second, second)

    def add(self, ok: bool, now: float) -> None:
        self.slide(now)
        at = self._second % len(self._totals)
        self._totals[at] += 1
        self._failures[at] += not ok
        self.total += 1
        self.failures += not ok


class Probe:
    """Leave to try one request on a half-open replica, until `deadline`.

    The first of its three methods counts, and only in time: after the deadline, or after the
    breaker changed its state, the probe is lost and none of them has an effect.
    """

    def __init__(self, breaker: Breaker, deadline: float) -> None:
        self._breaker = breaker
        self.deadline = deadline

    def succeeded(self, now: float) -> None:
        self._breaker._tried(self, True, now)

    def failed(self, now: float) -> None:
        self._breaker._tried(self, False, now)

    def given_back(self) -> None:
        """It was cancelled: no verdict, and the permit is free again."""
        self._breaker._free(self)


class Breaker:
    """The breaker of one replica.

    `generation`, `cause` (None while closed) and `trips` (in a row, less those forgiven) are as of
    the latest call that was given a time. The generation goes up with each trip and each closing;
    a request is reported with the one it began under, so that what began before is dropped.
    """

    def __init__(self, numbers: BreakerNumbers = DEFAULTS) -> None:
        self.numbers = numbers
        self.generation = 0
        self.cause: Cause | None = None
        self.trips = 0
        self._state = State.CLOSED
        # When it closed or opened; when it became half-open, or a probe last succeeded.
        self._since = 0.0
        self._trips_at_closing = 0
        self._window = Window(numbers.window)
        self._streak = 0
        self._successes = 0
        # Requests that the model received since the last one taken as a probe.
        self._demand = 0
        self._probe: Probe | None = None
        self._probed = -math.inf

    def state(self, now: float) -> State:
        self._catch_up(now)
        return self._state

    def errors(self, now: float) -> tuple[int, int]:
        """Failures, and all outcomes, in the window."""
        self._window.slide(now)
        return self._window.failures, self._window.total

    def opens_in(self, now: float) -> float:
        """Seconds until it is half-open; 0 when it isn't open."""
        return self._isolated_until() - now if self.state(now) is State.OPEN else 0.0

    def succeeded(self, generation: int, now: float) -> None:
        """A request that was no probe ended well; counts in a closed breaker only."""
        self._catch_up(now)
        if generation == self.generation and self._state is State.CLOSED:
            self._streak = 0
            self._count(True, now)

    def failed(self, generation: int, now: float) -> None:
        """A request that was no probe failed.

        The last replica is sent requests even while its breaker isn't closed. If it fails them, it
        isn't merely new after a death, and half-open it is not fit either.
        """
        self._catch_up(now)
        if generation != self.generation:
            return
        if self._state is State.CLOSED:
            self._streak += 1
            self._count(False, now)
        elif self._state is State.HALF_OPEN:
            self._trip(Cause.ERRORS, now)
        elif self.cause is Cause.DEATH:
            self.cause = Cause.ERRORS

    def died(self, now: float) -> None:
        """Its process is gone: a trip, which in an open breaker begins the isolation anew."""
        self._catch_up(now)
        self._trip(Cause.DEATH, now)

    def demanded(self, now: float) -> None:
        """The model, whichever replica will serve it, has received one request."""
        self._catch_up(now)
        if self._state is State.HALF_OPEN:
            self._demand += 1

    def probe(self, now: float, *, synthetic: bool = False) -> Probe | None:
        """Leave to send a request to a half-open replica, one at a time; None means not now.

        One of the model's requests may go when demand has earned it, and uses that up whatever
        becomes of it. A synthetic one may go when none of either kind began lately.
        """
        self._catch_up(now)
        if self._state is not State.HALF_OPEN or (self._probe and now < self._probe.deadline):
            return None
        if synthetic:
            if now < self._probed + self.numbers.synthetic_every:
                return None
        # Not a sum of shares: ten times 0.1 added up is less than 1.
        elif self._demand * self.numbers.share < 1:
            return None
        else:
            self._demand = 0
        self._probed = now
        self._probe = Probe(self, now + self.numbers.lease)
        return self._probe

    def _tried(self, probe: Probe, ok: bool, now: float) -> None:
        self._catch_up(now)
        if probe is not self._probe:
            return
        self._probe = None
        if now >= probe.deadline:
            return
        if not ok:
            self._trip(Cause.PROBE, now)
            return
        self._since = now
        self._successes += 1
        if self._successes >= self.numbers.successes:
            self._close(now)

    def _free(self, probe: Probe) -> None:
        if probe is self._probe:
            self._probe = None

    def _count(self, ok: bool, now: float) -> None:
        numbers = self.numbers
        window = self._window
        window.add(ok, now)
        if self._streak > numbers.streak:
            self._trip(Cause.STREAK, now)
        # Not a product: 0.29 * 100 is less than 29.
        elif (
            window.total >= numbers.least_requests
            and window.failures / window.total > numbers.threshold
        ):
            self._trip(Cause.ERRORS, now)

    def _isolated_until(self) -> float:
        numbers = self.numbers
        return self._since + min(numbers.longest_isolation, numbers.isolation * self.trips)

    def _catch_up(self, now: float) -> None:
        """Do what has fallen due, each thing as of its own time."""
        numbers = self.numbers
        if self._state is State.CLOSED:
            if self.trips:
                forgiven = int((now - self._since) // numbers.forgiven_after)
                self.trips = max(0, self._trips_at_closing - forgiven)
            return
        while True:
            if self._state is State.OPEN and now >= (due := self._isolated_until()):
                self._state = State.HALF_OPEN
                self._since = due
                self._successes = self._demand = 0
            elif self._state is State.HALF_OPEN and now >= (
                due := self._since + numbers.verdict_within
            ):
                self._trip(Cause.UNDECIDED, due)
            else:
                return

    def _trip(self, cause: Cause, now: float) -> None:
        longest, isolation = self.numbers.longest_isolation, self.numbers.isolation
        self._state = State.OPEN
        self._since = now
        self._probe = None
        self.cause = cause
        # More would not isolate it for longer, and only take longer to be forgiven.
        self.trips = min(self.trips + 1, math.ceil(longest / isolation))
        self.generation += 1

    def _close(self, now: float) -> None:
        self._state = State.CLOSED
        self._since = now
        self._trips_at_closing = self.trips
        self._window.clear()
        self._streak = 0
        self.cause = None
        self.generation += 1

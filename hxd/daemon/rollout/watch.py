"""The time after a swap in which the former release is kept, and the new one may still turn out
bad."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from hxd.clock import Clock
from hxd.daemon.request.deployment import Deployment, Outcome, Served, Tally
from hxd.daemon.rollout.reasons import DEATHS

# As a breaker has it (DESIGN 6): before so many requests nothing is said by their errors; then more
# than this part is too much, unless it was no better before.
LEAST_REQUESTS = 20
MOST_FAILED = 0.1
TIMES_WORSE = 3.0


@dataclass(eq=False)
class Watch:
    """`trouble` says whether the current release should be taken back; `heard` makes it look.
    `fresh`: both are of what was chosen, under two configurations."""

    deployment: Deployment
    former: Served
    current: Served
    clock: Clock
    seconds: float
    fresh: bool = False
    task: asyncio.Task[None] | None = None
    _before: Tally = field(default_factory=Tally)
    _began: float = 0.0
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._began = self.clock.now()
        self._before = replace(self.current.tally)

    @property
    def left(self) -> float:
        """Seconds until the former release is let go."""
        return max(0.0, self._began + self.seconds - self.clock.now())

    def heard(self, outcome: Outcome) -> None:
        if outcome.fault is not None:
            self._woken.set()

    def trouble(self, deaths: int) -> str | None:
        """Why the current release should go; `deaths` are those of its workers that nothing outside
        was the cause of, since it came into service."""
        if deaths >= DEATHS:
            return f"{deaths} of its workers have died since it came into service"
        now, former = self.current.tally, self.former.tally
        requests, failed = now.requests - self._before.requests, now.failed - self._before.failed
        usual = former.failed / former.requests if former.requests else 0.0
        if requests >= LEAST_REQUESTS and failed > max(MOST_FAILED, TIMES_WORSE * usual) * requests:
            return (
                f"{failed} of {requests} requests failed since it came into service, and "
                f"{former.failed} of {former.requests} with the version before"
            )
        return None

    async def nap(self, seconds: float) -> None:
        """Ends early when a request fails."""
        self._woken.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass

    def end(self) -> None:
        self.current.heard = None
        if self.deployment.warm is self.former:
            self.deployment.warm = None
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

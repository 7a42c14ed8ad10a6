"""The time after a swap in which the former release is kept, and the new one may still turn out
bad."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hxd.clock import Clock
from hxd.daemon.request.deployment import Deployment, Outcome, Served

FATAL_DEATHS = 2
# Before so many requests nothing is said by their errors; then more than this part is too much.
LEAST_REQUESTS = 10
MOST_FAILED = 0.5


@dataclass(eq=False)
class Watch:
    """`heard` is for the current release; `trouble` says whether it should be taken back."""

    deployment: Deployment
    former: Served
    current: Served
    clock: Clock
    seconds: float
    task: asyncio.Task[None] | None = None
    requests: int = 0
    failed: int = 0
    _began: float = 0.0
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._began = self.clock.now()

    @property
    def left(self) -> float:
        """Seconds until the former release is let go."""
        return max(0.0, self._began + self.seconds - self.clock.now())

    def heard(self, outcome: Outcome) -> None:
        self.requests += 1
        self.failed += outcome.fault is not None
        if outcome.fault is not None:
            self._woken.set()

    def trouble(self, deaths: int) -> str | None:
        """Why the current release should go; `deaths` are those of its workers that nothing outside
        was the cause of, since it came into service."""
        if deaths >= FATAL_DEATHS:
            return f"{deaths} of its workers have died since it came into service"
        if self.requests >= LEAST_REQUESTS and self.failed > MOST_FAILED * self.requests:
            return f"{self.failed} of {self.requests} requests failed since it came into service"
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

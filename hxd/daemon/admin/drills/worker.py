"""Drills that do something to one worker: the fault, and the wait for full strength after it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

from hxd.clock import Clock
from hxd.daemon.admin.drills.load import LOOK_EVERY, Load
from hxd.daemon.admin.drills.report import Fault, Report
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.setting import Setting
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import Unavailable

AFTER = 3.0  # seconds of load after the fault, at least
LONGEST = 120.0  # seconds until a drill gives up waiting for full strength
SLOW_SECONDS = 8.0
SLOW_HALT = 0.06  # stopped for so long, shorter than what counts as stopped for good
SLOW_RUN = 0.04
GARBAGE = b"\xff\xff\xff\xff" + b"drill"


class WorkerDrill:
    """`strength`: the replicas that are ready before it."""

    def __init__(
        self, fault: Fault, deployment: Deployment, setting: Setting, strength: int
    ) -> None:
        source = deployment.current.source
        self.report = Report(fault.value, source.name, "")
        self._fault = fault
        self._strength = strength
        self._deployment = deployment
        self._supervisor = setting.supervisor
        self._clock = setting.clock
        self._load = Load(deployment, setting, self.report, (strength - 1) * source.at_once)

    async def run(self) -> None:
        async with self._load.running():
            victim = busiest(self._deployment, self._supervisor)
            self.report.victim = victim.id
            struck = self._load.struck()
            generation = victim.generation
            async with _struck(self._fault, victim, self._clock):
                await self._strong_again(victim, generation, struck)
            left = AFTER - (self._clock.now() - struck)
            if left > 0:
                await self._clock.sleep(left)

    async def undo(self) -> None:
        """Nothing is left to undo."""

    async def _strong_again(self, victim: Replica, generation: int, struck: float) -> None:
        """Until as many are ready as were before. A slow worker need not be replaced."""
        key = self._deployment.current.source.key
        gone = self._fault is Fault.SLOW
        deadline = struck + LONGEST
        slow_until = struck + SLOW_SECONDS if gone else struck
        while self._clock.now() < deadline:
            await self._clock.sleep(LOOK_EVERY)
            gone = gone or victim.generation != generation
            if not gone or self._clock.now() < slow_until:
                continue
            if len(self._supervisor.ready(key)) >= self._strength:
                self.report.full_strength = self._clock.now() - struck
                return
        self.report.problems.append(f"not at full strength {LONGEST:g} s after the fault")


def busiest(deployment: Deployment, supervisor: Supervisor) -> Replica:
    """That is where a fault hurts. Raises `Unavailable`."""
    served = deployment.current
    ready = supervisor.ready(served.source.key)
    if not ready:
        raise Unavailable("the last replica went away before the drill began", retry_after=1.0)
    return max(ready, key=served.gate.running_on)


@contextlib.asynccontextmanager
async def _struck(fault: Fault, victim: Replica, clock: Clock) -> AsyncIterator[None]:
    """The fault is done, and what of it would last is undone in the end."""
    worker = victim.worker
    if worker is None:
        yield
        return
    halting: asyncio.Task[None] | None = None
    match fault:
        case Fault.KILL:
            worker.send_signal(signal.SIGKILL)
        case Fault.STALL:
            worker.send_signal(signal.SIGSTOP)
        case Fault.GARBAGE:
            worker.link.data_received(GARBAGE)
        case Fault.SLOW:
            halting = asyncio.create_task(_halt(worker.send_signal, clock))
    try:
        yield
    finally:
        if halting is not None:
            halting.cancel()
            worker.send_signal(signal.SIGCONT)


async def _halt(send: Callable[[signal.Signals], None], clock: Clock) -> None:
    until = clock.now() + SLOW_SECONDS
    while clock.now() < until:
        send(signal.SIGSTOP)
        await clock.sleep(SLOW_HALT)
        send(signal.SIGCONT)
        await clock.sleep(SLOW_RUN)

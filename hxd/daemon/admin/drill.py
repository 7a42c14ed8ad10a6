"""Drills: a fault is done to one worker of a serving model on purpose, under light load that the
drill makes, and what the requests noticed of it is counted.

The load goes the way of every request, from the line of its model to the last token; only HTTP is
left out. Each answer is compared with what the same prompt gave before the fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import signal
import statistics
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.request.call import Call
from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.request.inquiry import Inquiry
from hxd.daemon.request.strand import Setting
from hxd.daemon.request.vectors import Vectors
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError, HxdError, ModelNotFound, Unavailable

log = logging.getLogger("hxd.drill")

STREAMS = 4
TOKENS = 48
BEFORE = 1.0  # seconds of load before the fault
AFTER = 3.0  # seconds of load after it, at least
LONGEST = 120.0  # seconds until a drill gives up waiting for full strength
# DESIGN 6: the next token within so many seconds, beyond the model's usual time for one.
PROMISED_PAUSE = 0.5
SLOW_SECONDS = 8.0
SLOW_HALT = 0.06  # stopped for so long, shorter than what counts as stopped for good
SLOW_RUN = 0.04
GARBAGE = b"\xff\xff\xff\xff" + b"drill"
LEFT = 2  # replicas that must be left

PROMPTS = (
    "Tell me a story about a lighthouse.",
    "Count from one to twenty.",
    "What is the sea made of?",
    "Describe a walk in the rain.",
)


class Fault(enum.StrEnum):
    KILL = "kill"  # SIGKILL
    STALL = "stall"  # SIGSTOP
    SLOW = "slow"  # stopped more than half of the time, for a while
    GARBAGE = "garbage"  # bytes that are no frame come from its socket


@dataclass
class Report:
    """What the drill's requests noticed. Times in seconds; `full_strength` is how long it took
    until as many replicas were ready as before, None if that was not seen. `different` answers are
    whole, but not what the same prompt gave before the fault."""

    fault: str
    model: str
    victim: str
    requests: int = 0
    failed: int = 0
    different: int = 0
    failovers: int = 0
    usual_pause: float = 0.0
    longest_pause: float = 0.0
    full_strength: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether hxd has done what it promises."""
        pause = self.longest_pause - self.usual_pause
        return not self.failed and not self.different and pause <= PROMISED_PAUSE

    def body(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "model": self.model,
            "victim": self.victim,
            "requests": self.requests,
            "failed": self.failed,
            "different": self.different,
            "failovers": self.failovers,
            "usual_pause_seconds": round(self.usual_pause, 4),
            "longest_pause_seconds": round(self.longest_pause, 4),
            "promised_pause_seconds": PROMISED_PAUSE,
            "full_strength_seconds": self.full_strength and round(self.full_strength, 2),
            "promise_kept": self.kept,
            "problems": self.problems,
        }


class Drills:
    """One at a time."""

    def __init__(
        self,
        served: Mapping[str, Deployment],
        supervisor: Supervisor,
        setting: Setting,
        clock: Clock,
    ) -> None:
        self._served = served
        self._supervisor = supervisor
        self._setting = setting
        self._clock = clock
        self._busy = asyncio.Lock()

    async def run(self, fault: Fault, model: str | None, *, force: bool) -> Report:
        """Raises `CallerError` when the drill is refused."""
        if self._busy.locked():
            raise CallerError("another drill is running", status=409, code="drill_refused")
        async with self._busy:
            served = self._choose(model)
            name = served.source.name
            ready = self._supervisor.ready(served.source.key)
            if not ready:
                raise Unavailable(f"no replica of {name!r} is ready", retry_after=1.0)
            if len(ready) - 1 < LEFT and not force:
                raise CallerError(
                    f"{name!r} has {len(ready)} ready replicas, so {len(ready) - 1} would be left, "
                    f"and a drill leaves {LEFT}; with force it is done all the same",
                    status=409,
                    code="drill_refused",
                )
            drill = _Drill(self, served, fault, len(ready))
            log.warning("drill=%s model=%s begins", fault.value, name)
            try:
                return await drill.run()
            finally:
                kept = drill.report.kept
                log.warning("drill=%s model=%s ended kept=%s", fault.value, name, kept)

    def _choose(self, model: str | None) -> Served:
        """The model named, or the one with the most replicas ready."""
        if model is None:
            if not self._served:
                raise CallerError("no model is served", status=409, code="drill_refused")
            return max(
                (deployment.current for deployment in self._served.values()),
                key=lambda one: len(self._supervisor.ready(one.source.key)),
            )
        if model not in self._served:
            raise ModelNotFound(model, self._served)
        return self._served[model].current


class _Drill:
    """`strength`: the replicas that are ready before it."""

    def __init__(self, drills: Drills, served: Served, fault: Fault, strength: int) -> None:
        self._strength = strength
        # No more than those that are left can take: a full queue would be the drill's own doing.
        left = max(1, strength - 1) * served.source.at_once
        self._streams = min(STREAMS, left)
        self._supervisor = drills._supervisor
        self._setting = drills._setting
        self._clock = drills._clock
        self._served = served
        self._fault = fault
        self._usual: dict[int, Any] = {}
        self._gaps: list[float] = []
        self.report = Report(fault.value, served.source.name, "")
        self._struck = False
        self._over = False

    async def run(self) -> Report:
        report = self.report
        for number in range(self._streams):
            self._usual[number] = await self._ask(number)
        report.requests = 0
        self._gaps.clear()
        load = [asyncio.create_task(self._load(number)) for number in range(self._streams)]
        try:
            await self._clock.sleep(BEFORE)
            report.usual_pause = statistics.median(self._gaps) if self._gaps else 0.0
            victim = self._victim()
            report.victim = victim.id
            struck = self._clock.now()
            self._struck = True
            generation = victim.generation
            async with _struck(self._fault, victim, self._clock):
                await self._strong_again(victim, generation, struck)
            left = AFTER - (self._clock.now() - struck)
            if left > 0:
                await self._clock.sleep(left)
            self._over = True
            await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        return report

    def _victim(self) -> Replica:
        """The busiest: that is where a fault hurts."""
        gate = self._served.gate
        ready = self._supervisor.ready(self._served.source.key)
        if not ready:
            raise Unavailable("the last replica went away before the drill began", retry_after=1.0)
        return max(ready, key=gate.running_on)

    async def _strong_again(self, victim: Replica, generation: int, struck: float) -> None:
        """Until as many are ready as were before. A slow worker need not be replaced."""
        key = self._served.source.key
        gone = self._fault is Fault.SLOW
        deadline = struck + LONGEST
        slow_until = struck + SLOW_SECONDS if gone else struck
        while self._clock.now() < deadline:
            await self._clock.sleep(0.02)
            gone = gone or victim.generation != generation
            if not gone or self._clock.now() < slow_until:
                continue
            if len(self._supervisor.ready(key)) >= self._strength:
                self.report.full_strength = self._clock.now() - struck
                return
        self.report.problems.append(f"not at full strength {LONGEST:g} s after the fault")

    async def _load(self, number: int) -> None:
        report = self.report
        while not self._over:
            report.requests += 1
            try:
                said = await self._ask(number)
            except HxdError as error:
                report.failed += 1
                self._trouble(f"{type(error).__name__}: {error}")
                await self._clock.sleep(0.1)
                continue
            if said != self._usual[number]:
                report.different += 1
                self._trouble(f"an answer to {PROMPTS[number]!r} changed")

    def _trouble(self, what: str) -> None:
        if len(self.report.problems) < 10:
            self.report.problems.append(what)

    async def _ask(self, number: int) -> Any:
        replicas = self._supervisor.ready(self._served.source.key)
        can = next((r.loaded.capabilities for r in replicas if r.loaded is not None), ["generate"])
        if "generate" in can:
            return await self._generate(number)
        return await self._embed(number, rank="embed" not in can)

    async def _generate(self, number: int) -> tuple[str, str | None]:
        order = wire.Generate(
            id=0,
            seed=number,
            text=PROMPTS[number],
            sampling=wire.Sampling(temperature=0.0, ignore_eos=True),
            max_tokens=TOKENS,
        )
        call = Call(self._setting, [self._served], [order])
        last, texts, finish = self._clock.now(), [], None
        async with contextlib.aclosing(call.pieces()) as pieces:
            async for batch in pieces:
                now = self._clock.now()
                self._pause(now - last)
                last = now
                for piece in batch:
                    texts.append(piece.text)
                    finish = piece.finish or finish
        self.report.failovers += call.failovers
        return "".join(texts), finish

    async def _embed(self, number: int, *, rank: bool) -> Any:
        text = PROMPTS[number]

        def frame(id: int) -> wire.Request:
            return wire.Rank(id, text, [text]) if rank else wire.Embed(id, [text])

        inquiry = Inquiry(
            self._setting,
            self._served,
            self._served.gate,
            frame,
            _one_vector,
            lambda replica: None,
        )
        began = self._clock.now()
        answer = await inquiry.reply()
        self._pause(self._clock.now() - began)
        return answer.found.scores() if rank else answer.found.floats

    def _pause(self, seconds: float) -> None:
        if self._struck:
            self.report.longest_pause = max(self.report.longest_pause, seconds)
        else:
            self._gaps.append(seconds)


def _one_vector() -> Vectors:
    return Vectors(1)


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

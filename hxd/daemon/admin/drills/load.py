"""The light load of a drill, and what it notices.

It goes the way of every request, from the line of its model to the last token; only HTTP is left
out. Each answer is compared with what the same release gave to the same prompt before.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator, Callable
from typing import Any

from hxd import wire
from hxd.daemon.admin.drills.report import Report
from hxd.daemon.request.call import Call
from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.request.inquiry import Inquiry, Reply, along
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.vectors import Vectors
from hxd.daemon.rollout.rollout import describe
from hxd.errors import HxdError

STREAMS = 4
TOKENS = 48
BEFORE = 1.0  # seconds of load before the fault
LOOK_EVERY = 0.02

PROMPTS = (
    "Tell me a story about a lighthouse.",
    "Count from one to twenty.",
    "What is the sea made of?",
    "Describe a walk in the rain.",
)


class Load:
    """`room` is how many requests the replicas that are left can take at once: a full queue would
    be the drill's own doing."""

    def __init__(self, deployment: Deployment, setting: Setting, report: Report, room: int) -> None:
        self.streams = min(STREAMS, max(1, room))
        self.report = report
        self._deployment = deployment
        self._setting = setting
        self._clock = setting.clock
        self._usual: dict[tuple[str, int], Any] = {}
        self._gaps: list[float] = []
        self._struck = False
        self._over = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It runs, and has for a while; what is asked at the end is still answered. Raises
        `HxdError` when the model can't answer before anything is done to it."""
        for number in range(self.streams):
            released, said = await self._ask(number)
            self._usual[describe(released[-1]), number] = said
        self._gaps.clear()
        load = [asyncio.create_task(self._stream(number)) for number in range(self.streams)]
        try:
            await self._clock.sleep(BEFORE)
            self.report.usual_pause = statistics.median(self._gaps) if self._gaps else 0.0
            yield
            self._over = True
            await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)

    def struck(self) -> float:
        """From now on pauses are the fault's; when that is."""
        self._struck = True
        return self._clock.now()

    async def until(self, so: Callable[[], bool], deadline: float) -> bool:
        """Whether it was `so` before the deadline."""
        while not so():
            if self._clock.now() >= deadline:
                return False
            await self._clock.sleep(LOOK_EVERY)
        return True

    async def answers(self, seconds: float) -> bool:
        """Whether, within that time, each stream got an answer to something asked from now on, or
        that many failed."""
        report = self.report

        def ended() -> int:
            return report.answered.total() + report.failed

        # What is under way now may come from before.
        enough = ended() + 2 * self.streams
        return await self.until(lambda: ended() >= enough, self._clock.now() + seconds)

    async def _stream(self, number: int) -> None:
        report = self.report
        while not self._over:
            report.requests += 1
            try:
                releases, said = await self._ask(number)
            except HxdError as error:
                report.failed += 1
                report.trouble(f"{type(error).__name__}: {error}")
                await self._clock.sleep(0.1)
                continue
            names = {describe(served) for served in releases}
            if len(names) > 1:
                report.mixed += 1
                continue
            served, name = releases[-1], names.pop()
            report.answered[served.source.key] += 1
            report.names[served.source.key] = name
            if said != self._usual.setdefault((name, number), said):
                report.different += 1
                report.trouble(f"an answer to {PROMPTS[number]!r} changed")

    async def _ask(self, number: int) -> tuple[list[Served], Any]:
        """The releases that worked on the answer, and what it is."""
        served = self._deployment.current
        replicas = self._setting.supervisor.ready(served.source.key)
        can = next((r.loaded.capabilities for r in replicas if r.loaded is not None), None)
        if can is None:
            can = ["embed"] if served.source.embeds else ["generate"]
        if "generate" in can:
            return await self._generate(served, number)
        return await self._embed(served, number, rank="embed" not in can)

    async def _generate(self, served: Served, number: int) -> tuple[list[Served], Any]:
        order = wire.Generate(
            id=0,
            seed=number,
            text=PROMPTS[number],
            sampling=wire.Sampling(temperature=0.0, ignore_eos=True),
            max_tokens=TOKENS,
        )
        call = Call(self._setting, [served], [order])
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
        return call.releases, ("".join(texts), finish)

    async def _embed(self, served: Served, number: int, *, rank: bool) -> tuple[list[Served], Any]:
        text = PROMPTS[number]

        def frame(id: int) -> wire.Request:
            return wire.Rank(id, text, [text]) if rank else wire.Embed(id, [text])

        async def ask(served: Served) -> Reply[Vectors]:
            inquiry = Inquiry(
                self._setting, served, served.gate, frame, _one_vector, lambda replica: None
            )
            return await inquiry.reply()

        began = self._clock.now()
        answered, answer = await along([served], ask)
        self._pause(self._clock.now() - began)
        return [answered], answer.found.scores() if rank else answer.found.floats

    def _pause(self, seconds: float) -> None:
        if self._struck:
            self.report.longest_pause = max(self.report.longest_pause, seconds)
        else:
            self._gaps.append(seconds)


def _one_vector() -> Vectors:
    return Vectors(1)

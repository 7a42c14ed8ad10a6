"""What is asked of a server that generates text, and what is read off its answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from .prompts import Prompts
from .readings import Metric, NotApplicable, Reading
from .serving import Running
from .stats import median, percentile
from .streams import Client, Stream, begin

SHARING = 8
PREFIX_TOKENS = 512
TALKING = 7
LONG_TOKENS = 4000
# Pieces of text that each short stream has had before the long prompt comes in: what its own
# decode step takes is read off these.
SETTLED = 16


@dataclass(frozen=True)
class Plan:
    """How much is asked; numbers of tokens, except `rounds` and `leaving` (clients)."""

    prompt: int = 64
    answer: int = 96
    rounds: int = 3
    leaving: int = 200

    @property
    def context(self) -> int:
        """Tokens per slot that every scenario fits into."""
        return LONG_TOKENS + 1000


@dataclass(frozen=True)
class Scene:
    """One server, and a `label` that no other repetition has, so that no prompt comes twice."""

    server: Running
    prompts: Prompts
    plan: Plan
    label: str

    @property
    def client(self) -> Client:
        return Client(self.server.session, self.server.url, self.server.kind.extra)

    def prompt(self, tokens: int, *seed: object) -> str:
        return self.prompts.text(tokens, self.label, *seed)


async def clients(scene: Scene) -> list[Reading]:
    """1, 8 and 16 clients at once, each with a prompt of its own."""
    readings = []
    for count in (1, 8, 16):
        prompts = [scene.prompt(scene.plan.prompt, "clients", count, i) for i in range(count)]
        streams = await _together(scene, prompts, scene.plan.answer)
        case = "1 client" if count == 1 else f"{count} clients"
        gaps = [gap for stream in streams for gap in stream.gaps]
        readings += [
            Reading(case, Metric.OVERALL, _overall(streams)),
            Reading(case, Metric.DECODE, _decode(streams)),
            Reading(case, Metric.FIRST, 1e3 * median([one.first_token for one in streams])),
            Reading(case, Metric.GAP, 1e3 * median(gaps)),
            Reading(case, Metric.GAP_99, 1e3 * percentile(gaps, 99)),
        ]
    return readings


async def shared(scene: Scene) -> list[Reading]:
    """Clients whose prompts begin alike: a first round in which nobody has seen the beginning,
    then rounds in which it is known and only the ends are new."""
    prefix = scene.prompt(PREFIX_TOKENS, "shared")
    rounds = []
    for number in range(scene.plan.rounds):
        ends = [scene.prompt(16, "shared", number, i) for i in range(SHARING)]
        rounds.append(
            await _together(scene, [f"{prefix} {end}" for end in ends], scene.plan.answer // 2)
        )
    seconds = [_seconds(streams) for streams in rounds]
    everything = sum(stream.tokens for streams in rounds for stream in streams)
    readings = [
        Reading("shared prefix, first round", Metric.SECONDS, seconds[0]),
        Reading("shared prefix, first round", Metric.FIRST, _first(rounds[0])),
    ]
    if len(rounds) > 1:
        later = [_first(streams) for streams in rounds[1:]]
        readings += [
            Reading("shared prefix, later rounds", Metric.SECONDS, median(seconds[1:])),
            Reading("shared prefix, later rounds", Metric.FIRST, median(later)),
        ]
    case = f"shared prefix, {len(rounds)} rounds"
    return [*readings, Reading(case, Metric.OVERALL, everything / sum(seconds))]


async def long(scene: Scene) -> list[Reading]:
    """A long prompt comes in while short streams run: how long do these stand still?"""
    if not scene.server.kind.together:
        raise NotApplicable("it runs one sequence at a time: there are no others beside a prompt")
    room = scene.plan.context - scene.plan.prompt - 16
    talking = [begin() for _ in range(TALKING)]
    tasks = [
        asyncio.create_task(
            scene.client.run(scene.prompt(scene.plan.prompt, "long", i), room, stream)
        )
        for i, stream in enumerate(talking)
    ]
    try:
        while min(len(stream.arrivals) for stream in talking) < SETTLED:
            _raise_if_ended(tasks)
            # No event says how many pieces have come; this is short against a decode step.
            await asyncio.sleep(0.002)
        settled = max(stream.arrivals[0] for stream in talking)
        step = median(
            [
                gap
                for stream in talking
                for gap in _gaps_between(stream, settled, stream.arrivals[-1])
            ]
        )
        newcomer = await scene.client.run(scene.prompt(LONG_TOKENS, "long"), 8)
        # What hangs over the end of the long prompt belongs to it.
        await asyncio.sleep(2 * step)
        until = time.perf_counter()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    gaps = [
        gap
        for stream in talking
        for gap in _gaps_between(stream, newcomer.started, until)
    ]  # fmt: skip
    # A stream that got nothing at all meanwhile stood still to the end.
    gaps += [until - stream.arrivals[-1] for stream in talking]
    case = f"{LONG_TOKENS:,}-token prompt comes in"
    return [
        Reading(case, Metric.LONGEST, 1e3 * max(gaps)),
        Reading(case, Metric.STEPS, max(gaps) / step),
        Reading(case, Metric.FIRST, 1e3 * newcomer.first_token),
    ]


async def cancel(scene: Scene) -> list[Reading]:
    """Clients that leave at their first token; how soon is all as before?"""
    before = scene.server.memory()
    prompts = [scene.prompt(8, "cancel", i) for i in range(scene.plan.leaving)]
    await asyncio.gather(*(scene.client.leave(prompt, 256) for prompt in prompts))
    left = time.perf_counter()
    # Being free is no event either; this is how a monitor would ask.
    while await scene.server.busy():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    free = time.perf_counter()
    probe = await scene.client.run(scene.prompt(8, "probe"), 16)
    case = f"{len(prompts)} clients left"
    readings = [
        Reading(f"{case}, one more comes", Metric.FIRST, 1e3 * probe.first_token),
        Reading(f"{case}, one more comes", Metric.GAP, 1e3 * median(probe.gaps)),
        Reading(case, Metric.BEFORE, before / 1e6),
        Reading(case, Metric.AFTER, scene.server.memory() / 1e6),
    ]
    if scene.server.kind.busy is not None:
        readings.insert(0, Reading(f"{case}, all slots free", Metric.SECONDS, free - left))
    return readings


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, list[Reading]]]] = {
    "clients": clients,
    "shared": shared,
    "long": long,
    "cancel": cancel,
}


async def _together(scene: Scene, prompts: list[str], tokens: int) -> list[Stream]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(scene.client.run(prompt, tokens)) for prompt in prompts]
    return [task.result() for task in tasks]


def _seconds(streams: list[Stream]) -> float:
    return max(one.ended for one in streams) - min(one.started for one in streams)


def _overall(streams: list[Stream]) -> float:
    """Generated tokens per second, from the first question to the end of the last answer."""
    return sum(one.tokens for one in streams) / _seconds(streams)


def _first(streams: list[Stream]) -> float:
    return 1e3 * median([one.first_token for one in streams])


def _decode(streams: list[Stream]) -> float:
    """Tokens per second while all of them run; NaN where they never do at the same time."""
    begin_, end = max(one.arrivals[0] for one in streams), min(one.arrivals[-1] for one in streams)
    if end <= begin_:
        return float("nan")
    # Tokens per piece: nearly always 1.
    tokens = sum(
        one.tokens / len(one.arrivals) * sum(begin_ < at <= end for at in one.arrivals)
        for one in streams
    )
    return tokens / (end - begin_)


def _gaps_between(stream: Stream, begin_: float, end: float) -> list[float]:
    """Gaps that touch the time from `begin_` to `end`."""
    pairs = itertools.pairwise(stream.arrivals)
    return [after - before for before, after in pairs if after > begin_ and before < end]


def _raise_if_ended(tasks: list[asyncio.Task[Stream]]) -> None:
    for task in tasks:
        if task.done():
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
            raise RuntimeError("a stream ended before the long prompt came in")

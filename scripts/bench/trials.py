"""One measurement on one server: when the machine is quiet, again if it was not, never fatal."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console

from .quiet import LIMIT, Meter, Patience
from .readings import NotApplicable, Reading
from .report import Results
from .serving import DidNotStart, Kind, Running
from .streams import Refused

# What ends one measurement on one server, and not the benchmark.
FAULTS = (Refused, DidNotStart, aiohttp.ClientError, TimeoutError, RuntimeError, ExceptionGroup)

# How often a measurement is looked at that may have been disturbed beyond use.
WATCH_SECONDS = 3.0

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Trials:
    repeat: int
    patience: Patience
    results: Results

    async def run(
        self,
        running: Running,
        number: int,
        name: str,
        asked: Callable[[str], Coroutine[Any, Any, list[Reading]]],
    ) -> None:
        """`asked(label)` measures; it is asked again, with a new label, while others disturb it
        and patience lasts. The last try counts. `number` is the repetition, from 0."""
        for attempt in itertools.count():
            await self.patience.wait()
            meter, began = Meter([running.process]), time.monotonic()
            label = f"repetition {number}, attempt {attempt}"
            try:
                readings = await self._unless_disturbed(meter, asked(label))
            except NotApplicable as error:
                self.results.skip(running.kind.name, name, str(error))
                return
            except FAULTS as error:
                self.fail(running.kind, name, error)
                console.print(f"the end of its log:\n{running.said()}")
                return
            others, seconds = meter.others(), time.monotonic() - began
            said = f"{number + 1}/{self.repeat} {running.kind.name}: {name}, {seconds:.0f} s"
            said += f", others took {others:.0%} of the cores"
            if readings is not None and (others <= LIMIT or self.patience.seconds <= seconds):
                break
            self.patience.spend(seconds)
            console.print(f"{said}: again")
        console.print(said)
        self.results.add(running.kind.name, readings)
        if others > LIMIT:
            self.results.disturb(running.kind.name, name, others)

    async def _unless_disturbed(
        self, meter: Meter, asked: Coroutine[Any, Any, list[Reading]]
    ) -> list[Reading] | None:
        """None if it was broken off since others took too much, and there is patience left."""
        task = asyncio.create_task(asked)
        try:
            while not (await asyncio.wait({task}, timeout=WATCH_SECONDS))[0]:
                if self.patience.seconds > 0 and meter.others() > 2 * LIMIT:
                    return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def fail(self, kind: Kind, name: str, error: Exception) -> None:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        reason = str(cause) or type(cause).__name__
        self.results.fail(kind.name, name, reason)
        console.print(f"{kind.name} failed in {name}: {reason}")

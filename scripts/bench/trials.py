"""One measurement on one server: when the machine is quiet, again if it was not, never fatal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from rich.console import Console

from .quiet import LIMIT, Meter, Patience
from .readings import NotApplicable, Reading
from .report import Results
from .serving import DidNotStart, Kind, Running
from .streams import Refused

# What ends one measurement on one server, and not the benchmark.
FAULTS = (Refused, DidNotStart, aiohttp.ClientError, TimeoutError, RuntimeError, ExceptionGroup)

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
        asked: Callable[[str], Awaitable[list[Reading]]],
    ) -> None:
        """`asked(label)` measures; it is asked again, with a new label, while others disturb it
        and patience lasts. The last try counts. `number` is the repetition, from 0."""
        server = running.kind.name
        for attempt in itertools.count():
            await self.patience.wait()
            meter, began = Meter([running.process]), time.monotonic()
            try:
                readings = await asked(f"repetition {number}, attempt {attempt}")
            except NotApplicable as error:
                self.results.skip(server, name, str(error))
                return
            except FAULTS as error:
                self.fail(running.kind, name, error)
                console.print(f"the end of its log:\n{running.said()}")
                return
            others, seconds = meter.others(), time.monotonic() - began
            said = f"{number + 1}/{self.repeat} {server}: {name}, {seconds:.0f} s"
            said += f", others took {others:.0%} of the cores"
            if others <= LIMIT or self.patience.seconds <= seconds:
                break
            self.patience.spend(seconds)
            console.print(f"{said}: again")
        console.print(said)
        self.results.add(server, readings)
        if others > LIMIT:
            self.results.disturb(server, name, others)

    def fail(self, kind: Kind, name: str, error: Exception) -> None:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        reason = str(cause) or type(cause).__name__
        self.results.fail(kind.name, name, reason)
        console.print(f"{kind.name} failed in {name}: {reason}")

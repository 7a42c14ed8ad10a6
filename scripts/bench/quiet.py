"""Whether the machine was quiet: how much of the cores processes took that are not measured.

llama.cpp's threads wait for each other at every layer, so a neighbour that takes half a core can
make a server several times slower; a number that was taken beside one says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import psutil

# Share of all cores that others may take; a desktop at rest takes some per cent.
LIMIT = 0.08
LOOK_SECONDS = 2.0


@dataclass
class Patience:
    """Seconds that may still be spent on waiting and on measuring again."""

    seconds: float

    async def wait(self) -> None:
        """Until others leave the cores alone, or patience ends."""
        began = time.monotonic()
        while self.seconds > time.monotonic() - began:
            meter = Meter([])
            await asyncio.sleep(LOOK_SECONDS)
            if meter.others() <= LIMIT:
                break
        self.spend(time.monotonic() - began)

    def spend(self, seconds: float) -> None:
        self.seconds = max(0.0, self.seconds - seconds)


class Meter:
    """From its making on. `mine` are processes whose time, with their children's, is no other's;
    the process that asks is one of them."""

    def __init__(self, mine: list[psutil.Process]) -> None:
        self._mine = [psutil.Process(), *mine]
        self._busy = _busy()
        self._own = self._spent()
        self._began = time.monotonic()

    def others(self) -> float:
        """Share of all cores' time since then, 0 to 1."""
        room = (time.monotonic() - self._began) * psutil.cpu_count()
        taken = (_busy() - self._busy) - (self._spent() - self._own)
        return min(1.0, max(0.0, taken / room)) if room else 0.0

    def _spent(self) -> float:
        return sum(map(_of, {process.pid: process for process in self._tree()}.values()))

    def _tree(self) -> list[psutil.Process]:
        tree = list(self._mine)
        for process in self._mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree += process.children(recursive=True)
        return tree


def _of(process: psutil.Process) -> float:
    """Processor seconds of a process, and of children that it has waited for."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _busy() -> float:
    """Processor seconds of all processes, and what was stolen, which is another's as well. Time in
    interrupts is left out: the kernel charges the packets of every process to it."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)

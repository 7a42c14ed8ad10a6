"""A worker in waiting for each program whose workers die: it has started, imported its plugin and
the libraries that loading needs, and lacks only an order. Most of what it takes to replace a small
model's worker is just that, and it is done at leisure here.

A box whose workers don't die keeps none; it would cost some tens of megabytes for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from hxd import pluginfile, wire
from hxd.clock import Clock
from hxd.daemon.supervise.courtesy import LOW, USUAL, may_raise, prioritize
from hxd.daemon.supervise.link import Loss
from hxd.daemon.supervise.process import Program, WorkerProcess
from hxd.pluginfile import PluginError

log = logging.getLogger("hxd.supervise")

# Seconds without a death after which nobody waits any more.
KEPT = 3600.0
# Seconds to the next try when a worker could not be made, or died in waiting.
PAUSE = 10.0


class Waiting:
    """Owns a worker's link until a replica does; `hello` is what it has said."""

    def __init__(self) -> None:
        self.hello: wire.Hello | None = None
        self.gone = False

    def received(self, frame: wire.Tidings) -> None:
        if isinstance(frame, wire.Hello):
            self.hello = frame

    def verdict(self) -> tuple[Loss, str]:
        return Loss.KILLED, "the worker in waiting ended"

    def lost(self, reason: str, *, at_fault: bool) -> None:
        self.gone = True


@dataclass
class Spare:
    worker: WorkerProcess
    owner: Waiting

    @property
    def fit(self) -> bool:
        return self.owner.hello is not None and not self.owner.gone


class Reserve:
    """At most one worker per program. `died` says that a program's worker has; `settle` sees to it
    that those wait who should."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._able = may_raise()
        self._wanted: dict[Program, float] = {}
        self._spares: dict[Program, Spare] = {}
        self._not_before: dict[Program, float] = {}

    def __len__(self) -> int:
        return len(self._spares)

    @property
    def wanted(self) -> bool:
        """Whether anybody waits, or should."""
        return bool(self._wanted or self._spares)

    def died(self, program: Program) -> None:
        self._wanted[program] = self._clock.now() + KEPT

    async def settle(self) -> None:
        """Call it when nothing more important starts, and not while it runs."""
        now = self._clock.now()
        for program, until in list(self._wanted.items()):
            if until <= now:
                del self._wanted[program]
        for program, spare in list(self._spares.items()):
            if spare.owner.gone:
                await self._drop(program)
                self._not_before[program] = now + PAUSE
            elif program not in self._wanted:
                await self._drop(program)
        # A copy: more may die while one is made.
        for program in list(self._wanted):
            due = self._not_before.get(program, 0.0) <= now
            if due and program not in self._spares:
                await self._make(program)

    async def _make(self, program: Program) -> None:
        owner = Waiting()
        try:
            worker = await WorkerProcess.spawn(program, owner)
        except OSError as error:
            log.warning("plugin=%s no worker in waiting: %s", program.plugin, error)
            self._not_before[program] = self._clock.now() + PAUSE
            return
        if self._able:
            prioritize(worker.pid, LOW)
        self._spares[program] = Spare(worker, owner)
        log.info("plugin=%s pid=%d waits in reserve", program.plugin, worker.pid)

    async def take(self, program: Program) -> Spare | None:
        """The worker in waiting, if it is fit and its plugin's files are still those that it read:
        one that was changed since must be refused, whoever has an older copy of it."""
        spare = self._spares.get(program)
        if spare is None or not spare.fit:
            return None
        del self._spares[program]
        try:
            await asyncio.to_thread(_verify, program)
        except PluginError:
            await _end(spare)
            return None
        look = spare.worker.proc.look()
        if spare.owner.gone or look is None or look.exiting or look.stopped:
            await _end(spare)
            return None
        if self._able:
            prioritize(spare.worker.pid, USUAL)
        return spare

    async def _drop(self, program: Program) -> None:
        # It may have been taken while another one was dropped.
        if spare := self._spares.pop(program, None):
            await _end(spare)

    def kill_all(self) -> None:
        for spare in self._spares.values():
            spare.worker.kill()

    async def aclose(self) -> None:
        for program in list(self._spares):
            await self._drop(program)


async def _end(spare: Spare) -> None:
    spare.worker.kill()
    await spare.worker.wait()


def _verify(program: Program) -> None:
    manifest, digest = pluginfile.read(program.folder)
    if digest != program.digest:
        raise PluginError(f"{program.folder / pluginfile.MANIFEST} changed")
    pluginfile.verify(program.folder, manifest)

"""The drill of a corrupted file: a worker dies, and what it would load again has a flipped byte.

The checksum must refuse it, again and again, and others must answer: the replicas that are left, or
another version. The model's own file is never touched (see `store.spoil`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

from hxd.daemon.admin.drills.load import Load
from hxd.daemon.admin.drills.report import CorruptReport, Fault
from hxd.daemon.admin.drills.worker import LONGEST, busiest
from hxd.daemon.rollout.loan import Loan, lift
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.rollout import describe
from hxd.daemon.store.faults import StoreBroken, StoreError
from hxd.daemon.store.library import Library
from hxd.daemon.store.spoil import Spoiled, spoil
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work
from hxd.errors import CallerError, HxdError

SERVED = 30.0  # seconds for the others to answer, while the file is refused
MARKED = 10.0  # seconds for a version that was given up to be marked


class CorruptDrill:
    """`strength`: the replicas that are ready before it."""

    def __init__(self, means: Means, library: Library, loan: Loan, strength: int) -> None:
        self._means = means
        self._library = library
        self._loan = loan
        self._strength = strength
        self._clock = means.clock
        source = loan.source
        self.report = CorruptReport(Fault.CORRUPT.value, source.name, "")
        room = max(1, strength - 1) * source.at_once
        self._load = Load(loan.deployment, means.setting, self.report, room)
        self._spoiling: asyncio.Future[Spoiled] | None = None
        self._work = Work()

    async def run(self) -> None:
        """Raises `HxdError` where it is refused: nothing has changed."""
        self._loan.check_free()
        version = await self._version()
        variant = self._loan.source.stored
        self._spoiling = asyncio.ensure_future(
            asyncio.to_thread(spoil, self._library, version, variant, self._work)
        )
        spoiled = await asyncio.shield(self._spoiling)
        self.report.spoiled = f"byte {spoiled.offset} of a copy of {spoiled.file.name}"
        await self._loan.begin(spoils=True)
        async with self._load.running():
            struck = self._load.struck()
            with spoiled.standing_in():
                await self._strike(struck)
                await self._served()
            await self._mend()
            if not self._loan.as_before:
                await self._back()
            await self._strong_again(struck)
            await self._load.answers(SERVED)

    async def undo(self) -> None:
        """Also what was begun when it was cut short."""
        if self._spoiling is None:
            return
        self._work.stop()
        with contextlib.suppress(StoreError, StoreBroken):  # It has left nothing, and said so.
            await asyncio.to_thread((await self._spoiling).drop)
        if self._loan.begun:
            await self._concluded()
            await self._mend()
        ended = await self._loan.end()
        self.report.restored = not ended
        for problem in ended:
            self.report.trouble(problem)

    async def _version(self) -> Version:
        """What may be refused to a worker, since something else could serve."""
        source, model = self._loan.source, self._loan.model
        held = source.held
        if held is None:
            where = "no file" if source.file is None else f"{source.file}, which is not the store's"
            raise CallerError(
                f"{model!r} loads {where}, so there is no checksum that could refuse it; hxctl "
                f"model import PATH --name {model} makes a version of a file",
                status=409,
                code="drill_refused",
            )
        version = await asyncio.to_thread(self._library.version, held.name, held.number)
        if version.quarantined:
            raise CallerError(
                f"{version} is in quarantine already: {version.quarantined}",
                status=409,
                code="drill_refused",
            )
        if self._strength == 1 and not await self._loan.others():
            raise CallerError(
                f"{model!r} has one ready replica, and the store has no other version of it: "
                "nothing would answer while the file is refused",
                status=409,
                code="drill_refused",
            )
        return version

    async def _strike(self, struck: float) -> None:
        """Until the worker that was killed has been refused its file, or has not."""
        report = self.report
        victim = busiest(self._loan.deployment, self._means.supervisor)
        report.victim = victim.id
        generation = victim.generation
        if victim.worker is not None:
            victim.worker.send_signal(signal.SIGKILL)

        def judged() -> bool:
            return victim.generation != generation and (victim.barred or victim.takes)

        if await self._load.until(judged, struck + LONGEST) and victim.barred:
            report.refusal = victim.problem or "it gave no reason"
            report.refused = self._clock.now() - struck
        elif victim.takes:
            report.trouble(f"{report.spoiled} was loaded")
        else:
            report.trouble(f"{victim.id} was not refused its file within {LONGEST:g} s")

    async def _served(self) -> None:
        """By whoever is left, or by another version once that has come."""
        if not await self._load.answers(SERVED):
            self.report.trouble(f"hardly an answer for {SERVED:g} s after the file was refused")
        await self._concluded()

    async def _concluded(self) -> None:
        """Until the daemon has done all that it does about a version that nobody could load: what
        comes later nobody would take back."""
        relieved = self._means.supervisor.relieved
        key = self._loan.source.key
        await self._load.until(lambda: key not in relieved, self._clock.now() + LONGEST)
        await self._loan.settled()
        current, source = self._loan.deployment.current.source, self._loan.source
        gone = current.version != source.version and current.plugin.digest == source.plugin.digest
        deadline = self._clock.now() + MARKED
        while gone and not await self._marked() and self._clock.now() < deadline:
            await self._clock.sleep(0.1)

    async def _marked(self) -> bool:
        held = self._loan.source.held
        assert held is not None
        version = await asyncio.to_thread(self._library.version, held.name, held.number)
        return version.quarantined is not None

    async def _mend(self) -> None:
        """The file is the good one again; what was concluded from the other is taken back."""
        source = self._loan.source
        assert source.held is not None
        try:
            why = await asyncio.to_thread(lift, self._library, source.held.name, source.held.number)
            self.report.quarantine = why or self.report.quarantine
        except HxdError as error:
            self.report.trouble(f"the quarantine stays: {error}")
        self._means.supervisor.mended(source.key)

    async def _back(self) -> None:
        """From the version that took its place."""
        try:
            rollout = await self._loan.back()
        except HxdError as error:
            self.report.trouble(f"the way back: {error}")
            return
        if rollout.phase is not Phase.DONE:
            self.report.trouble(f"the way back: {rollout.reason}")

    async def _strong_again(self, struck: float) -> None:
        served = self._loan.deployment.current

        def strong() -> bool:
            return len(self._means.supervisor.ready(served.source.key)) >= self._strength

        if await self._load.until(strong, self._clock.now() + LONGEST):
            self.report.full_strength = self._clock.now() - struck
        else:
            self.report.trouble(
                f"{describe(served)} is not at full strength {LONGEST:g} s after its file was "
                "whole again"
            )

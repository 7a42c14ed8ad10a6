"""The drill of a swap: another release in service, and back, while requests come in."""

from __future__ import annotations

from hxd.daemon.admin.drills.load import Load
from hxd.daemon.admin.drills.report import Fault, SwapReport
from hxd.daemon.admin.drills.targets import Target, targets
from hxd.daemon.rollout.loan import Loan
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.rollout import Rollout, describe
from hxd.daemon.store.library import Library
from hxd.errors import CallerError, HxdError

SERVES = 3.0  # seconds of load, at most, on each release before it goes again


class SwapDrill:
    """`force`: also where there is no room for both releases at once."""

    def __init__(self, means: Means, library: Library, loan: Loan, *, force: bool) -> None:
        self._means = means
        self._library = library
        self._loan = loan
        self._force = force
        self._clock = means.clock
        source = loan.source
        strength = len(means.supervisor.ready(source.key))
        self.report = SwapReport(Fault.SWAP.value, source.name, describe(loan.deployment.current))
        self._load = Load(loan.deployment, means.setting, self.report, strength * source.at_once)

    async def run(self) -> None:
        """Raises `HxdError` when no other release comes into service: then nothing has changed."""
        report, loan = self.report, self._loan
        loan.check_free()
        found, report.passed_over = await targets(
            loan.deployment, loan.choice, self._means, self._library, force=self._force
        )
        await loan.begin()
        async with self._load.running():
            struck = self._load.struck()
            target = await self._there(found)
            await self._load.answers(SERVES)
            await self._back(target)
            self._see_strength(struck)
            await self._load.answers(SERVES)

    async def undo(self) -> None:
        """Also what an operator, or the release itself, has kept it from doing."""
        ended = await self._loan.end()
        self.report.restored = not ended
        for problem in ended:
            self.report.trouble(problem)
        if self.report.mixed:
            self.report.trouble(f"{self.report.mixed} answers have parts of two versions")

    async def _there(self, found: list[Target]) -> Target:
        report = self.report
        for target in found:
            began = self._clock.now()
            mode = "auto" if self._force else "availability"
            rollout = await self._loan.swap(target.choice, mode=mode, again=target.again)
            report.yielded = report.yielded or rollout.yielded
            if rollout.phase is Phase.DONE:
                report.target, report.swap = str(target), self._clock.now() - began
                return target
            report.passed_over.append(f"{target}: {rollout.reason}")
            if rollout.aborted is not None:
                break
        raise CallerError(
            f"no other release of {self._loan.model!r} came into service, what serves has not "
            f"changed: {'; '.join(report.passed_over)}",
            status=409,
            code="drill_refused",
        )

    async def _back(self, target: Target) -> None:
        """By the drill, unless that release was taken back by itself meanwhile."""
        report, loan = self.report, self._loan
        began = self._clock.now()
        await loan.settled()
        if (last := loan.last) is not None and not self._came(last, target):
            report.trouble(f"{target} was taken back by itself: {last.reason or last.ask.why}")
            return
        try:
            rollout = await loan.back(again=target.again)
        except HxdError as error:
            report.trouble(f"the way back: {error}")
            return
        report.yielded = report.yielded or rollout.yielded
        if rollout.phase is Phase.DONE:
            report.rollback = self._clock.now() - began
        else:
            report.trouble(f"the way back: {rollout.reason}")

    def _came(self, last: Rollout, target: Target) -> bool:
        return last.candidate is self._loan.deployment.current and not last.ask.blame

    def _see_strength(self, struck: float) -> None:
        source = self._loan.deployment.current.source
        if len(self._means.supervisor.ready(source.key)) >= source.settings.replicas:
            self.report.full_strength = self._clock.now() - struck

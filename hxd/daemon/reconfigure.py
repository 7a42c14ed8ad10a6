"""Changes the configuration of the daemon that runs: validated first and whole, then step by step,
and back again when a step fails or the box is worse off. What did not change is not touched.

One change at a time. It belongs to the daemon: who has asked for it may leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hxd.clock import Clock
from hxd.conditions import TABLE, Condition, Severity
from hxd.config import Config
from hxd.config.files import snapshot
from hxd.config.history import DamagedRevision, History, Outcome, Revision, Why, digests
from hxd.config.install import install
from hxd.config.live import Live
from hxd.config.load import load_as
from hxd.config.masking import visible
from hxd.config.plan import Step, plan
from hxd.config.unfinished import Place, Unfinished
from hxd.daemon.config_change import BadConfig, Candidate, Change, Files, Phase, Proposal
from hxd.daemon.config_start import Leftover
from hxd.daemon.config_steps import Steps, Worse, effective
from hxd.daemon.config_watch import watch
from hxd.daemon.events import Events
from hxd.daemon.request.listener import CannotListen, Listener
from hxd.daemon.store.sources import Source, SourceError
from hxd.errors import CallerError, ConfigError, HxdError

log = logging.getLogger("hxd.config")

# Below the state folder.
HISTORY = "config-history"
RETRY_AFTER = 2.0  # seconds
PAST = 20  # changes that can still be asked for


@dataclass(frozen=True)
class _WayBack:
    """What held before. `ours` are the files that take the place of `former`; None when they are
    the operator's, who has put them there."""

    before: Config
    former: Files
    ours: Files | None


@dataclass(frozen=True)
class Means:
    """What a change works on. `inspect` finds what the models of a configuration load, and what is
    wrong with which; it blocks. `conditions` are those that hold now."""

    live: Live
    history: History
    steps: Steps
    listener: Listener
    refused: Mapping[str, SourceError]
    instead: Mapping[str, SourceError]
    inspect: Callable[[Config], tuple[Mapping[str, Source], Mapping[str, SourceError]]]
    conditions: Callable[[], list[Condition]]
    events: Events
    clock: Clock


class Reconfiguration:
    """`change` is the one that runs, or the last one. `settled` is set by the run loop once the
    rollouts of a former daemon go on."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.change: Change | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Task[Proposal] | None = None
        self.settled = asyncio.Event()
        self._past: deque[Change] = deque(maxlen=PAST)
        # What is on record for the next daemon.
        self._unfinished: Unfinished | None = None

    @property
    def busy(self) -> bool:
        return self.change is not None and not self.change.over.is_set()

    # Looking

    def shown(self, began: float | None = None) -> dict[str, Any] | None:
        """The change that runs, or the last one; or the one that began then (Unix seconds), for
        whoever follows it while others come after."""
        found = self.change
        if began is not None:
            found = next((one for one in self._past if one.began == began), None)
        return None if found is None else found.body()

    async def on_disk(self) -> Files:
        """Raises `BadConfig`."""
        try:
            return await asyncio.to_thread(snapshot, self._means.live.config.origin)
        except ConfigError as error:
            raise BadConfig(str(error)) from None

    async def holding(self) -> tuple[Revision | None, Files]:
        """The newest revision that was applied, and its files; else what lies on the disk."""
        history = self._means.history
        good = await asyncio.to_thread(history.last_good)
        last = await asyncio.to_thread(history.last_applied)
        if good is None or (last is not None and last.number != good.number):
            # What is kept of the last one is damaged; where it lies it may still be whole.
            present = await self.on_disk()
            if good is None or (last is not None and last.sha256 == digests(present)):
                return last, present
        return good, await asyncio.to_thread(history.read, good.number)

    async def before(self, number: int | None) -> Files:
        """The files of a revision; those of the last good one that differs from what holds, if
        none is named. Raises `CallerError`."""
        history = self._means.history
        if number is not None:
            return await asyncio.to_thread(history.read, number)
        holds, _ = await self.holding()
        found = holds
        while holds is not None and found is not None:
            found = await asyncio.to_thread(history.last_good, found.number)
            if found is not None and found.sha256 != holds.sha256:
                return await asyncio.to_thread(history.read, found.number)
        raise CallerError(
            "there is no earlier configuration to go back to; hxctl config history has those that "
            "are kept",
            status=409,
            code="no_such_revision",
        )

    async def propose(self, candidate: Candidate) -> Proposal:
        """Raises `BadConfig` with every fault that there is."""
        means = self._means
        present = await self.on_disk()
        files = candidate.beside(present)
        now = means.live.config
        try:
            config = await asyncio.to_thread(load_as, files, now.origin)
            sources, wrong = await asyncio.to_thread(means.inspect, effective(config, now))
        except ConfigError as error:
            raise BadConfig(str(error)) from None
        findings = [
            f"{config.at(f'models.{name}.{error.key}')}: {error}"
            for name, error in wrong.items()
            if not self._known(name, config)
        ]
        try:
            await means.listener.probe(config.listen.http)
        except CannotListen as error:
            findings.append(f"{config.at('listen.http')}: {error}")
        if findings:
            raise BadConfig("\n".join(findings))
        _, good = await self.holding()
        return Proposal(
            files,
            config,
            sources,
            plan(now, config, means.steps.workers(), wrong.keys() - sources.keys()),
            tuple(sorted(_edited(present, good, files))),
        )

    def _known(self, name: str, config: Config) -> bool:
        """Whether that model could not be served as it should be before, either, and its settings
        are the same: a box with one broken model can still be configured."""
        means = self._means
        told = name in means.refused or name in means.instead
        return told and means.live.config.models.get(name) == config.models[name]

    # Changing

    async def reload(self, who: str = "SIGHUP") -> Proposal:
        """What the files say, when all that was asked for before is done. Several that wait are
        one. Raises `BadConfig`, and `Worse` when it was taken back."""
        if self._next is None:
            self._next = asyncio.create_task(self._reload_in_turn(who), name="reload-waiting")
        return await asyncio.shield(self._next)

    async def _reload_in_turn(self, who: str) -> Proposal:
        try:
            while self.busy and self.change is not None:
                await self.change.over.wait()
        finally:
            # From here on the files are read: who comes now has seen them later.
            self._next = None
        change = await self.begin(Why.RELOAD, who)
        await change.over.wait()
        if change.error is not None:
            raise change.error
        assert change.proposal is not None
        return change.proposal

    async def begin(
        self,
        why: Why,
        who: str,
        candidate: Candidate | None = None,
        *,
        seconds: float = 0.0,
    ) -> Change:
        """Begin a change, once it is known to be valid. With `RELOAD` the files are the operator's,
        and stay whatever comes of it; else they are put in place, the box is watched for `seconds`,
        and the files of before come back when it gets worse.

        Raises `CallerError`, of which `BadConfig` is one, and then nothing has changed.
        """
        if self.busy:
            raise CallerError(
                "the configuration is being changed already; try again when that is done "
                "(hxctl events)",
                status=409,
                code="config_busy",
                retry_after=RETRY_AFTER,
            )
        accepted = asyncio.get_running_loop().create_future()
        change = self.change = Change(why, who, self._means.clock.wall(), accepted)
        self._past.append(change)
        self._task = asyncio.create_task(
            self._live(change, self._make(change, candidate or Candidate(), seconds)),
            name="reconfigure",
        )
        await asyncio.shield(accepted)
        return change

    def resume(self, leftover: Leftover) -> None:
        """Take up what a former daemon left unfinished, or tell what became of it."""
        if leftover.record is None and leftover.reason is None:
            return
        change = self.change = Change(
            leftover.why, leftover.who, leftover.began, asyncio.get_running_loop().create_future(),
            revision=leftover.revision,
        )  # fmt: skip
        self._past.append(change)
        if leftover.record is None:
            self._told(change, "rolled_back", reason=leftover.reason)
            change.end(Phase.ROLLED_BACK, Worse(f"the change was taken back: {leftover.reason}"))
            return
        self._unfinished = leftover.record
        finishing = self._live(change, self._finish(change, leftover.record))
        self._task = asyncio.create_task(finishing, name="reconfigure")

    async def aclose(self) -> None:
        """What is half-way stays so. The next daemon goes on with an apply, and takes the files of
        a reload."""
        tasks = [task for task in (self._task, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if (record := self._unfinished) is not None:
            # Nothing has failed: this daemon does not count among those that died of it.
            await self._noted(msgspec.structs.replace(record, attempts=record.attempts - 1))
            self._unfinished = None

    async def _live(self, change: Change, doing: Coroutine[Any, Any, None]) -> None:
        try:
            await doing
        except HxdError as error:
            self._told(change, "refused", reason=str(error))
            change.end(Phase.REFUSED, error)
        except Exception as error:  # the boundary of a change, as of a request
            log.exception("a change of the configuration failed inside hxd")
            change.end(Phase.REFUSED, HxdError(f"something broke inside hxd: {error}"))
        finally:
            self._means.listener.release()
            # Cancelled: the daemon ends.
            if not change.over.is_set():
                change.end(Phase.REFUSED, HxdError("the daemon is shutting down"))

    async def _make(self, change: Change, candidate: Candidate, seconds: float) -> None:
        means = self._means
        before, conditions = means.live.config, means.conditions()
        proposal = change.proposal = await self.propose(candidate)
        installs = change.why is not Why.RELOAD
        if installs and proposal.edited and not candidate.forced:
            raise CallerError(
                f"{', '.join(map(visible, proposal.edited))}: edited since it was applied, and "
                "would be overwritten. hxctl reload applies the edits, hxctl config diff shows "
                "them, --force overwrites them",
                status=412,
                code="config_edited",
            )
        if candidate.expected is not None and candidate.expected != digests(proposal.files):
            raise CallerError(
                "the files have changed since the plan was shown; look at it once more",
                status=412,
                code="config_changed",
            )
        means.steps.check_free(proposal.plan)
        try:
            await means.listener.hold(proposal.config.listen.http)
        except CannotListen as error:
            raise BadConfig(f"{proposal.config.at('listen.http')}: {error}") from None
        good, former = await self._way_back()
        revision = await asyncio.to_thread(
            means.history.record, proposal.files, change.why, change.who, means.clock.wall()
        )
        change.revision = revision.number
        # One that was there before holds again when this is taken back.
        anew = revision.outcome is not Outcome.APPLIED
        if installs and anew:
            try:
                await self._put_on_record(change, good, seconds, conditions)
            except HxdError as error:
                await self._settle(change, Outcome.ROLLED_BACK, str(error))
                raise
        self._told(change, "begins", plan=proposal.plan.sentence)
        change.phase = Phase.CHANGING
        change.accept()

        async def take() -> None:
            if installs:
                await asyncio.to_thread(install, before.origin, proposal.files, self._state)
            await means.steps.take(
                proposal.plan, proposal.config, proposal.sources, self._step(change)
            )
            await self._watch(change, seconds, conditions)

        back = _WayBack(before, former, proposal.files if installs else None)
        if await self._holds(change, take, back, anew) and (later := proposal.plan.needs_restart):
            log.warning("%s: what is set there holds from the next start", ", ".join(later))

    async def _finish(self, change: Change, record: Unfinished) -> None:
        """What `_make` has left to do in a daemon that has started with the new files."""
        means = self._means
        now = means.live.config
        former = await asyncio.to_thread(means.history.read, record.former)
        ours = await asyncio.to_thread(means.history.read, record.revision)
        before = await asyncio.to_thread(load_as, former, now.origin)
        unable = {
            condition.within or condition.subject
            for condition in record.before
            if TABLE[condition.code].severity is Severity.CRITICAL
        }
        self._told(change, "resumed", attempts=record.attempts)
        change.phase = Phase.CHANGING
        change.accept()

        async def settle() -> None:
            await self.settled.wait()
            await means.steps.settle(unable)
            await self._watch(change, record.left(means.clock.wall()), record.before)

        await self._holds(change, settle, _WayBack(effective(before, now), former, ours), True)

    async def _holds(
        self,
        change: Change,
        attempt: Callable[[], Awaitable[None]],
        back: _WayBack,
        anew: bool,
    ) -> bool:
        """Whether `attempt` came to its end; if not, all is as before."""
        try:
            await attempt()
        except Exception as error:  # whatever it was, the box must not stay half-way
            if not isinstance(error, HxdError):
                log.exception("a change of the configuration failed inside hxd")
                error = HxdError(f"something broke inside hxd: {error}")
            change.phase, change.until = Phase.GOING_BACK, None
            if (record := self._unfinished) is not None:
                await self._noted(msgspec.structs.replace(record, reason=str(error)))
            restored = back.ours is None or await self._restore(back.former, back.ours)
            await self._back(back.before)
            if anew:
                await self._settle(change, Outcome.ROLLED_BACK, str(error))
            if restored:
                await self._off_record()
            self._told(change, "rolled_back", reason=str(error))
            change.end(Phase.ROLLED_BACK, Worse(f"the change was taken back: {error}"))
            return False
        await self._settle(change, Outcome.APPLIED)
        await self._off_record()
        plan = {} if change.proposal is None else {"plan": change.proposal.plan.sentence}
        self._told(change, "applied", **plan)
        change.end(Phase.APPLIED)
        return True

    async def _watch(self, change: Change, seconds: float, before: Iterable[Condition]) -> None:
        """Raises `Worse`."""
        means, now = self._means, self._means.clock.wall()
        change.phase, change.until = Phase.WATCHING, now + seconds
        self._told(change, "watching", seconds=round(seconds, 1))
        if (record := self._unfinished) is not None and record.watching is None:
            await self._noted(msgspec.structs.replace(record, watching=now))
        worse = await watch(seconds, before, means.conditions, means.clock)
        if worse is not None:
            raise Worse(
                f"the box got worse: {TABLE[worse.code].title} ({worse.subject}: {worse.detail})"
            )

    # For the next daemon

    async def _way_back(self) -> tuple[int, Files]:
        """The revision to go back to, and its files."""
        history, now = self._means.history, self._means.clock.wall()
        good, former = await self.holding()
        try:
            if good is not None:
                await asyncio.to_thread(history.read, good.number)
        except DamagedRevision:
            good = None
        if good is None:
            # The disk was full at the start, perhaps.
            good = await asyncio.to_thread(history.record, former, Why.START, "start", now)
            await asyncio.to_thread(history.settle, good.number, Outcome.APPLIED)
        return good.number, former

    async def _put_on_record(
        self, change: Change, former: int, seconds: float, conditions: list[Condition]
    ) -> None:
        """Raises `CannotInstall`."""
        assert change.revision is not None
        record = Unfinished(
            revision=change.revision,
            former=former,
            why=change.why,
            who=change.who,
            began=change.began,
            seconds=seconds,
            runtime=str(self._means.live.config.paths.runtime.absolute()),
            before=tuple(conditions),
        )
        await asyncio.to_thread(self._place.begin, record)
        self._unfinished = record

    async def _noted(self, record: Unfinished) -> None:
        self._unfinished = record
        try:
            await asyncio.to_thread(self._place.write, record)
        except OSError as error:
            log.error("how far the change is can't be kept: %s", error.strerror)

    async def _off_record(self) -> None:
        if self._unfinished is not None:
            self._unfinished = None
            await asyncio.to_thread(self._place.clear)

    @property
    def _place(self) -> Place:
        return Place(self._means.live.config.origin, self._state.absolute())

    @property
    def _state(self) -> Path:
        return self._means.live.config.paths.state / HISTORY

    def _step(self, change: Change) -> Callable[[Step, str], None]:
        def told(step: Step, state: str) -> None:
            change.told(step, state)
            self._told(change, f"{step.act.value} {state}", model=step.name)

        return told

    def _told(self, change: Change, step: str, **detail: Any) -> None:
        self._means.events.record(
            "config", "", step, why=change.why.value, who=change.who, revision=change.revision,
            **detail,
        )  # fmt: skip

    async def _settle(self, change: Change, outcome: Outcome, reason: str = "") -> None:
        history = self._means.history
        try:
            await asyncio.to_thread(history.settle, change.revision or 0, outcome, reason)
        except HxdError as error:
            log.error("revision %s: its outcome can't be kept: %s", change.revision, error)

    async def _restore(self, former: Files, ours: Files) -> bool:
        """The files of before, unless somebody has changed them in the meantime. False when the
        next start must try again."""
        origin = self._means.live.config.origin
        try:
            if await self.on_disk() == ours:
                await asyncio.to_thread(install, origin, former, self._state)
            elif await self.on_disk() != former:
                log.error("the files of %s changed meanwhile, and stay as they are", origin)
        except HxdError as error:
            log.error("the files of %s can't be put back: %s", origin, error)
            return False
        return True

    async def _back(self, before: Config) -> None:
        """To `before`, as far as that is possible; the models that fail it keep what they have."""
        means = self._means
        try:
            sources, wrong = await asyncio.to_thread(means.inspect, before)
            for name, error in wrong.items():
                log.error("models.%s.%s: %s", name, error.key, error)
            back = plan(
                means.live.config, before, means.steps.workers(), wrong.keys() - sources.keys()
            )
            await means.steps.take(back, before, sources, lambda step, state: None, strict=False)
        except HxdError as error:
            log.error("going back failed in part: %s", error)


def _edited(present: Files, good: Files, files: Files) -> set[str]:
    """Files that are neither as they were applied nor as they are to be."""
    return {
        name
        for name in present.keys() | good.keys()
        if present.get(name) not in (good.get(name), files.get(name))
    }

"""The way of a change of the configuration: validated first and whole, then step by step, and back
again when a step fails or the box is worse off. What did not change is not touched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hxd.clock import Clock
from hxd.conditions import TABLE, Condition, Severity
from hxd.config import Config
from hxd.config.history import History, Outcome, Why, digests
from hxd.config.live import Live
from hxd.config.load import load_as
from hxd.config.masking import visible
from hxd.config.plan import Step, plan
from hxd.config.unfinished import Unfinished
from hxd.daemon.config_change import BadConfig, Candidate, Change, Files, Phase
from hxd.daemon.config_check import Proposer
from hxd.daemon.config_files import ConfigFiles
from hxd.daemon.config_record import OnRecord
from hxd.daemon.config_steps import Steps, Worse, effective
from hxd.daemon.config_watch import watch
from hxd.daemon.events import Events
from hxd.daemon.request.listener import CannotListen, Listener
from hxd.errors import CallerError, HxdError

log = logging.getLogger("hxd.config")


@dataclass(frozen=True)
class _WayBack:
    """What held before. `ours` are the files that take the place of `former`; None when they are
    the operator's, who has put them there."""

    before: Config
    former: Files
    ours: Files | None


@dataclass(frozen=True)
class Means:
    """What a change works on. `conditions` are those that hold now."""

    live: Live
    history: History
    files: ConfigFiles
    proposer: Proposer
    steps: Steps
    listener: Listener
    conditions: Callable[[], list[Condition]]
    events: Events
    clock: Clock


class Course:
    """`settled` is set once the rollouts of a former daemon go on."""

    def __init__(
        self, change: Change, means: Means, record: OnRecord, settled: asyncio.Event
    ) -> None:
        self._change = change
        self._means = means
        self._record = record
        self._settled = settled

    async def make(self, candidate: Candidate, seconds: float) -> None:
        """The box is watched for `seconds`. Raises `HxdError` as long as nothing has changed."""
        means, change = self._means, self._change
        before, conditions = means.live.config, means.conditions()
        proposal = change.proposal = await means.proposer.propose(candidate)
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
        good, former = await means.files.way_back(means.clock.wall())
        revision = await asyncio.to_thread(
            means.history.record, proposal.files, change.why, change.who, means.clock.wall()
        )
        change.revision = revision.number
        # One that was there before holds again when this is taken back.
        anew = revision.outcome is not Outcome.APPLIED
        if installs and anew:
            try:
                await self._record.begin(change, good, seconds, conditions)
            except HxdError as error:
                await self._settle(Outcome.ROLLED_BACK, str(error))
                raise
        self._told("begins", plan=proposal.plan.sentence)
        change.phase = Phase.CHANGING
        change.accept()

        async def take() -> None:
            if installs:
                await means.files.put(proposal.files)
            await means.steps.take(proposal.plan, proposal.config, proposal.sources, self._step)
            await self._watch(seconds, conditions)

        back = _WayBack(before, former, proposal.files if installs else None)
        if await self._holds(take, back, anew) and (later := proposal.plan.needs_restart):
            log.warning("%s: what is set there holds from the next start", ", ".join(later))

    async def finish(self, record: Unfinished) -> None:
        """What `make` has left to do in a daemon that has started with the new files."""
        means, change = self._means, self._change
        now = means.live.config
        former = await asyncio.to_thread(means.history.read, record.former)
        ours = await asyncio.to_thread(means.history.read, record.revision)
        before = await asyncio.to_thread(load_as, former, now.origin)
        unable = {
            condition.within or condition.subject
            for condition in record.before
            if TABLE[condition.code].severity is Severity.CRITICAL
        }
        self._told("resumed", attempts=record.attempts)
        change.phase = Phase.CHANGING
        change.accept()

        async def settle() -> None:
            await self._settled.wait()
            await means.steps.settle(unable)
            await self._watch(record.left(means.clock.wall()), record.before)

        await self._holds(settle, _WayBack(effective(before, now), former, ours), True)

    async def _holds(
        self,
        attempt: Callable[[], Awaitable[None]],
        back: _WayBack,
        anew: bool,
    ) -> bool:
        """Whether `attempt` came to its end; if not, all is as before."""
        change = self._change
        try:
            await attempt()
        except Exception as error:  # whatever it was, the box must not stay half-way
            if not isinstance(error, HxdError):
                log.exception("a change of the configuration failed inside hxd")
                error = HxdError(f"something broke inside hxd: {error}")
            change.phase, change.until = Phase.GOING_BACK, None
            await self._record.going_back(str(error))
            restored = back.ours is None or await self._means.files.restore(back.former, back.ours)
            await self._back(back.before)
            if anew:
                await self._settle(Outcome.ROLLED_BACK, str(error))
            if restored:
                await self._record.clear()
            self._told("rolled_back", reason=str(error))
            change.end(Phase.ROLLED_BACK, Worse(f"the change was taken back: {error}"))
            return False
        await self._settle(Outcome.APPLIED)
        await self._record.clear()
        plan = {} if change.proposal is None else {"plan": change.proposal.plan.sentence}
        self._told("applied", **plan)
        change.end(Phase.APPLIED)
        return True

    async def _watch(self, seconds: float, before: Iterable[Condition]) -> None:
        """Raises `Worse`."""
        means, now = self._means, self._means.clock.wall()
        self._change.phase, self._change.until = Phase.WATCHING, now + seconds
        self._told("watching", seconds=round(seconds, 1))
        await self._record.watching(now)
        worse = await watch(seconds, before, means.conditions, means.clock)
        if worse is not None:
            raise Worse(
                f"the box got worse: {TABLE[worse.code].title} ({worse.subject}: {worse.detail})"
            )

    def _step(self, step: Step, state: str) -> None:
        self._change.told(step, state)
        self._told(f"{step.act.value} {state}", model=step.name)

    def _told(self, step: str, **detail: Any) -> None:
        told(self._means.events, self._change, step, **detail)

    async def _settle(self, outcome: Outcome, reason: str = "") -> None:
        history, change = self._means.history, self._change
        try:
            await asyncio.to_thread(history.settle, change.revision or 0, outcome, reason)
        except HxdError as error:
            log.error("revision %s: its outcome can't be kept: %s", change.revision, error)

    async def _back(self, before: Config) -> None:
        """To `before`, as far as that is possible; the models that fail it keep what they have."""
        means = self._means
        try:
            sources, wrong = await asyncio.to_thread(means.proposer.inspect, before)
            for name, error in wrong.items():
                log.error("models.%s.%s: %s", name, error.key, error)
            back = plan(
                means.live.config, before, means.steps.workers(), wrong.keys() - sources.keys()
            )
            await means.steps.take(back, before, sources, lambda step, state: None, strict=False)
        except HxdError as error:
            log.error("going back failed in part: %s", error)


def told(events: Events, change: Change, step: str, **detail: Any) -> None:
    """One event of a change."""
    events.record(
        "config", "", step, why=change.why.value, who=change.who, revision=change.revision,
        **detail,
    )  # fmt: skip

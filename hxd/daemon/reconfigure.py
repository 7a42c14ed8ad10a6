"""Changes the configuration of the daemon that runs: validated first and whole, then step by step,
and back again when a step fails or the box is worse off. What did not change is not touched.

One change at a time. It belongs to the daemon: who has asked for it may leave.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hxd.clock import Clock
from hxd.conditions import TABLE, Condition
from hxd.config import Config
from hxd.config.files import snapshot
from hxd.config.history import History, Outcome, Revision, Why
from hxd.config.install import install
from hxd.config.live import Live
from hxd.config.load import load_as
from hxd.config.masking import visible
from hxd.config.plan import Plan, Step, plan
from hxd.daemon.config_steps import Steps, Worse, effective
from hxd.daemon.config_watch import watch
from hxd.daemon.events import Events
from hxd.daemon.store.sources import Source, SourceError
from hxd.errors import CallerError, ConfigError, HxdError

log = logging.getLogger("hxd.config")

Files = Mapping[str, bytes]
# Below the state folder.
HISTORY = "config-history"
RETRY_AFTER = 2.0  # seconds


class BadConfig(CallerError):
    code = "bad_config"


class Phase(enum.StrEnum):
    """From `CHECKING` on, in this order; one of the last three is the end."""

    CHECKING = "checking"
    CHANGING = "changing"
    WATCHING = "watching"
    GOING_BACK = "going back"
    APPLIED = "applied"
    ROLLED_BACK = "rolled back"
    REFUSED = "refused"


OVER = (Phase.APPLIED, Phase.ROLLED_BACK, Phase.REFUSED)


@dataclass(frozen=True)
class Candidate:
    """Files that somebody proposes: a whole configuration, or with `whole` false some of its files,
    and the others as they lie there. `files` None is what lies there. `forced`: instead of what was
    edited there and never applied."""

    files: Files | None = None
    whole: bool = True
    forced: bool = False

    def beside(self, present: Files) -> Files:
        if self.files is None:
            return present
        return self.files if self.whole else {**present, **self.files}


@dataclass(frozen=True)
class Proposal:
    """A configuration that is valid in every respect, and what it takes to get there. `sources` are
    what its models load, `edited` the files that would be replaced though somebody has changed them
    since they were applied."""

    files: Files
    config: Config
    sources: Mapping[str, Source]
    plan: Plan
    edited: tuple[str, ...] = ()


@dataclass(eq=False)
class Change:
    """One change on its way, and how it ended. `began` is in Unix seconds, `left` what of the time
    of watching is left. `accepted` is set once it is known to be valid and begins, or has the
    reason why it does not."""

    why: Why
    who: str
    began: float
    accepted: asyncio.Future[None]
    phase: Phase = Phase.CHECKING
    proposal: Proposal | None = None
    revision: int | None = None
    error: HxdError | None = None
    steps: list[dict[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, step: Step, state: str) -> None:
        if state == "begins":
            self.steps.append({"act": step.act.value, "name": step.name, "state": "under way"})
        else:
            self.steps[-1]["state"] = state

    def accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def end(self, phase: Phase, error: HxdError | None = None) -> None:
        self.phase, self.error = phase, error
        if error is not None and not self.accepted.done():
            self.accepted.set_exception(error)
            # Who has asked may have left.
            self.accepted.exception()
        self.accept()
        self.over.set()

    def body(self) -> dict[str, Any]:
        return {
            "why": self.why.value,
            "who": self.who,
            "began": self.began,
            "phase": self.phase.value,
            "running": self.phase not in OVER,
            "revision": self.revision,
            "reason": None if self.error is None else str(self.error),
            "plan": None if self.proposal is None else self.proposal.plan.body(),
            "lines": [] if self.proposal is None else self.proposal.plan.lines(),
            "steps": self.steps,
        }


@dataclass(frozen=True)
class Means:
    """What a change works on. `inspect` finds what the models of a configuration load, and what is
    wrong with which; it blocks. `conditions` are those that hold now."""

    live: Live
    history: History
    steps: Steps
    refused: Mapping[str, SourceError]
    instead: Mapping[str, SourceError]
    inspect: Callable[[Config], tuple[Mapping[str, Source], Mapping[str, SourceError]]]
    conditions: Callable[[], list[Condition]]
    events: Events
    clock: Clock


class Reconfiguration:
    """`change` is the one that runs, or the last one."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.change: Change | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Task[Proposal] | None = None

    @property
    def busy(self) -> bool:
        return self.change is not None and not self.change.over.is_set()

    # Looking

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
        if good is None:
            return None, await self.on_disk()
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
            f"{config.origin}: models.{name}.{error.key}: {error}"
            for name, error in wrong.items()
            if not self._known(name, config)
        ]
        if not config.auth.required and not now.listen.http.loopback:
            # The file says loopback, but the socket is open until the next start.
            findings.append(
                f"{config.origin}: auth.required: false is refused while hxd listens on "
                f"{now.listen.http}; change listen.http first, and restart"
            )
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
        self._task = asyncio.create_task(
            self._live(change, candidate or Candidate(), seconds), name="reconfigure"
        )
        await asyncio.shield(accepted)
        return change

    async def aclose(self) -> None:
        """What is half-way stays so; the next daemon takes what lies on the disk, whole."""
        tasks = [task for task in (self._task, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, change: Change, candidate: Candidate, seconds: float) -> None:
        try:
            await self._make(change, candidate, seconds)
        except HxdError as error:
            self._means.events.record(
                "config", "", "refused", why=change.why.value, who=change.who, reason=str(error)
            )
            change.end(Phase.REFUSED, error)
        except Exception as error:  # the boundary of a change, as of a request
            log.exception("a change of the configuration failed inside hxd")
            change.end(Phase.REFUSED, HxdError(f"something broke inside hxd: {error}"))
        finally:
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
        means.steps.check_free(proposal.plan)
        _, former = await self.holding()
        revision = await asyncio.to_thread(
            means.history.record, proposal.files, change.why, change.who, means.clock.wall()
        )
        change.revision = revision.number
        self._told(change, "begins", plan=proposal.plan.sentence)
        change.phase = Phase.CHANGING
        change.accept()
        try:
            if installs:
                await asyncio.to_thread(install, before.origin, proposal.files, self._state)
            await means.steps.take(
                proposal.plan, proposal.config, proposal.sources, self._step(change)
            )
            change.phase = Phase.WATCHING
            worse = await watch(seconds, conditions, means.conditions, means.clock)
            if worse is not None:
                raise Worse(
                    f"the box got worse: {TABLE[worse.code].title} ({worse.subject}: "
                    f"{worse.detail})"
                )
        except Exception as error:  # whatever it was, the box must not stay half-way
            if not isinstance(error, HxdError):
                log.exception("a change of the configuration failed inside hxd")
                error = HxdError(f"something broke inside hxd: {error}")
            change.phase = Phase.GOING_BACK
            if installs:
                await self._restore(former, proposal.files)
            await self._back(before)
            # One that was there before holds again.
            if revision.outcome is not Outcome.APPLIED:
                await self._settle(change, Outcome.ROLLED_BACK, str(error))
            self._told(change, "rolled_back", reason=str(error))
            change.end(Phase.ROLLED_BACK, Worse(f"the change was taken back: {error}"))
            return
        await self._settle(change, Outcome.APPLIED)
        self._told(change, "applied", plan=proposal.plan.sentence)
        if later := proposal.plan.needs_restart:
            log.warning("%s: what is set there holds from the next start on", ", ".join(later))
        change.end(Phase.APPLIED)

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

    async def _restore(self, former: Files, ours: Files) -> None:
        """The files of before, unless somebody has changed them in the meantime."""
        origin = self._means.live.config.origin
        try:
            if await self.on_disk() == ours:
                await asyncio.to_thread(install, origin, former, self._state)
            elif await self.on_disk() != former:
                log.error("the files of %s changed meanwhile, and stay as they are", origin)
        except HxdError as error:
            log.error("the files of %s can't be put back: %s", origin, error)

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

"""Changes the configuration of the daemon that runs: validated first and whole, then step by step,
and back again when a step fails or the box is worse off. What did not change is not touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hxd.clock import Clock
from hxd.conditions import TABLE, Condition, Severity
from hxd.config import Config
from hxd.config import history as histories
from hxd.config.files import snapshot
from hxd.config.history import History, Revision, Why
from hxd.config.install import install
from hxd.config.live import Live
from hxd.config.load import load_as
from hxd.config.plan import Act, Plan, Step, plan
from hxd.daemon.events import Events
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.models import flatten
from hxd.daemon.request.releases import Releases
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.sources import AS_CONFIGURED, Source, SourceError
from hxd.daemon.supervise.memory import Room, automatic_budget
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError, ConfigError, HxdError

log = logging.getLogger("hxd.config")

T = TypeVar("T")
Files = Mapping[str, bytes]
# Below the state folder.
HISTORY = "config-history"
LOOK_EVERY = 0.5  # seconds, while the box is watched


class Worse(HxdError):
    """A step of a change failed, or the box is worse off than before."""

    status = 409
    type = "invalid_request_error"
    code = "config_rolled_back"


class BadConfig(CallerError):
    code = "bad_config"


@dataclass(frozen=True)
class Proposal:
    """A configuration that is valid in every respect, and what it takes to get there. `sources` are
    what its models load."""

    files: Files
    config: Config
    sources: Mapping[str, Source]
    plan: Plan


@dataclass(frozen=True)
class Means:
    """What a change works on. `inspect` finds sources and what is wrong; it blocks. `routes` is the
    catalog's own table, `conditions` are those that hold now."""

    live: Live
    history: History
    rollouts: Rollouts
    deployments: dict[str, Deployment]
    releases: Releases
    supervisor: Supervisor
    room: Room
    routes: dict[str, list[str]]
    refused: dict[str, SourceError]
    instead: dict[str, SourceError]
    inspect: Callable[[Config], tuple[Mapping[str, Source], list[str]]]
    conditions: Callable[[], list[Condition]]
    events: Events
    clock: Clock


class Reconfiguration:
    """One change at a time."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[Any] | None = None

    @property
    def busy(self) -> bool:
        return self._changing.locked()

    # Looking

    async def on_disk(self) -> Files:
        """Raises `BadConfig`."""
        try:
            return await asyncio.to_thread(snapshot, self._means.live.config.origin)
        except ConfigError as error:
            raise BadConfig(str(error)) from None

    async def propose(self, files: Files) -> Proposal:
        """Raises `BadConfig` with every fault that there is."""
        means = self._means
        try:
            config = await asyncio.to_thread(load_as, files, means.live.config.origin)
            effective = _effective(config, means.live.config)
            sources, findings = await asyncio.to_thread(means.inspect, effective)
        except ConfigError as error:
            raise BadConfig(str(error)) from None
        if findings:
            raise BadConfig("\n".join(findings))
        served = {
            name: len(means.supervisor.replicas.get(deployment.current.source.key, ()))
            for name, deployment in means.deployments.items()
        }
        return Proposal(files, config, sources, plan(means.live.config, config, served))

    # Changing

    async def reload(self) -> Proposal:
        """What the files say now. Raises `BadConfig`, and `Worse` when it was taken back; the files
        are the operator's and stay."""
        return await self._shielded(self._reload())

    async def apply(self, files: Files, watch: float, who: str) -> tuple[Proposal, Revision]:
        """Put `files` in place and make them hold; watch the box for `watch` seconds, and go back
        when it gets worse. Raises `BadConfig`, `Worse`."""
        return await self._shielded(self._apply(files, Why.APPLY, watch, who))

    async def roll_back(
        self, number: int | None, watch: float, who: str
    ) -> tuple[Proposal, Revision]:
        """To the revision before the one that holds, or to the one named."""
        history = self._means.history
        if number is None:
            revisions = await asyncio.to_thread(history.all)
            current = next(
                (r.number for r in reversed(revisions) if r.outcome is histories.Outcome.APPLIED),
                None,
            )
            found = await asyncio.to_thread(history.last_good, current)
            if found is None:
                raise CallerError(
                    "there is no earlier configuration to go back to",
                    status=409,
                    code="no_such_revision",
                )
            number = found.number
        files = await asyncio.to_thread(history.read, number)
        return await self._shielded(self._apply(files, Why.ROLLBACK, watch, who))

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """A client that leaves does not leave a change half-way."""
        if self.busy:
            work.close()
            raise CallerError(
                "the configuration is being changed already; try again when that is done",
                status=409,
                code="config_busy",
            )
        self._task = task = asyncio.create_task(work, name="reconfigure")
        return await asyncio.shield(task)

    async def _reload(self) -> Proposal:
        async with self._changing:
            means = self._means
            try:
                proposal = await self.propose(await self.on_disk())
            except BadConfig as error:
                means.events.record("config", "", "refused", why="reload", reason=str(error))
                raise
            revision = await self._recorded(proposal, Why.RELOAD, "reload")
            before = means.live.config
            try:
                await self._change(proposal)
            except HxdError as error:
                await self._back(before, revision, str(error))
                raise Worse(f"the reload was taken back: {error}") from None
            await self._settle(revision, histories.Outcome.APPLIED)
            return proposal

    async def _apply(
        self, files: Files, why: Why, watch: float, who: str
    ) -> tuple[Proposal, Revision]:
        async with self._changing:
            means = self._means
            before, conditions = means.live.config, means.conditions()
            origin = before.origin
            proposal = await self.propose(files)
            former = await self._former_files()
            revision = await self._recorded(proposal, why, who)
            await asyncio.to_thread(install, origin, files, self._state)
            try:
                await self._change(proposal)
                await self._watch(watch, conditions)
            except HxdError as error:
                await asyncio.to_thread(install, origin, former, self._state)
                await self._back(before, revision, str(error))
                raise Worse(f"the change was taken back: {error}") from None
            await self._settle(revision, histories.Outcome.APPLIED)
            return proposal, revision

    @property
    def _state(self) -> Path:
        return self._means.live.config.paths.state / HISTORY

    async def _former_files(self) -> Files:
        """What to go back to: what holds now, as it was applied; else what lies there."""
        good = await asyncio.to_thread(self._means.history.last_good)
        if good is not None:
            return await asyncio.to_thread(self._means.history.read, good.number)
        return await self.on_disk()

    async def _recorded(self, proposal: Proposal, why: Why, who: str) -> Revision:
        means = self._means
        revision = await asyncio.to_thread(
            means.history.record, proposal.files, why, who, means.clock.wall()
        )
        means.events.record(
            "config", "", "begins", revision=revision.number, why=why.value,
            plan=proposal.plan.sentence,
        )  # fmt: skip
        return revision

    async def _settle(
        self, revision: Revision, outcome: histories.Outcome, reason: str = ""
    ) -> None:
        self._means.events.record(
            "config", "", outcome.value.replace(" ", "_"), revision=revision.number, reason=reason
        )
        try:
            await asyncio.to_thread(self._means.history.settle, revision.number, outcome, reason)
        except HxdError as error:
            log.error("revision %d: its outcome can't be kept: %s", revision.number, error)

    async def _back(self, before: Config, revision: Revision, why: str) -> None:
        """To `before`, as far as that is possible; the models that fail it keep what they have."""
        means = self._means
        log.error("configuration taken back: %s", why)
        try:
            sources, findings = await asyncio.to_thread(means.inspect, before)
            for finding in findings:
                log.error("%s", finding)
            served = {
                name: len(means.supervisor.replicas.get(deployment.current.source.key, ()))
                for name, deployment in means.deployments.items()
            }
            back = plan(means.live.config, before, served, set(before.models) - set(sources))
            await self._change(Proposal({}, before, sources, back), strict=False)
        except HxdError as error:
            log.error("going back failed in part: %s", error)
        await self._settle(revision, histories.Outcome.ROLLED_BACK, why)

    async def _change(self, proposal: Proposal, *, strict: bool = True) -> None:
        means = self._means
        means.live.config = _effective(proposal.config, means.live.config)
        for step in proposal.plan.steps():
            try:
                await self._do(step, proposal)
            except HxdError as error:
                if strict:
                    raise
                log.error("step %s %s failed: %s", step.act.value, step.name, error)
        for name in [name for name in means.refused if name in proposal.sources]:
            del means.refused[name]
        for table in (means.refused, means.instead):
            for name in [name for name in table if name not in proposal.config.models]:
                del table[name]

    async def _do(self, step: Step, proposal: Proposal) -> None:
        means, name = self._means, step.name
        match step.act:
            case Act.SET if not name:
                logging.getLogger().setLevel(proposal.config.log.level.upper())
                budget = proposal.config.memory.budget
                if budget is None:
                    budget = await asyncio.to_thread(automatic_budget)
                means.room.budget = budget
            case Act.SET | Act.GROW | Act.SHRINK:
                self._arrange(means.deployments[name], proposal.sources[name], step.act)
            case Act.START:
                await means.rollouts.introduce(name, proposal.sources[name])
            case Act.REPLACE:
                await self._replace(name)
            case Act.ROUTE:
                means.routes.clear()
                means.routes.update(flatten(proposal.config.routes))
            case Act.END:
                await means.rollouts.remove(name)

    def _arrange(self, deployment: Deployment, source: Source, act: Act) -> None:
        served = deployment.current
        replicas = served.source.settings.replicas
        if act is not Act.SET:
            replicas = source.settings.replicas
        # The file and version that serve are those that were chosen, whatever the names lead to.
        arranged = replace(served.source, settings=replace(source.settings, replicas=replicas))
        self._means.supervisor.resize(arranged)
        self._means.releases.arrange(served, arranged)

    async def _replace(self, name: str) -> None:
        rollout = await self._means.rollouts.begin(
            Ask(model=name, choice=AS_CONFIGURED, fresh=True, why="the configuration changed")
        )
        await rollout.over.wait()
        if rollout.phase is not Phase.DONE:
            raise Worse(f"models.{name}: {rollout.reason}")

    async def _watch(self, seconds: float, before: list[Condition]) -> None:
        """Raises `Worse` for a condition that was not there before: at once for a critical one, at
        the end for any."""
        known = {_about(condition) for condition in before}
        until = self._means.clock.now() + seconds
        while True:
            left = until - self._means.clock.now()
            new = [c for c in self._means.conditions() if _about(c) not in known]
            grave = [c for c in new if TABLE[c.code].severity is Severity.CRITICAL]
            if seconds and (grave or (left <= 0 and new)):
                worst = (grave or new)[0]
                raise Worse(
                    f"the box got worse: {TABLE[worst.code].title} ({worst.subject}: "
                    f"{worst.detail})"
                )
            if left <= 0:
                return
            await self._means.clock.sleep(min(LOOK_EVERY, left))


def _about(condition: Condition) -> tuple[str, str]:
    """Replicas come and go under new names; their model stays."""
    return condition.code, condition.within or condition.subject


def _effective(config: Config, now: Config) -> Config:
    """What of `config` can hold without a restart."""
    return replace(config, paths=now.paths, listen=replace(config.listen, http=now.listen.http))

"""Takes the steps of a plan, one after the other, in the daemon that runs. A step that starts
workers is done when they can answer. Knows nothing of files, history or going back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from hxd.clock import Clock
from hxd.config import Config, ModelSettings
from hxd.config.live import Live
from hxd.config.plan import Act, Fate, Plan, Step
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.listener import Listener
from hxd.daemon.request.models import flatten
from hxd.daemon.request.releases import Releases
from hxd.daemon.rollout.course import COMING_UP
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.reasons import DEATHS
from hxd.daemon.rollout.record import Ask, Deployed, fingerprint
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.sources import Source, SourceError
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.memory import Room, automatic_budget
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError, HxdError

log = logging.getLogger("hxd.config")

# Told of each step as it begins and when it is done.
Told = Callable[[Step, str], None]


class Worse(HxdError):
    """A step of a change failed, or the box is worse off than before."""

    status = 409
    type = "invalid_request_error"
    code = "config_rolled_back"


@dataclass(frozen=True)
class Means:
    """What the steps work on. `routes` is the catalog's own table; `refused` and `instead` are what
    the status shows; `introduced` is told of each model that is new."""

    live: Live
    rollouts: Rollouts
    deployments: dict[str, Deployment]
    releases: Releases
    supervisor: Supervisor
    room: Room
    routes: dict[str, list[str]]
    refused: dict[str, SourceError]
    instead: dict[str, SourceError]
    introduced: Callable[[str], None]
    listener: Listener
    clock: Clock


class Steps:
    def __init__(self, means: Means) -> None:
        self._means = means
        self._deaths: Counter[str] = Counter()
        # What was on record of the models that served before the last change.
        self._chosen: dict[str, Deployed] = {}
        self._turned = asyncio.Event()
        means.supervisor.listeners.append(self._changed)

    def workers(self) -> dict[str, int]:
        """Of each model that is served, how many there are to be: those that drain or are about to
        take another's place don't count."""
        return {
            name: sum(
                not replica.surplus and replica.heir_to is None
                for replica in self._means.supervisor.replicas.get(
                    deployment.current.source.key, ()
                )
            )
            for name, deployment in self._means.deployments.items()
        }

    def check_free(self, plan: Plan) -> None:
        """Raises `CallerError` for a model that changes and has a rollout under way: the one would
        undo the other."""
        for model in plan.models:
            if model.fate in (Fate.STAYS, Fate.ENDS):
                continue
            self._means.rollouts.check_not_lent(model.name)
            rollout = self._means.rollouts.of(model.name)
            if rollout is None or not rollout.running:
                continue
            raise CallerError(
                f"models.{model.name} would be changed, and a rollout of it to {rollout.target} is "
                f"{rollout.phase.value}; wait for its end, or hxctl rollback {model.name}",
                status=409,
                code="rollout_running",
            )

    async def take(
        self,
        plan: Plan,
        config: Config,
        sources: Mapping[str, Source],
        told: Told,
        *,
        strict: bool = True,
    ) -> None:
        """Afterwards `config` holds. Raises `HxdError` at the first step that fails; with `strict`
        false it goes on and says so in the log."""
        live = self._means.live
        if strict:
            ledger = self._means.rollouts.ledger
            self._chosen = {m.name: ledger.of(m.name) for m in plan.models if m.before}
        was, final = live.config, effective(config, live.config)
        starting = {m.name for m in plan.models if m.fate is Fate.STARTS}
        ending = {m.name for m in plan.models if m.fate is Fate.ENDS and m.name in was.models}
        # A box is not unready for a model that it is only about to have, and whoever still works
        # with one that ends finds its settings.
        present = {
            name: settings
            for name, settings in final.models.items()
            if name not in starting or name in was.models
        }
        present |= {name: was.models[name] for name in ending}
        live.config = replace(final, models=present)
        for step in plan.steps():
            told(step, "begins")
            try:
                await self._take(step, was, final, sources)
            except HxdError as error:
                if strict:
                    raise
                log.error("step %s %s failed: %s", step.act.value, step.name, error)
            if step.act is Act.START:
                models = {**live.config.models, step.name: final.models[step.name]}
                live.config = replace(live.config, models=models)
            told(step, "done")
        live.config = final
        self._clear(plan, final)

    async def settle(self, unable: Collection[str]) -> None:
        """In a daemon that has started with a new configuration: until all that it serves can
        answer, but for the models that could not before. Raises `Worse`."""
        means = self._means
        for name, error in means.refused.items():
            if name not in unable:
                raise Worse(f"models.{name}.{error.key}: {error}")
        for name in list(means.deployments):
            rollout = means.rollouts.of(name)
            if rollout is not None and rollout.running and rollout.ask.fresh:
                await rollout.over.wait()
                if rollout.phase is not Phase.DONE:
                    raise Worse(f"models.{name}: {rollout.reason}")
            if name not in unable and name in means.deployments:
                await self._up(name)

    def _clear(self, plan: Plan, config: Config) -> None:
        """What was said of models that are gone, or begin anew."""
        anew = {m.name for m in plan.models if m.fate in (Fate.STARTS, Fate.REPLACED) and m.after}
        for table in (self._means.refused, self._means.instead):
            for name in [name for name in table if name in anew or name not in config.models]:
                del table[name]

    async def _take(
        self, step: Step, was: Config, config: Config, sources: Mapping[str, Source]
    ) -> None:
        means, name = self._means, step.name
        match step.act:
            case Act.SET if not name:
                logging.getLogger().setLevel(config.log.level.upper())
                budget = config.memory.budget
                if budget is None:
                    budget = await asyncio.to_thread(automatic_budget)
                means.room.budget = budget
            case Act.SET | Act.SHRINK:
                self._arrange(name, step, config.models[name])
            case Act.GROW:
                await self._grow(name, step, config.models[name])
            case Act.START:
                await self._start(name, sources[name])
            case Act.REPLACE:
                await self._replace(name, was.models.get(name), config.models[name])
            case Act.ROUTE:
                means.routes.clear()
                means.routes.update(flatten(config.routes))
            case Act.END:
                await self._end(name)
            case Act.LISTEN:
                await means.listener.move(config.listen.http)

    def _arrange(self, name: str, step: Step, settings: ModelSettings) -> None:
        """The step's settings in place, and no other ones: what the workers were started with, and
        the version that was chosen, stay as they are."""
        deployment = self._means.deployments.get(name)
        if deployment is None:
            return
        served = deployment.current
        changed = {change.setting.split(".")[-1] for change in step.changes}
        if step.act is not Act.SET:
            changed.add("replicas")
        values = {key: getattr(settings, key) for key in changed}
        arranged = replace(served.source, settings=replace(served.source.settings, **values))
        self._means.supervisor.resize(arranged)
        self._means.releases.arrange(served, arranged)

    async def _grow(self, name: str, step: Step, settings: ModelSettings) -> None:
        source = self._means.deployments[name].current.source
        need = source.estimate * (settings.replicas - self.workers()[name])
        if need > self._means.room.left:
            raise CallerError(
                f"models.{name}.replicas: about {need / 1e6:.0f} MB are needed and "
                f"{max(0, self._means.room.left) / 1e6:.0f} MB of the memory budget are left; "
                "former versions that are kept warm count (hxctl models)",
                status=409,
                code="no_room",
            )
        before = {replica.id for replica in self._means.supervisor.replicas[source.key]}
        self._arrange(name, step, settings)
        await self._up(name, before)

    async def _start(self, name: str, source: Source) -> None:
        await self._means.rollouts.introduce(name, source)
        self._means.introduced(name)
        try:
            await self._up(name)
        except HxdError:
            # It never answered anybody, and is not there any more.
            await self._means.rollouts.remove(name)
            raise

    async def _up(self, name: str, before: Collection[str] = ()) -> None:
        """Until every worker that is not in `before` can answer. Raises `Worse`."""
        means, source = self._means, self._means.deployments[name].current.source
        deadline = means.clock.now() + COMING_UP + source.settings.load_time
        self._deaths.clear()
        while True:
            self._turned.clear()
            mates = means.supervisor.replicas.get(source.key, [])
            new = [r for r in mates if r.id not in before and r.heir_to is None]
            if all(replica.takes for replica in new):
                return
            problems = "; ".join(means.supervisor.problems(source.key)) or "it gave no reason"
            if sum(self._deaths[replica.id] for replica in new) >= DEATHS:
                raise Worse(f"models.{name}: its workers die: {problems}")
            if means.clock.now() >= deadline:
                raise Worse(f"models.{name}: its workers do not come up: {problems}")
            try:
                async with asyncio.timeout(1.0):
                    await self._turned.wait()
            except TimeoutError:
                pass

    async def _replace(self, name: str, was: ModelSettings | None, now: ModelSettings) -> None:
        rollouts = self._means.rollouts
        # What an operator has chosen by `hxctl swap` stays, as long as the configuration asks for
        # the same model as when it was chosen; or does so again, on the way back.
        chosen = self._chosen.get(name)
        if was is not None and fingerprint(was) == fingerprint(now):
            choice = rollouts.choice(name)
        elif chosen is not None and chosen.configured == fingerprint(now):
            choice = chosen.choice
        else:
            choice = rollouts.ledger.of(name).choice
        rollout = await rollouts.begin(
            Ask(model=name, choice=choice, fresh=True, why="the configuration changed")
        )
        await rollout.over.wait()
        if rollout.phase is not Phase.DONE:
            raise Worse(f"models.{name}: {rollout.reason}")

    async def _end(self, name: str) -> None:
        rollout = self._means.rollouts.of(name)
        if rollout is not None and rollout.phase in (Phase.PROMOTING, Phase.ROLLING_BACK):
            # Too late to be stopped, and soon over.
            await rollout.over.wait()
        if name in self._means.deployments:
            await self._means.rollouts.remove(name)

    def _changed(self, replica: Replica, old: State, new: State) -> None:
        """A transition; one of the supervisor's listeners."""
        if new is State.FAILED and not replica.blameless:
            self._deaths[replica.id] += 1
        self._turned.set()


def effective(config: Config, now: Config) -> Config:
    """What of `config` can hold without a restart."""
    return replace(config, paths=now.paths)

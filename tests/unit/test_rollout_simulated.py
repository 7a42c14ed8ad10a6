"""Versions come and go for hours while workers fail in every way: no request is lost that failover
promises, and of what went nothing is left. On a loop whose time is virtual."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hxd.daemon.events import Events
from hxd.daemon.request.admit import Gate
from hxd.daemon.request.breaker import State as BreakerState
from hxd.daemon.request.deployment import NOBODY, Asker, Deployment, Served
from hxd.daemon.request.models import Catalog
from hxd.daemon.request.releases import Releases
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.record import Ask, Record
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.sources import Choice, Source
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.memory import Room
from hxd.daemon.supervise.replica import Replica
from hxd.errors import CallerError, HxdError
from tests.rollouts import a_source
from tests.simulation import DRAIN, SimulatedWorker, World, drawn
from tests.unit.test_simulated_faults import (
    SETTLING,
    Clients,
    Faults,
    Wish,
    in_virtual_time,
    seeds,
)

MODELS = {"big": ("v1", 3), "small": ("v1", 2), "odd": ("v2", 2)}
ROUTES = {"near": ["big", "small"], "far": ["odd", "big"]}
GRACE = 30.0
BAD = 9  # a version whose workers die as they load


class _InService(Mapping[str, Served]):
    """Of each model, the release that is in service now."""

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._deployments = deployments

    def __getitem__(self, name: str) -> Served:
        return self._deployments[name].current

    def __iter__(self) -> Iterator[str]:
        return iter(self._deployments)

    def __len__(self) -> int:
        return len(self._deployments)


@dataclass(frozen=True)
class _Visited(Catalog):
    """Where every request is of another conversation."""

    rng: random.Random = field(default_factory=random.Random)

    def chain(self, reference: str, asker: Asker = NOBODY) -> list[Served]:
        return super().chain(reference, Asker(str(self.rng.random())))


class Fleet(World):
    """A world whose models have versions, all with one vocabulary and the same answers."""

    def __init__(self, seed: object, folder: Path, *, watched: bool = True) -> None:
        super().__init__(seed, MODELS, {**ROUTES}, watched=watched)
        rng = random.Random(drawn(seed, "releases"))
        self.releases = Releases(
            self.supervisor, self.clock, rng, lambda replica, busy: None, self.supervisor.hasten
        )
        self.supervisor._missed = self.releases.stranded
        self.deployments: dict[str, Deployment] = {}
        for name in list(self.served):
            [*replicas] = self.supervisor.replicas[name]
            source = _plain(replicas[0].source)
            for replica in replicas:
                replica.source = source
            self.deployments[name] = Deployment(name, self.releases.open(source))
        self.rosters = self.releases.rosters
        self.served = _InService(self.deployments)  # type: ignore[assignment]
        self.catalog = _Visited(self.deployments, {}, 0, dict(ROUTES), rng=rng)
        room = Room(1 << 40)
        room.of(self.supervisor)
        self.events = Events(self.clock, folder)
        self.rollouts = Rollouts(
            Means(
                deployments=self.deployments,
                refused={},
                releases=self.releases,
                supervisor=self.supervisor,
                room=room,
                setting=self.setting,
                record=Record(folder),
                events=self.events,
                clock=self.clock,
                drain=lambda: DRAIN,
                configured=lambda model: model,
                shelf=lambda model: None,
                resolve=self._resolve,
                others=_none,
                golden=_nothing,
                label=_ignored,
                condemn=_ignored,
            )
        )

    async def _resolve(self, model: str, choice: Choice) -> Source:
        return replace(self.deployments[model].current.source, version=choice.version or 1)

    def _transition(self, replica: Replica, old: State, new: State) -> None:
        self.changed(replica.source.name)
        self.releases.changed(replica, old, new)

    def hopes(self, model: str, *, besides: Replica) -> bool:
        served = self.releases.of(besides)
        refuge = served is not None and served.refuge is not None
        return refuge or super().hopes(besides.source.key, besides=besides)

    def serves(self, model: str) -> bool:
        """By what its clients may be given: not by what comes up, drains, or is on trial."""
        deployment = self.deployments[model]
        able = {one.source.key for one in (deployment.current, deployment.warm) if one is not None}
        return any(w.serving for w in self.workers if w.replica.source.key in able)

    def line(self, worker: SimulatedWorker) -> Gate:
        served = self.releases.of(worker.replica)
        assert served is not None
        return served.gate

    def mates(self, worker: SimulatedWorker) -> list[SimulatedWorker]:
        """Of the same release; another one is a refuge, which has its own say."""
        key = worker.replica.source.key
        return [mate for mate in super().mates(worker) if mate.replica.source.key == key]

    def dooms(self, replica: Replica, state: State) -> bool:
        if replica.source.version == BAD:
            return state is State.LOADING
        return super().dooms(replica, state)


def _plain(source: Source) -> Source:
    """With a plugin, and a short grace."""
    settings = replace(source.settings, grace=GRACE)
    return replace(source, plugin=a_source("x").plugin, settings=settings)


async def _none(model: str) -> list[Choice]:
    return []


async def _nothing(source: Source) -> None:
    return None


async def _ignored(source: Source, what: str) -> None:
    return None


class Visitors(Clients):
    def _excused(self, wish: Wish, error: HxdError, names: list[str]) -> bool:
        world = self.world
        assert isinstance(world, Fleet)
        if (error.status, error.code) == (503, "model_unavailable"):
            now = world.clock.now()
            within = [world.served_within(name, now, now + 0.1) for name in names]
            return not any(within) and not any(world.serves(name) for name in names)
        return super()._excused(wish, error, names)


class Operator:
    """Swaps, tries, promotes and rolls back, by a schedule that follows from the seed."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet, self._rng = fleet, rng
        self.ends: dict[str, int] = {}

    async def work(self, until: float, every: float) -> None:
        clock, rng = self._fleet.clock, self._rng
        while clock.now() < until:
            await clock.sleep(rng.expovariate(1 / every))
            model = rng.choice(list(MODELS))
            try:
                await rng.choices([self._swap, self._back, self._promote], [6, 2, 1])[0](model)
            except CallerError as error:
                assert error.status == 409, error

    async def _swap(self, model: str) -> None:
        rng = self._rng
        choice = Choice(version=rng.choice((1, 2, 3, 4, BAD)))
        share = rng.choice((None, None, 0.1, 0.5))
        mode = rng.choice(("auto", "resource")) if share is None else "auto"
        ask = Ask(
            model=model, choice=choice, share=share, mode=mode,
            seconds=rng.choice((1.0, 20.0)), by_conversation=True,
        )  # fmt: skip
        await self._fleet.rollouts.begin(ask)

    async def _back(self, model: str) -> None:
        await self._fleet.rollouts.roll_back(model, "by hand")

    async def _promote(self, model: str) -> None:
        self._fleet.rollouts.promote(model)


async def live(seed: int, folder: Path, seconds: float, *, faults: float, changes: float) -> None:
    fleet = Fleet(seed, folder)
    clients = Visitors(fleet, random.Random(drawn(seed, "clients")))
    faulty = Faults(fleet, clients, random.Random(drawn(seed, "faults")))
    operator = Operator(fleet, random.Random(drawn(seed, "operator")))
    async with fleet:
        await fleet.clock.sleep(10)
        until = fleet.clock.now() + seconds
        work = [clients.come(until, 0.3), operator.work(until, changes)]
        if faults:
            work.append(faulty.happen(until, faults))
        await asyncio.gather(*work)
        await clients.gone()
        fleet.doomed.clear()
        for model in MODELS:
            if (last := fleet.rollouts.of(model)) is not None:
                async with asyncio.timeout(4 * 3600):
                    await last.over.wait()
        await fleet.clock.sleep(SETTLING)
        fleet.check_lasting()
        wrong = [*clients.faults, *leftovers(fleet)]
        said = "\n".join(wrong[:8])
        assert not wrong, f"HXD_SEED={seed}: {len(wrong)} wrong of {clients.ends}:\n{said}"
        assert clients.ends["done"] > sum(clients.ends.values()) / 2
        steps = {event.step for event in fleet.events.since()}
        assert {"done", "rolled_back"} <= steps


def leftovers(fleet: Fleet) -> list[str]:
    """What is left of releases that went, and what is missing of those that serve."""
    found = []
    current = {deployment.current.source.key for deployment in fleet.deployments.values()}
    for what, keys in {
        "replicas": fleet.supervisor.replicas.keys(),
        "lines": {served.source.key for served in fleet.releases},
        "rosters": fleet.releases.rosters.keys(),
    }.items():
        if set(keys) != current:
            found.append(f"{what} of {sorted(keys)}, in service is {sorted(current)}")
    for deployment in fleet.deployments.values():
        source = deployment.current.source
        if deployment.others or deployment.trial or deployment.warm:
            found.append(f"{deployment.name} has others: {deployment}")
        replicas = fleet.supervisor.replicas[source.key]
        if len(replicas) != source.settings.replicas:
            found.append(f"{source.key} has {len(replicas)} replicas")
        for replica in replicas:
            if replica.state is not State.READY:
                found.append(f"{replica.id} is {replica.state}")
            breaker = fleet.releases.rosters[source.key].breaker_state(replica)
            if breaker is not BreakerState.CLOSED:
                found.append(f"{replica.id} has its breaker {breaker}")
            if replica.worker is not None and replica.worker.link.calls:
                found.append(f"{replica.id} has calls {[*replica.worker.link.calls]}")
        gate = deployment.current.gate
        if gate.running or gate.waiting or gate.budget.taken:
            found.append(f"{source.key}: {gate.running} run, {gate.waiting} wait")
    alive = {worker.replica.id for worker in fleet.alive()}
    if alive != {replica.id for replica in fleet.supervisor.all()}:
        found.append(f"workers alive: {alive}")
    rollouts = fleet.rollouts
    if rollouts._running or len(rollouts.grace) or not rollouts.effects.idle:
        found.append(f"rollouts keep {rollouts._running}, {len(rollouts.grace)} watches, or tasks")
    if set(rollouts.effects.deaths) - current:
        found.append(f"deaths are counted of {set(rollouts.effects.deaths) - current}")
    tasks = asyncio.all_tasks() - {asyncio.current_task(), *fleet.lasting}
    return found + [f"{len(tasks)} tasks are left: {list(tasks)[:3]}"] * bool(tasks)


def run(seed: int, folder: Path, seconds: float, **pace: float) -> None:
    # Which requests get a trial follows from its id.
    names = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_hex", lambda count: names.randbytes(count).hex())
        in_virtual_time(lambda: live(seed, folder, seconds, **pace))


@pytest.mark.parametrize("seed", seeds(1))
def test_no_request_is_lost_while_versions_come_and_go(seed: int, tmp_path: Path) -> None:
    run(seed, tmp_path, 200, faults=0, changes=2.0)


# Of the first fifty, those that found something.
@pytest.mark.parametrize("seed", seeds(1) if "HXD_SEED" in os.environ else [14, 32, 44])
def test_nor_while_workers_fail_besides(seed: int, tmp_path: Path) -> None:
    run(seed, tmp_path, 200, faults=3.0, changes=4.0)

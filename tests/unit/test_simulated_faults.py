"""What clients are promised while workers fail in every way at once, checked token by token on a
loop whose time is virtual. `HXD_SEED` runs one seed in place of the usual ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import pytest

from hxd import wire
from hxd.daemon.request.breaker import State as BreakerState
from hxd.daemon.request.call import Call
from hxd.daemon.request.failover import FATAL_CRASHES, TRIES
from hxd.daemon.request.poison import KEPT
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.link import Loss
from hxd.daemon.supervise.news import Renew
from hxd.errors import HxdError
from tests.simulation import (
    POISON,
    QUEUE_TIME,
    Death,
    SimulatedWorker,
    Twin,
    VirtualLoop,
    World,
    drawn,
)

# The longest answer is some seconds; what can come on top are waits for a slot, twice at most for
# one that must be alone, and once more for another model.
BOUND = 6 * QUEUE_TIME
# Isolations of 5 min at most, and then five probes, 5 s apart.
SETTLING = 600.0
WEEK = 7 * 86400.0

MODELS = {"big": ("v1", 3), "small": ("v1", 2), "odd": ("v2", 2)}
ROUTES = {"near": ["big", "small"], "far": ["odd", "big"], "all": ["small", "odd", "big"]}
FEW_MODELS = {"big": ("v1", 2), "odd": ("v2", 2)}
FEW_ROUTES = {"far": ["odd", "big"]}


def seeds(count: int, *, first: int = 1) -> list[int]:
    given = os.environ.get("HXD_SEED")
    return [int(given)] if given else list(range(first, first + count))


@dataclass
class Wish:
    """One request as a client makes it. `leaves_after` pieces the client is gone."""

    reference: str
    orders: list[wire.Generate]
    choices: int = 1
    whole: bool = False
    leaves_after: int | None = None
    patience: float | None = None

    @classmethod
    def draw(cls, world: World, rng: random.Random, number: int) -> Wish:
        names = [*world.served, *world.catalog.routes]
        n = rng.choice((1, 1, 1, 1, 2, 3))
        order = wire.Generate(
            id=0,
            seed=0,
            text=f"prompt {number}",
            max_tokens=rng.randrange(1, 50),
            logprobs=rng.choice((None, None, 0)),
            echo=rng.random() < 0.2,
        )
        orders = [copy_of(order, rng.randrange(1 << 30)) for _ in range(n)]
        wish = cls(rng.choice(names), orders, n, whole=rng.random() < 0.3)
        if rng.random() < 0.1:
            wish.leaves_after = rng.randrange(8)
        elif rng.random() < 0.1:
            wish.patience = rng.uniform(0, 3)
        return wish


def copy_of(order: wire.Generate, seed: int) -> wire.Generate:
    return wire.Generate(
        id=0,
        seed=seed,
        text=order.text,
        max_tokens=order.max_tokens,
        logprobs=order.logprobs,
        echo=order.echo,
    )


@dataclass
class Answer:
    """What has reached the client of one choice."""

    text: str = ""
    logprobs: list[int] = field(default_factory=list)
    finish: str | None = None
    completion: int = 0

    def check(self, order: wire.Generate, vocabs: set[str]) -> str | None:
        """What is wrong with it, whole or not."""
        twins = [Twin.of(order, vocab) for vocab in sorted(vocabs)]
        if self.finish is None:
            if any(twin.text.startswith(self.text) for twin in twins):
                return None
            return f"{self.text!r} begins no answer; {twins[0].text!r} does"
        for twin in twins:
            if self.text == twin.text:
                break
        else:
            return f"{self.text!r} is not {' or '.join(repr(twin.text) for twin in twins)}"
        if self.finish != twin.finish or self.completion != len(twin.tokens):
            return f"{self.finish} after {self.completion}, not {twin.finish} {len(twin.tokens)}"
        if order.logprobs is not None and self.logprobs != twin.tokens:
            return f"logprobs of {self.logprobs}, not of {twin.tokens}"
        return None


class Clients:
    """Makes requests of a world, and notes what is wrong with what comes back."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self._rng = world, rng
        self.faults: list[str] = []
        self.ends: dict[str, int] = {}
        # By text, when it came to be refused.
        self.blocked: dict[str, list[float]] = {}
        self.began: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    async def come(self, until: float, every: float) -> None:
        while self.world.clock.now() < until:
            await self.world.clock.sleep(self._rng.expovariate(1 / every))
            self._number += 1
            self.send(Wish.draw(self.world, self._rng, self._number))

    def send(self, wish: Wish) -> None:
        task = asyncio.create_task(self._wish(wish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if wish.patience is not None:
            asyncio.get_running_loop().call_later(wish.patience, task.cancel)

    async def gone(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _wish(self, wish: Wish) -> None:
        try:
            async with asyncio.timeout(BOUND):
                end = await self._ask(wish)
        except TimeoutError:
            end = "hangs"
            self._fault(wish, f"has not ended after {BOUND:g} s")
        except asyncio.CancelledError:
            end = "left"
        except Exception as error:
            end = "broke"
            self._fault(wish, f"raised {error!r}")
        self.ends[end] = self.ends.get(end, 0) + 1

    async def _ask(self, wish: Wish) -> str:
        world = self.world
        chain = world.catalog.chain(wish.reference)
        names = [served.source.name for served in chain]
        vocabs = {world.vocabs[name] for name in names}
        call = Call(world.setting, chain, wish.orders, wish.choices, whole=wish.whole)
        answers = [Answer() for _ in wish.orders]
        began, lists, end = world.clock.now(), 0, "done"
        self.began.update((order.seed, began) for order in wish.orders)
        try:
            async with contextlib.aclosing(call.pieces()) as pieces:
                async for batch in pieces:
                    for piece in batch:
                        answer = answers[piece.index]
                        answer.text += piece.text
                        answer.logprobs += [one.token for one in piece.logprobs]
                        if piece.finish is not None:
                            answer.finish, answer.completion = piece.finish, piece.completion_tokens
                    lists += 1
                    if wish.leaves_after is not None and lists > wish.leaves_after:
                        end = "left"
                        break
        except HxdError as error:
            end = f"{error.status} {error.code}"
            # What came before in the chain is not asked again, and what has another vocabulary
            # can't go on with what a client has read.
            left = [served.source.name for served in chain]
            if not wish.whole and any(answer.text for answer in answers):
                vocab = world.vocabs[call.served.source.name]
                left = [name for name in left if world.vocabs[name] == vocab]
            if not self._excused(wish, error, left):
                self._fault(wish, f"failed: {type(error).__name__} {error.code}: {error}")
        if end == "done" and any(answer.finish is None for answer in answers):
            self._fault(wish, "ended without an end")
        for order, answer in zip(wish.orders, answers, strict=True):
            if wrong := answer.check(order, vocabs):
                self._fault(wish, f"{end}: {wrong}")
        return end

    def _fault(self, wish: Wish, what: str) -> None:
        order = wish.orders[0]
        self.faults.append(
            f"at {self.world.clock.now():.3f} s {wish.reference}: {order.text!r} "
            f"n={len(wish.orders)} whole={wish.whole} echo={order.echo}: {what}"
        )

    def _excused(self, wish: Wish, error: HxdError, names: list[str]) -> bool:
        """Whether the request may fail so."""
        world, now, text = self.world, self.world.clock.now(), wish.orders[0].text or ""
        match error.status, error.code:
            case 422, "request_blocked":
                return any(now < since + KEPT for since in self.blocked.get(text, ()))
            case 502, "request_blocked":
                self.blocked.setdefault(text, []).append(now)
                return max(self._crashes(wish), self._alone(text)) >= FATAL_CRASHES
            case 502, "worker_died":
                last = [d for d in self._deaths(wish) if d.loss is Loss.CRASHED][-1:]
                return bool(last) and not last[0].hope
            case 502, "backend_error":
                return self._gave_up(wish)
            case 503, "queue_timeout":
                if self._crashes(wish):
                    # It must be alone, and that needs two workers, one of them idle.
                    return True
                # What serves only now and then leaves a line that is longer than it can serve.
                start = now - QUEUE_TIME
                return all(world.served_within(name, start, now) < QUEUE_TIME / 2 for name in names)
            case 503, "model_unavailable":
                return not any(world.served_within(name, now, now + 0.1) for name in names) and (
                    not any(w.serving for w in world.alive() if w.model in names)
                )
        return False

    def _deaths(self, wish: Wish) -> list[Death]:
        seen = {order.seed for order in wish.orders}
        text = wish.orders[0].text
        return [
            death
            for death in self.world.deaths
            if any(order.text == text and order.seed in seen for order in death.orders)
        ]

    def _crashes(self, wish: Wish) -> int:
        """The most that one of its sequences has been there at."""
        counts = dict.fromkeys((order.seed for order in wish.orders), 0)
        for death in self._deaths(wish):
            if death.loss is Loss.CRASHED:
                for seed in {order.seed for order in death.orders} & counts.keys():
                    counts[seed] += 1
        return max(counts.values())

    def _alone(self, text: str) -> int:
        """How many workers have crashed that served nothing but requests of this text."""
        return sum(
            death.loss is Loss.CRASHED and [order.text for order in death.orders] == [text]
            for death in self.world.deaths
        )

    def _gave_up(self, wish: Wish) -> bool:
        """Whether one of its sequences was failed too often, or could not be tried elsewhere."""
        failures = self.world.failures
        found = [failures.get((order.text or "", order.seed), []) for order in wish.orders]
        return any(len(one) >= TRIES or any(one) for one in found)


class Faults:
    """Does to workers what happens to workers, by a schedule that follows from the seed."""

    def __init__(self, world: World, clients: Clients, rng: random.Random) -> None:
        self._world, self._clients, self._rng = world, clients, rng
        self._poisons = 0
        self.done: dict[str, int] = {}

    async def happen(self, until: float, every: float) -> None:
        kinds: dict[Callable[[SimulatedWorker], None], int] = {
            self.killed: 6, self.crashed: 3, self.step_failed: 2, self.stopped: 3, self.silent: 4,
            self.hung: 2, self.garbage: 1, self.hung_up: 1, self.failing: 3, self.slow: 2,
            self.doomed: 2, self.all_at_once: 1, self.renewed: 2, self.poison: 2,
        }  # fmt: skip
        while self._world.clock.now() < until:
            await self._world.clock.sleep(self._rng.expovariate(1 / every))
            alive = list(self._world.alive())
            if not alive:
                continue
            # Those that work are where it hurts.
            busy = [worker for worker in alive if worker.running]
            victim = self._rng.choice(busy if busy and self._rng.random() < 0.7 else alive)
            [fault] = self._rng.choices([*kinds], [*kinds.values()])
            fault(victim)
            self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1

    def killed(self, worker: SimulatedWorker) -> None:
        worker.kill()

    def crashed(self, worker: SimulatedWorker) -> None:
        worker.crash()

    def step_failed(self, worker: SimulatedWorker) -> None:
        worker.fail_step()

    def stopped(self, worker: SimulatedWorker) -> None:
        worker.freeze(self._rng.choice((0.05, 0.5, 5.0)), stopped=True)

    def silent(self, worker: SimulatedWorker) -> None:
        worker.freeze(self._rng.choice((0.2, 0.6, 2.0, 20.0)), stopped=False)

    def hung(self, worker: SimulatedWorker) -> None:
        worker.hang(self._rng.choice((1.0, 5.0, 60.0)))

    def garbage(self, worker: SimulatedWorker) -> None:
        worker.babble()

    def hung_up(self, worker: SimulatedWorker) -> None:
        worker.hang_up()

    def failing(self, worker: SimulatedWorker) -> None:
        worker.fails = self._rng.choice((0.1, 0.5, 1.0))
        self._later(self._rng.uniform(1, 60), worker, "fails", 0.0)

    def slow(self, worker: SimulatedWorker) -> None:
        worker.slowness = self._rng.choice((3.0, 20.0))
        self._later(self._rng.uniform(1, 60), worker, "slowness", 1.0)

    def _later(self, seconds: float, worker: SimulatedWorker, name: str, value: float) -> None:
        asyncio.get_running_loop().call_later(seconds, setattr, worker, name, value)

    def doomed(self, worker: SimulatedWorker) -> None:
        state = self._rng.choice((State.LOADING, State.WARMING))
        self._world.doomed[worker.replica.id, state] += self._rng.choice((1, 2, 6))
        worker.kill()

    def all_at_once(self, worker: SimulatedWorker) -> None:
        by_itself = self._rng.random() < 0.5
        for other in self._world.alive():
            if other.model == worker.model:
                other.crash() if by_itself else other.kill()

    def renewed(self, worker: SimulatedWorker) -> None:
        self._world.supervisor.post(Renew(worker.replica, worker.generation, "drifts"))

    def poison(self, worker: SimulatedWorker) -> None:
        """The same one again now and then, as hostile clients do."""
        if not self._poisons or self._rng.random() < 0.6:
            self._poisons += 1
        order = wire.Generate(id=0, seed=7, text=f"{POISON} {self._poisons}", max_tokens=50)
        names = [*self._world.served, *self._world.catalog.routes]
        reference = names[self._poisons % len(names)]
        self._clients.send(Wish(reference, [copy_of(order, self._rng.getrandbits(30))]))


async def live(
    seed: int, world: World, seconds: float, *, request_every: float, fault_every: float
) -> None:
    """Faults for so long, then none, and everything is as at the beginning."""
    clients = Clients(world, random.Random(drawn(seed, "clients")))
    faults = Faults(world, clients, random.Random(drawn(seed, "faults")))
    async with world:
        await world.clock.sleep(10)
        until = world.clock.now() + seconds
        await asyncio.gather(clients.come(until, request_every), faults.happen(until, fault_every))
        await clients.gone()
        world.doomed.clear()
        await world.clock.sleep(SETTLING)
        world.check_lasting()
        wrong = [*clients.faults, *_poison_faults(world, clients), *_unsettled(world)]
        said = "\n".join(wrong[:8])
        assert not wrong, (
            f"HXD_SEED={seed}: {len(wrong)} promises broken, of {clients.ends} under "
            f"{faults.done}\n{said}"
        )
        assert clients.ends["done"] > sum(clients.ends.values()) / 2


def _poison_faults(world: World, clients: Clients) -> list[str]:
    """A poisonous request ends two workers at most, and none while it is refused."""
    found = []
    for text, kills in world.killed_by.items():
        blocked = clients.blocked.get(text, ())
        for seed in {seed for _, seed in kills}:
            times = [at for at, by in kills if by == seed]
            if len(times) > FATAL_CRASHES:
                found.append(f"{text!r} ended workers at {times}")
            if any(since < clients.began[seed] < since + KEPT for since in blocked):
                found.append(f"{text!r} ended workers at {times}, refused since {blocked}")
    return found


def _unsettled(world: World) -> list[str]:
    """What is not as it was before the faults."""
    found = []
    for replica in world.supervisor.all():
        found += [f"{replica.id} is {replica.state}"] * (replica.state is not State.READY)
        breaker = world.rosters[replica.source.name].breaker_state(replica)
        found += [f"{replica.id} has its breaker {breaker}"] * (breaker is not BreakerState.CLOSED)
        found += [f"{replica.id} is suspect"] * replica.suspect
        if replica.worker is not None and replica.worker.link.calls:
            found.append(f"{replica.id} has calls {[*replica.worker.link.calls]}")
    for name, served in world.served.items():
        gate = served.gate
        state = (gate.running, gate.waiting, len(gate._solitary), gate.budget.taken)
        found += [f"{name}: running, waiting, alone, retried: {state}"] * any(state)
    tasks = asyncio.all_tasks() - {asyncio.current_task(), *world.lasting}
    return found + [f"{len(tasks)} tasks are left: {list(tasks)[:3]}"] * bool(tasks)


def in_virtual_time(main: Callable[[], Coroutine[None, None, None]]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
    finally:
        logging.disable(logging.NOTSET)


def run(seed: int, make: Callable[[], World], seconds: float, **pace: float) -> None:
    in_virtual_time(lambda: live(seed, make(), seconds, **pace))


@pytest.mark.parametrize("seed", seeds(4))
def test_no_request_is_lost_while_workers_fail_every_few_seconds(seed: int) -> None:
    run(seed, lambda: World(seed, MODELS, ROUTES, watched=True), 120,
        request_every=0.3, fault_every=2.0)  # fmt: skip


# With the tenth, echoed prompts lose their workers twice before the first token.
@pytest.mark.parametrize("seed", seeds(3, first=9))
def test_no_request_is_lost_while_hardly_a_worker_is_up(seed: int) -> None:
    run(seed, lambda: World(seed, MODELS, ROUTES, watched=True), 60,
        request_every=0.3, fault_every=0.7)  # fmt: skip


@pytest.mark.parametrize("seed", seeds(1))
def test_a_week_of_faults_leaves_nothing_behind(seed: int) -> None:
    run(seed, lambda: World(seed, FEW_MODELS, FEW_ROUTES, watched=False, step_time=0.2), WEEK,
        request_every=120.0, fault_every=300.0)  # fmt: skip


@pytest.mark.parametrize("seed", seeds(20))
def test_a_stop_amid_deaths_leaves_no_worker(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(drawn(seed, "stop"))
        async with World(seed, MODELS, ROUTES, watched=True) as world:
            await world.clock.sleep(10)
            for worker in rng.sample(list(world.alive()), 4):
                worker.kill()
                await world.clock.sleep(rng.choice((0.0, 0.01, 0.3)))
            await world.supervisor.stop()
            await world.clock.sleep(60)
            world.check_lasting()
            left = [
                replica.id
                for replica in world.supervisor.all()
                if replica.state is not State.STOPPED
            ]
            assert not left and not list(world.alive()), f"HXD_SEED={seed}: {left} still run"

    in_virtual_time(main)

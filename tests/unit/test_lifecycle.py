"""Lifecycle, restart pauses and the supervisor's decisions: pure, with a recorded world."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.config import ModelSettings
from hxd.daemon.supervise import lifecycle
from hxd.daemon.supervise.lifecycle import Event, IllegalTransition, State
from hxd.daemon.supervise.news import Doubt, Message, News, Renew
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import RENEWAL_PAUSE, Supervisor


def test_an_illegal_event_raises_and_says_what_was_legal() -> None:
    with pytest.raises(IllegalTransition, match="legal: died, drain"):
        lifecycle.after(State.READY, Event.HELLO)


def test_every_live_state_can_die_and_can_be_stopped() -> None:
    for state in lifecycle.ALIVE:
        assert lifecycle.after(state, Event.DIED) in (State.FAILED, State.STOPPED)
    for state in lifecycle.ALIVE - {State.DRAINING} | {State.FAILED}:
        assert lifecycle.after(state, Event.DRAIN) in (State.DRAINING, State.STOPPED)


def test_every_state_is_reached_from_the_start() -> None:
    reached = {State.STOPPED}
    while more := {to for (at, _), to in lifecycle.TRANSITIONS.items() if at in reached} - reached:
        reached |= more
    assert reached == set(State)


class World:
    """Effects that only record; time stands where it is put."""

    def __init__(self) -> None:
        self.did: list[tuple[str, str]] = []
        self.timers: list[tuple[float, Message]] = []
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the supervisor waits for messages, not for time")

    def _note(self, what: str, replica: Replica) -> None:
        self.did.append((what, replica.id))

    def spawn(self, replica: Replica) -> None:
        self._note("spawn", replica)

    def load(self, replica: Replica) -> None:
        self._note("load", replica)

    def warm(self, replica: Replica) -> None:
        self._note("warm", replica)

    def watch(self, replica: Replica) -> None:
        self._note("watch", replica)

    def drain(self, replica: Replica) -> None:
        self._note("drain", replica)

    def end(self, replica: Replica, *, gently: bool) -> None:
        self._note("end" if gently else "kill", replica)

    def later(self, seconds: float, message: Message) -> None:
        self.timers.append((seconds, message))


class Source:
    """As much of a `store.sources.Source` as the supervisor reads."""

    def __init__(self, replicas: int) -> None:
        self.name = self.key = "m"
        self.settings = ModelSettings(source="x", replicas=replicas, load_time=7.0)


class OpenWorker:
    """As much of a `WorkerProcess` as `Replica.takes` reads."""

    class link:
        closed = False


class Scene:
    """A supervisor in its recorded world; `tell` lets one message be taken."""

    def __init__(self, replicas: int = 1, *, room: bool = True) -> None:
        self.world = World()
        sources: dict[str, Any] = {"m": Source(replicas)}
        self.supervisor = Supervisor(sources, self.world, random.Random(7), lambda source: room)
        self.replica = self.supervisor.replicas["m"][0]

    async def __aenter__(self) -> Scene:
        self.task = asyncio.create_task(self.supervisor.run(self.world))
        await self._settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def tell(self, event: Event, detail: str = "", generation: int | None = None) -> None:
        now = self.replica.generation if generation is None else generation
        self.supervisor.post(Message(self.replica, now, event, detail))
        await self._settle()

    async def fire(self, index: int = -1) -> float:
        seconds, message = self.world.timers.pop(index)
        self.world.time += seconds
        self.supervisor.post(message)
        await self._settle()
        return seconds

    async def bring_up(self) -> None:
        for event in (Event.HELLO, Event.LOADED, Event.WARMED):
            await self.tell(event)

    async def post(self, news: News) -> None:
        self.supervisor.post(news)
        await self._settle()

    async def renew(self) -> None:
        await self.post(Renew(self.replica, self.replica.generation, "it leaks"))

    def ids(self) -> list[str]:
        return [replica.id for replica in self.supervisor.replicas["m"]]

    def acts(self) -> list[str]:
        return [what for what, _ in self.world.did]


async def test_a_replica_is_spawned_loaded_warmed_and_watched() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        assert scene.acts() == ["spawn", "load", "warm", "watch"]
        assert scene.replica.state is State.READY


async def test_a_death_is_followed_by_a_kill_and_a_restart_at_once() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        await scene.tell(Event.DIED, "killed by SIGKILL")
        assert scene.replica.state is State.FAILED
        assert scene.supervisor.problems("m") == ["m-1 failed: killed by SIGKILL"]
        assert await scene.fire() == 0
        assert scene.replica.state is State.STARTING
        assert scene.acts()[-2:] == ["kill", "spawn"]


async def test_what_a_former_process_says_late_changes_nothing() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        former = scene.replica.generation
        await scene.tell(Event.DIED)
        await scene.fire()
        await scene.tell(Event.DIED, generation=former)
        await scene.tell(Event.HELLO, generation=former)
        assert scene.replica.state is State.STARTING
        assert not scene.task.done()


@pytest.mark.parametrize("event", [Event.HELLO, Event.LOADED])
async def test_a_worker_that_speaks_out_of_turn_dies_and_the_supervisor_lives(event: Event) -> None:
    async with Scene() as scene:
        await scene.bring_up()
        await scene.tell(event)
        assert scene.replica.state is State.FAILED
        assert scene.replica.problem == f"the worker said '{event.value}' while ready"
        assert not scene.task.done()


async def test_a_load_that_takes_too_long_is_a_death() -> None:
    async with Scene() as scene:
        await scene.tell(Event.HELLO)
        assert await scene.fire() == 7.0
        assert scene.replica.state is State.FAILED
        assert scene.replica.problem == "still loading after 7 s; given up"


async def test_a_time_limit_that_was_met_has_no_effect_later() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        while scene.world.timers:
            await scene.fire()
        assert scene.replica.state is State.READY


async def test_after_two_deaths_in_a_row_nobody_waits_for_the_model() -> None:
    async with Scene() as scene:
        assert scene.supervisor.coming("m")
        for _ in range(2):
            await scene.tell(Event.DIED)
            assert scene.supervisor.coming("m")
            await scene.fire()
        await scene.tell(Event.DIED)
        assert not scene.supervisor.coming("m")


async def test_who_was_ready_in_its_last_life_is_hoped_for_however_often_it_died() -> None:
    async with Scene() as scene:
        for _ in range(6):
            await scene.bring_up()
            await scene.tell(Event.DIED)
            assert scene.supervisor.coming("m")
            await scene.fire()


async def test_a_drifting_replica_is_relieved_by_an_heir_that_is_ready_first() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        old = scene.replica
        await scene.renew()
        assert scene.ids() == ["m-1", "m-2"]
        assert old.state is State.READY
        scene.replica = scene.supervisor.replicas["m"][1]
        await scene.bring_up()
        assert (old.state, scene.replica.state) == (State.DRAINING, State.READY)
        scene.replica = old
        await scene.tell(Event.EMPTY)
        assert scene.ids() == ["m-2"]
        assert ("end", "m-1") in scene.world.did


async def test_an_heir_that_dies_leaves_everything_as_it_was() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        old = scene.replica
        await scene.renew()
        scene.replica = scene.supervisor.replicas["m"][1]
        await scene.tell(Event.DIED, "no memory")
        assert scene.ids() == ["m-1"]
        assert (old.state, old.heir) == (State.READY, None)
        assert ("kill", "m-2") in scene.world.did


async def test_a_replica_is_not_replaced_twice_within_ten_minutes_nor_two_at_once() -> None:
    async with Scene(replicas=2) as scene:
        await scene.bring_up()
        await scene.renew()
        await scene.renew()
        first, second, heir = scene.supervisor.replicas["m"]
        scene.replica = second
        await scene.bring_up()
        await scene.renew()
        assert scene.ids() == ["m-1", "m-2", "m-3"]
        scene.replica = heir
        await scene.tell(Event.DIED)
        scene.replica = first
        await scene.renew()
        assert scene.ids() == ["m-1", "m-2"]
        scene.world.time += RENEWAL_PAUSE
        await scene.renew()
        assert scene.ids() == ["m-1", "m-2", "m-4"]


async def test_a_replica_is_not_replaced_when_the_box_has_no_room_for_two() -> None:
    async with Scene(room=False) as scene:
        await scene.bring_up()
        await scene.renew()
        assert scene.ids() == ["m-1"]


async def test_a_drifting_replica_that_dies_first_is_relieved_all_the_same() -> None:
    async with Scene() as scene:
        await scene.bring_up()
        old = scene.replica
        await scene.renew()
        await scene.tell(Event.DIED)
        scene.replica = scene.supervisor.replicas["m"][1]
        await scene.bring_up()
        assert old.state is State.STOPPED
        assert scene.ids() == ["m-2"]
        while scene.world.timers:
            await scene.fire()
        assert scene.replica.state is State.READY


async def test_a_suspect_is_given_nothing_unless_nobody_else_is_there() -> None:
    async with Scene(replicas=2) as scene:
        first, second = scene.supervisor.replicas["m"]
        for scene.replica in (second, first):
            await scene.bring_up()
            scene.replica.worker = OpenWorker()  # type: ignore[assignment]
        await scene.post(Doubt(first, first.generation, suspect=True))
        assert scene.supervisor.ready("m") == [second]
        await scene.post(Doubt(second, second.generation, suspect=True))
        assert scene.supervisor.ready("m") == [first, second]
        await scene.post(Doubt(first, first.generation, suspect=False))
        assert scene.supervisor.ready("m") == [first]
        await scene.post(Doubt(first, first.generation - 1, suspect=True))
        assert scene.supervisor.ready("m") == [first]


async def test_stop_drains_the_ready_and_ends_the_rest() -> None:
    async with Scene(replicas=2) as scene:
        await scene.bring_up()
        await scene.supervisor.stop()
        await scene._settle()
        first, second = scene.supervisor.replicas["m"]
        assert (first.state, second.state) == (State.DRAINING, State.STOPPED)
        await scene.tell(Event.EMPTY)
        assert first.state is State.STOPPED
        assert ("end", "m-1") in scene.world.did


@given(st.lists(st.sampled_from(list(Event)), max_size=60), st.randoms(use_true_random=False))
def test_no_order_of_legal_events_breaks_the_supervisor(
    events: list[Event], rng: random.Random
) -> None:
    async def play() -> None:
        async with Scene(replicas=2) as scene:
            for event in events:
                scene.replica = rng.choice(list(scene.supervisor.all()))
                if (scene.replica.state, event) in lifecycle.TRANSITIONS:
                    await scene.tell(event)
                if rng.random() < 0.2:
                    await scene.renew()
                if rng.random() < 0.2:
                    await scene.post(Doubt(scene.replica, rng.randrange(4), rng.random() < 0.5))
                if scene.world.timers and rng.random() < 0.3:
                    await scene.fire(rng.randrange(len(scene.world.timers)))
                assert not scene.task.done(), scene.task.exception()

    asyncio.run(play())

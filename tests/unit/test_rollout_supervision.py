"""Releases come and go in any order, amid deaths: none leaves a worker behind, and nobody ends one
that is to stay."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxd.config import ModelSettings
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import ALIVE, TRANSITIONS, Event, State
from hxd.daemon.supervise.news import Message, Renew
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from tests.rollouts import a_source


class Box:
    """Processes that do what they are told, and what is due to be said of them. Nothing happens by
    itself: who drives it picks what comes next."""

    def __init__(self) -> None:
        self.supervisor = Supervisor({}, self, random.Random(1))
        self.supervisor._effects = self
        self.processes: dict[str, tuple[Replica, int]] = {}
        self.due: list[Message] = []
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a supervisor does not wait")

    # Effects

    def spawn(self, replica: Replica) -> None:
        assert replica.id not in self.processes
        self.processes[replica.id] = replica, replica.generation
        worker: Any = type("Worker", (), {"link": type("Link", (), {"closed": False})})
        replica.worker = worker
        self._say(replica, Event.HELLO)

    def load(self, replica: Replica) -> None:
        self._say(replica, Event.LOADED)

    def warm(self, replica: Replica) -> None:
        self._say(replica, Event.WARMED)

    def watch(self, replica: Replica) -> None:
        pass

    def drain(self, replica: Replica) -> None:
        self._say(replica, Event.EMPTY)

    def end(self, replica: Replica, *, gently: bool) -> None:
        self.processes.pop(replica.id, None)

    def later(self, seconds: float, message: Message) -> None:
        if message.event is Event.RESTART:
            self.due.append(message)

    def _say(self, replica: Replica, event: Event) -> None:
        self.due.append(Message(replica, replica.generation, event))

    # What happens

    def read(self) -> None:
        """The supervisor takes in all its mail, as it does when it gets a turn."""
        mail = self.supervisor._mail
        while not mail.empty():
            match mail.get_nowait():
                case Message() as message:
                    self.supervisor._apply(message)
                case Renew() as renew:
                    self.supervisor._renew(renew)

    def settle(self) -> None:
        self.read()
        for _ in range(1000):
            if not self.due:
                return
            self.supervisor.post(self.due.pop(0))
            self.read()
        raise AssertionError(f"no end: {self.due[:4]}")


def source(key: int, replicas: int) -> Source:
    return a_source("m", release=str(key), settings=ModelSettings(replicas=replicas))


def test_a_release_that_is_retired_before_it_has_begun_does_not_begin() -> None:
    box = Box()
    box.supervisor.add(source(1, 2))
    box.supervisor.retire("m#1")
    box.settle()
    assert (box.processes, box.supervisor.replicas) == ({}, {})


def test_one_that_dies_as_it_is_retired_does_not_come_back() -> None:
    box = Box()
    box.supervisor.add(source(1, 1))
    box.settle()
    [replica] = box.supervisor.replicas["m#1"]
    box.supervisor.post(Message(replica, replica.generation, Event.DIED, "it fell"))
    box.supervisor.retire("m#1")
    box.settle()
    assert (box.processes, box.supervisor.replicas) == ({}, {})


def test_one_that_comes_back_as_it_is_retired_ends() -> None:
    box = Box()
    box.supervisor.add(source(1, 1))
    box.settle()
    [replica] = box.supervisor.replicas["m#1"]
    box.supervisor.post(Message(replica, replica.generation, Event.DIED, "it fell"))
    box.read()
    [restart] = box.due
    box.supervisor.post(restart)
    box.supervisor.retire("m#1")
    box.due.clear()
    box.settle()
    assert (box.processes, box.supervisor.replicas) == ({}, {})


def test_surplus_that_is_on_its_way_up_does_not_stay() -> None:
    box = Box()
    box.supervisor.add(source(1, 1))
    box.settle()
    box.supervisor.resize(source(1, 3))
    box.supervisor.resize(source(1, 1))
    box.settle()
    assert len(box.processes) == len(box.supervisor.replicas["m#1"]) == 1


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_one_that_is_being_relieved_is_not_counted_and_its_heir_is(wanted: int) -> None:
    box = Box()
    box.supervisor.add(source(1, 2))
    box.settle()
    old = box.supervisor.replicas["m#1"][0]
    box.supervisor.post(Renew(old, old.generation, "it is old"))
    box.read()
    while old.state is State.READY:
        box.supervisor.post(box.due.pop(0))
        box.read()
    assert old.state is State.DRAINING
    box.supervisor.resize(source(1, wanted))
    box.settle()
    states = [replica.state for replica in box.supervisor.replicas["m#1"]]
    assert states == [State.READY] * wanted
    assert len(box.processes) == wanted


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_nothing_is_left_of_what_was_retired_and_all_of_what_was_not(
    rng: random.Random, steps: int
) -> None:
    wanted: dict[int, int] = {}
    box, number = Box(), 0
    for _ in range(steps):
        box.time += rng.random()
        replicas = list(box.supervisor.all())
        match rng.choice(("add", "retire", "resize", "die", "say", "say", "say", "read", "renew")):
            case "add" if len(wanted) < 4:
                number += 1
                wanted[number] = rng.randrange(1, 4)
                start = rng.random() < 0.8
                box.supervisor.add(source(number, wanted[number]), start=start)
                if not start:
                    box.supervisor.start(f"m#{number}")
            case "retire" if wanted:
                key = rng.choice(list(wanted))
                del wanted[key]
                box.supervisor.retire(f"m#{key}")
            case "resize" if wanted:
                key = rng.choice(list(wanted))
                wanted[key] = rng.randrange(1, 4)
                box.supervisor.resize(source(key, wanted[key]))
            case "die" if replicas:
                one = rng.choice(replicas)
                if one.state in ALIVE and (one.state, Event.DIED) in TRANSITIONS:
                    died = Message(one, one.generation, Event.DIED, "it fell")
                    box.supervisor.post(died)
            case "say" if box.due:
                box.supervisor.post(box.due.pop(rng.randrange(len(box.due))))
            case "renew" if replicas:
                one = rng.choice(replicas)
                box.supervisor.post(Renew(one, one.generation, "it is old", urgent=True))
            case "read":
                box.read()
    box.settle()
    found = {
        key: [replica.state for replica in mates] for key, mates in box.supervisor.replicas.items()
    }
    assert found == {f"m#{key}": [State.READY] * count for key, count in wanted.items()}
    assert len(box.processes) == sum(wanted.values())
    assert not box.supervisor._retired

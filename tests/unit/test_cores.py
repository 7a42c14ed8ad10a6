"""What workers are told of how many they are, on a loop whose time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest

from hxd import wire
from hxd.daemon.supervise.cores import IDLE, LONGEST, TRY_AGAIN, Cores
from tests.simulation import VirtualClock, VirtualLoop

MEASURED = 0.25  # seconds between two looks of the sentinel


@dataclass
class Link:
    """Keeps the frames that went out."""

    sent: list[wire.Frame] = field(default_factory=list)
    closed: bool = False

    def send(self, frame: wire.Frame) -> None:
        assert not self.closed
        self.sent.append(frame)


@dataclass
class Worker:
    pid: int
    link: Link = field(default_factory=Link)


@dataclass
class Source:
    file: str | None = "model.gguf"


@dataclass
class Fake:
    """A replica as far as cores go. `told` is what its present process was told, in order."""

    id: str
    source: Source = field(default_factory=Source)
    worker: Worker | None = None

    @property
    def told(self) -> list[int]:
        assert self.worker is not None
        return [frame.among for frame in self.worker.link.sent if isinstance(frame, wire.Share)]


def fakes(count: int) -> Any:
    """So many replicas, each with a process of its own."""
    return [Fake(f"m-{n + 1}", worker=Worker(pid=100 + n)) for n in range(count)]


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **named))

    return run


def cores(total: int) -> Cores:
    return Cores(VirtualClock(), total)


async def measured(cores: Cores, replica: Any, seconds: float, *, starved: bool = False) -> None:
    """The sentinel's looks for so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await asyncio.sleep(min(MEASURED, end - loop.time()))
        cores.measured(replica, starved=starved)


@virtual
async def test_a_worker_that_is_the_only_busy_one_is_told_nothing() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(one, False)
    await asyncio.sleep(1.0)
    shared.busy(other, True)
    assert (one.told, other.told) == ([], [])


@virtual
async def test_two_are_told_that_they_are_two_before_the_second_is_sent_its_request() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    other.worker.link.send(wire.Embed(1, ["x"]))
    assert one.told == [2]
    assert other.worker.link.sent == [wire.Share(2), wire.Embed(1, ["x"])]


@virtual
async def test_nobody_is_told_twice_what_he_knows() -> None:
    shared, [one, other] = cores(4), fakes(2)
    for replica in (one, other):
        shared.busy(replica, True)
    for _ in range(3):
        shared.busy(other, False)
        shared.busy(other, True)
    await asyncio.sleep(1.0)
    shared.busy(one, True)
    assert (one.told, other.told) == ([2], [2])


@virtual
async def test_the_cores_of_one_that_stays_idle_go_to_the_others() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    shared.busy(other, False)
    await asyncio.sleep(0.99 * IDLE)
    assert one.told == [2]
    await asyncio.sleep(0.02 * IDLE)
    assert (one.told, other.told) == ([2, 1], [2])


@virtual
async def test_the_pause_between_two_requests_of_one_client_changes_nothing() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    for _ in range(20):
        shared.busy(other, False)
        await asyncio.sleep(0.4 * IDLE)
        shared.busy(other, True)
        await asyncio.sleep(1.0)
    assert (one.told, other.told) == ([2], [2])


@virtual
async def test_who_comes_back_alone_is_told_that_it_is_alone() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    shared.busy(one, False)
    shared.busy(other, False)
    await asyncio.sleep(1.0)
    shared.busy(other, True)
    assert (one.told, other.told) == ([2], [2, 1])


@pytest.mark.parametrize(("total", "told"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 3, 4, 5])])
@virtual
async def test_no_worker_is_told_of_more_workers_than_cores(total: int, told: list[int]) -> None:
    shared, replicas = cores(total), fakes(5)
    for replica in replicas:
        shared.busy(replica, True)
    assert replicas[0].told == told


@virtual
async def test_a_replica_that_computes_elsewhere_counts_for_nothing() -> None:
    shared, [one, relay] = cores(4), fakes(2)
    relay.source.file = None
    shared.busy(relay, True)
    shared.busy(one, True)
    shared.measured(relay, starved=True)
    shared.busy(relay, False)
    await asyncio.sleep(1.0)
    assert (one.told, relay.told) == ([], [])


@virtual
async def test_a_new_process_begins_as_the_only_one_and_is_told_anew() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    other.worker.link.closed = True
    shared.busy(other, False)
    other.worker = Worker(pid=200)
    shared.busy(other, True)
    assert (one.told, other.told) == ([2], [2])


@virtual
async def test_a_new_process_that_is_alone_is_told_nothing() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    shared.busy(one, False)
    shared.busy(other, False)
    await asyncio.sleep(1.0)
    other.worker = Worker(pid=200)
    shared.busy(other, True)
    assert other.told == []


@pytest.mark.parametrize("gone", ["no worker", "closed"])
@virtual
async def test_a_worker_that_is_gone_is_told_nothing_and_its_cores_are_freed(gone: str) -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    if gone == "closed":
        other.worker.link.closed = True
    else:
        other.worker = None
    shared.measured(other, starved=True)
    shared.busy(other, False)
    await asyncio.sleep(1.0)
    assert one.told == [2, 1]


@virtual
async def test_a_replica_that_has_ended_for_good_leaves_nothing_behind() -> None:
    shared, [one, other] = cores(4), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    shared.measured(other, starved=True)
    shared.busy(other, False)
    shared.forget(other)
    await asyncio.sleep(1.0)
    assert one.told == [2, 1]
    assert "m-2" not in {*shared._busy, *shared._told, *shared._short, *shared._idle}


@virtual
async def test_a_starved_worker_is_given_half_each_time_down_to_one_core() -> None:
    shared, [one] = cores(8), fakes(1)
    shared.busy(one, True)
    await measured(shared, one, 10 * MEASURED, starved=True)
    assert one.told == [2, 4, 8]


@virtual
async def test_the_halves_of_a_starved_worker_are_counted_beside_the_others() -> None:
    shared, [one, other] = cores(8), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    shared.measured(one, starved=True)
    assert (one.told, other.told) == ([2, 4], [2])
    shared.busy(other, False)
    await asyncio.sleep(1.0)
    assert one.told == [2, 4, 2]


@virtual
async def test_an_idle_worker_is_not_starved() -> None:
    shared, [one] = cores(8), fakes(1)
    shared.measured(one, starved=True)
    shared.busy(one, True)
    assert one.told == []


@virtual
async def test_a_worker_that_was_starved_once_is_given_all_back_after_a_while() -> None:
    shared, [one] = cores(8), fakes(1)
    shared.busy(one, True)
    shared.measured(one, starved=True)
    await measured(shared, one, TRY_AGAIN - MEASURED)
    assert one.told == [2]
    await measured(shared, one, 2 * MEASURED)
    assert one.told == [2, 1]


@virtual
async def test_a_worker_is_given_back_one_half_at_a_time() -> None:
    shared, [one] = cores(8), fakes(1)
    shared.busy(one, True)
    await measured(shared, one, 3 * MEASURED, starved=True)
    for told in ([2, 4, 8], [2, 4, 8, 4], [2, 4, 8, 4, 2], [2, 4, 8, 4, 2, 1]):
        assert one.told == told
        await measured(shared, one, TRY_AGAIN + MEASURED)
    assert one.told == [2, 4, 8, 4, 2, 1]


async def pauses(shared: Cores, replica: Any, tries: int) -> list[float]:
    """For how long the worker goes without trying more, when each try is too early."""
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(tries):
        shared.measured(replica, starved=True)
        short, before = replica.told[-1], loop.time()
        while replica.told[-1] == short:
            await measured(shared, replica, MEASURED)
        found.append(loop.time() - before)
    return found


@virtual
async def test_the_pause_doubles_each_time_that_it_was_too_early_up_to_five_minutes() -> None:
    shared, [one] = cores(2), fakes(1)
    shared.busy(one, True)
    assert await pauses(shared, one, 8) == [10, 20, 40, 80, 160, LONGEST, LONGEST, LONGEST]


@virtual
async def test_the_pause_doubles_as_well_where_only_a_part_was_given_back() -> None:
    shared, [one] = cores(8), fakes(1)
    shared.busy(one, True)
    shared.measured(one, starved=True)
    assert await pauses(shared, one, 4) == [10, 20, 40, 80]


@virtual
async def test_after_a_time_without_want_the_pause_is_short_again() -> None:
    shared, [one] = cores(2), fakes(1)
    shared.busy(one, True)
    await pauses(shared, one, 4)
    await measured(shared, one, LONGEST + 2 * MEASURED)
    assert await pauses(shared, one, 1) == [TRY_AGAIN]


@virtual
async def test_a_want_that_comes_back_late_was_not_too_early() -> None:
    shared, [one] = cores(2), fakes(1)
    shared.busy(one, True)
    await pauses(shared, one, 2)
    await measured(shared, one, TRY_AGAIN)
    assert await pauses(shared, one, 1) == [20.0]


@virtual
async def test_want_that_no_smaller_part_could_mend_makes_no_pause_longer() -> None:
    """Two on two cores have one each; when one is alone again, its first want is its first."""
    shared, [one, other] = cores(2), fakes(2)
    shared.busy(one, True)
    shared.busy(other, True)
    await measured(shared, one, 5.0, starved=True)
    shared.busy(other, False)
    await measured(shared, one, 1.0)
    assert one.told == [2, 1]
    assert await pauses(shared, one, 1) == [TRY_AGAIN]


@virtual
async def test_a_new_process_of_a_starved_replica_is_told_of_the_want() -> None:
    shared, [one] = cores(2), fakes(1)
    shared.busy(one, True)
    shared.measured(one, starved=True)
    shared.busy(one, False)
    await asyncio.sleep(1.0)
    one.worker = Worker(pid=200)
    shared.busy(one, True)
    assert one.told == [2]

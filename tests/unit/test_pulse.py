"""A worker's heartbeat and progress over time: when it counts as late, stopped, silent or hung."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd import wire
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.news import Message, News
from hxd.daemon.supervise.procfs import Look
from hxd.daemon.supervise.pulse import (
    DEAD,
    HEARTBEAT,
    HEARTBEAT_DEADLINE,
    LEAST_STALL,
    SILENCE,
    STEPS_LONGER,
    STOPPED,
    USUAL_AFTER,
    Pulse,
    Sign,
)
from hxd.daemon.supervise.sentinel import TICK, Sentinel

STALL = 60.0

times = st.floats(0, 1e6)
pauses = st.floats(0, 200)


def before(moment: float) -> float:
    return math.nextafter(moment, -math.inf)


def serving(step: float, *, count: int = USUAL_AFTER, stall_time: float = STALL) -> Pulse:
    """A worker with one sequence after so many steps of `step` seconds, each seen as it ended; the
    last one ended at `count * step`."""
    pulse = Pulse(stall_time)
    for number in range(count + 1):
        pulse.answered(number * step, number, held=1)
    return pulse


def test_the_numbers_are_those_of_the_design() -> None:
    assert (HEARTBEAT, HEARTBEAT_DEADLINE, SILENCE, STOPPED) == (0.1, 0.25, 5.0, 0.1)
    assert (STEPS_LONGER, LEAST_STALL, USUAL_AFTER) == (20.0, 5.0, 20)
    assert {Sign.STOPPED, Sign.SILENT, Sign.HUNG} == DEAD


def test_a_worker_of_which_nothing_is_known_is_fine() -> None:
    assert Pulse(STALL).sign(1e9) is Sign.FINE
    assert not Pulse(STALL).waits


@pytest.mark.parametrize(
    ("late", "sign"),
    [
        (0.0, Sign.FINE),
        (before(0.25), Sign.FINE),
        (0.25, Sign.SUSPECT),
        (before(5.0), Sign.SUSPECT),
        (5.0, Sign.SILENT),
        (1e6, Sign.SILENT),
    ],
)
def test_a_heartbeat_that_is_late_is_suspect_and_then_silence(late: float, sign: Sign) -> None:
    pulse = Pulse(STALL)
    pulse.asked(0.0)
    assert pulse.sign(late) is sign


def test_a_heartbeat_that_comes_back_clears_the_suspicion() -> None:
    pulse = Pulse(STALL)
    pulse.asked(0.0)
    assert pulse.sign(4.0) is Sign.SUSPECT
    pulse.answered(4.0, 0, held=0)
    assert not pulse.waits
    assert pulse.sign(4.0) is Sign.FINE
    pulse.asked(4.1)
    assert pulse.sign(4.2) is Sign.FINE
    assert pulse.sign(4.4) is Sign.SUSPECT


def test_more_pings_do_not_make_the_oldest_one_younger() -> None:
    pulse = Pulse(STALL)
    for number in range(60):
        pulse.asked(number * HEARTBEAT)
    assert pulse.sign(SILENCE) is Sign.SILENT


@given(times, pauses)
def test_only_the_age_of_the_oldest_ping_counts(start: float, late: float) -> None:
    pulse = Pulse(STALL)
    pulse.asked(start)
    late = start + late - start  # what is left of it in floating point
    expected = Sign.FINE if late < HEARTBEAT_DEADLINE else Sign.SUSPECT
    assert pulse.sign(start + late) is (Sign.SILENT if late >= SILENCE else expected)


@pytest.mark.parametrize(
    ("stopped", "sign"), [(0.0, Sign.FINE), (before(0.1), Sign.FINE), (0.1, Sign.STOPPED)]
)
def test_a_process_that_stays_stopped_for_a_tenth_of_a_second_is_dead(
    stopped: float, sign: Sign
) -> None:
    pulse = Pulse(STALL)
    pulse.stopped(0.0, True)
    pulse.stopped(stopped, True)
    assert pulse.sign(stopped) is sign


def test_short_stops_never_add_up() -> None:
    pulse = Pulse(STALL)
    for number in range(100):
        pulse.stopped(number * 0.1, True)
        assert pulse.sign(number * 0.1 + 0.09) is Sign.FINE
        pulse.stopped(number * 0.1 + 0.09, False)
        assert pulse.sign(number * 0.1 + 0.09) is Sign.FINE


def test_of_all_that_is_wrong_a_stop_is_told_first() -> None:
    pulse = serving(0.1)
    pulse.asked(3.0)
    pulse.stopped(3.0, True)
    assert pulse.sign(1e3) is Sign.STOPPED


@pytest.mark.parametrize("stall_time", [0.5, 5.0, 60.0, 600.0])
def test_before_its_steps_are_known_a_worker_may_be_still_for_stall_time(stall_time: float) -> None:
    for pulse in (Pulse(stall_time), serving(0.01, count=USUAL_AFTER - 1, stall_time=stall_time)):
        assert pulse.limit == stall_time
    pulse = Pulse(stall_time)
    pulse.answered(0.0, 0, held=1)
    assert pulse.sign(stall_time) is Sign.FINE
    assert pulse.sign(math.nextafter(stall_time, math.inf)) is Sign.HUNG


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        (0.001, LEAST_STALL),
        (0.25, LEAST_STALL),
        (0.5, 10.0),
        (2.5, 50.0),
        (3.0, STALL),
        (30.0, STALL),
    ],
)
def test_after_twenty_steps_the_longest_of_them_tells_what_a_hang_is(
    step: float, limit: float
) -> None:
    pulse = serving(step)
    assert pulse.limit == pytest.approx(limit)
    last = USUAL_AFTER * step
    assert pulse.sign(last + 0.999 * limit) is Sign.FINE
    assert pulse.sign(last + 1.001 * limit) is Sign.HUNG


def test_a_short_stall_time_is_kept_to_even_where_steps_are_long() -> None:
    pulse = serving(1.0, stall_time=2.0)
    assert pulse.limit == 2.0
    assert pulse.sign(USUAL_AFTER + 2.1) is Sign.HUNG


def test_one_long_step_is_remembered_for_a_while_and_then_forgotten() -> None:
    pulse = serving(0.01)
    now, steps = USUAL_AFTER * 0.01 + 1.0, USUAL_AFTER + 1
    pulse.answered(now, steps, held=1)
    assert pulse.limit == pytest.approx(20.0)
    limits = []
    for _ in range(1_000):
        now, steps = now + 0.01, steps + 1
        pulse.answered(now, steps, held=1)
        limits.append(pulse.limit)
    assert limits == sorted(limits, reverse=True)
    assert limits[100] > 10.0
    assert limits[-1] == LEAST_STALL


def test_many_steps_between_two_heartbeats_count_one_by_one() -> None:
    pulse = Pulse(STALL)
    pulse.answered(0.0, 0, held=1)
    pulse.answered(0.1, USUAL_AFTER - 1, held=1)
    assert pulse.limit == STALL
    pulse.answered(0.2, USUAL_AFTER, held=1)
    assert pulse.limit == LEAST_STALL


def test_a_heartbeat_without_a_step_does_not_hide_a_hang() -> None:
    pulse = serving(0.01)
    now = USUAL_AFTER * 0.01
    while pulse.sign(now) is Sign.FINE:
        now += HEARTBEAT
        pulse.asked(now)
        pulse.answered(now + 0.01, USUAL_AFTER, held=1)
        assert now < 10.0
    assert pulse.sign(now) is Sign.HUNG
    assert now == pytest.approx(USUAL_AFTER * 0.01 + LEAST_STALL, abs=2 * HEARTBEAT)


def test_a_worker_with_nothing_to_do_never_hangs() -> None:
    pulse = serving(0.01)
    pulse.answered(0.3, USUAL_AFTER, held=0)
    assert pulse.sign(1e9) is Sign.FINE
    assert pulse.stillness(1e9) == 0.0


def test_the_time_without_work_counts_for_nothing_when_work_comes() -> None:
    pulse = serving(0.01, stall_time=600.0)
    pulse.answered(0.3, USUAL_AFTER, held=0)
    pulse.answered(1_000.0, USUAL_AFTER, held=1)
    assert pulse.sign(1_004.9) is Sign.FINE
    pulse.answered(1_004.9, USUAL_AFTER + 1, held=1)
    assert pulse.limit == pytest.approx(STEPS_LONGER * 4.9)


def test_the_last_step_of_a_burst_is_seen_though_nothing_is_left_to_do() -> None:
    pulse = Pulse(STALL)
    pulse.answered(0.0, 0, held=1)
    pulse.answered(0.5, USUAL_AFTER, held=0)
    assert pulse.limit == pytest.approx(10.0)


def test_stillness_is_a_share_of_the_limit() -> None:
    pulse = serving(0.5)
    last = USUAL_AFTER * 0.5
    assert pulse.stillness(last) == 0.0
    assert pulse.stillness(last + 2.5) == pytest.approx(0.25)
    assert pulse.stillness(last + 20.0) == pytest.approx(2.0)


def test_a_time_that_lies_before_the_last_step_is_no_stillness() -> None:
    assert serving(0.5).stillness(0.0) == 0.0


answers = st.lists(
    st.tuples(st.floats(0, 30), st.integers(-3, 50), st.integers(0, 4)), min_size=1, max_size=60
)


@given(answers, st.floats(0.1, 1_000))
def test_a_worker_may_say_anything_and_is_bounded_by_stall_time(
    said: list[tuple[float, int, int]], stall_time: float
) -> None:
    pulse, now, steps, held = Pulse(stall_time), 0.0, 0, 0
    for pause, more, held in said:
        now, steps = now + pause, steps + more
        pulse.answered(now, steps, held)
        assert 0.0 < pulse.limit <= stall_time
        assert pulse.limit >= min(stall_time, LEAST_STALL)
        assert (pulse.sign(now + 2 * stall_time + 1) is Sign.HUNG) == (pulse.stillness(1e9) > 0)
        assert held or pulse.stillness(1e9) == 0.0


@given(st.lists(st.floats(0.001, 30), min_size=USUAL_AFTER, max_size=60))
def test_no_step_like_those_before_it_is_a_hang(steps: list[float]) -> None:
    pulse, now = Pulse(1e9), 0.0
    pulse.answered(now, 0, held=1)
    for number, step in enumerate(steps, start=1):
        now += step
        assert pulse.sign(now) is Sign.FINE
        pulse.answered(now, number, held=1)
    # Forgetting takes off a quarter in 60 steps.
    assert pulse.sign(now + 14 * max(steps)) is Sign.FINE


class Naps:
    """A clock whose sleeps take as long as it was told, one after the other; the last one never
    ends."""

    def __init__(self, lengths: Iterable[float]) -> None:
        self._lengths = iter(lengths)
        self._now = 0.0
        self.over = asyncio.Event()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        length = next(self._lengths, None)
        if length is None:
            self.over.set()
            await asyncio.Event().wait()
        else:
            self._now += length


class Mute:
    """A worker that runs and answers no ping, with its link and what the kernel says of it."""

    pid, calls, closed = 1, {1: print}, False

    def __init__(self) -> None:
        self.link = self.proc = self
        self.pings = 0

    def look(self) -> Look:
        return Look(exiting=False, stopped=False, status=0)

    def waited(self) -> None:
        return None

    def ping(self, answered: Callable[[wire.Pong], None], *, gauges: bool) -> None:
        self.pings += 1

    def urge(self, why: str) -> None:
        pass

    def close(self, why: str, *, loss: object) -> None:
        self.closed = True


class Patient:
    """As much of a replica as the sentinel reads."""

    id, suspect, vitals, gauges = "m-1", False, None, None

    class source:
        file = None

        class settings:
            stall_time = STALL


async def watched(lengths: Iterable[float]) -> list[News]:
    """What the sentinel says of a mute worker while it looks around after so many seconds each."""
    clock, said, worker = Naps(lengths), [], Mute()
    replica: Any = Patient()
    replica.worker = worker
    sentinel = Sentinel(said.append, clock, Cores(clock, total=1))
    sentinel.admit(replica, 1, worker)  # type: ignore[arg-type]
    sentinel.serves(replica)
    watch = asyncio.create_task(sentinel.run())
    await clock.over.wait()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert worker.pings == 1
    return said


async def test_a_worker_that_answers_no_ping_is_given_up_once_the_daemon_has_seen_that() -> None:
    [death] = await watched([TICK] * 260)
    assert isinstance(death, Message)
    assert (death.detail, death.outside) == ("no heartbeat for 5 s", True)


@pytest.mark.parametrize("asleep", [1.0, 60.0, 1e5])
async def test_what_the_daemon_slept_through_is_nobodys_silence(asleep: float) -> None:
    assert await watched([TICK, asleep, *[TICK] * 3]) == []


async def test_a_daemon_that_is_starved_all_the_time_gives_no_worker_up_for_it() -> None:
    """It looks fifty times a second at best, and here once in two seconds."""
    assert await watched(itertools.repeat(2.0, 90)) == []

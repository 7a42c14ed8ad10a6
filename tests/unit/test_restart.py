"""Pauses before a restart, and what counts as a crash loop."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.supervise.restart import (
    CRASH_WINDOW,
    CRASHES,
    FIRST_PAUSE,
    FORGIVEN_AFTER,
    LONGEST_PAUSE,
    Restart,
)

randoms = st.randoms(use_true_random=False)
# (seconds from the last death to being ready, seconds of being ready)
lives = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 200)), min_size=1, max_size=40)


class Longest(random.Random):
    """Draws the upper end of every range."""

    def uniform(self, a: float, b: float) -> float:
        return b


def after(*deaths: float) -> Restart:
    """Of a replica that died at these times, and was never ready between."""
    restart = Restart()
    for now in deaths:
        restart.died(now, 0.0, random.Random(1))
    return restart


def test_the_first_death_is_followed_by_a_start_at_once() -> None:
    assert Restart().died(5.0, 0.0, random.Random(1)) == 0.0


def test_pauses_double_from_half_a_second_to_thirty() -> None:
    restart, rng = Restart(), Longest()
    pauses = [restart.died(float(n), 0.0, rng) for n in range(10)]
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_no_number_of_deaths_makes_a_pause_longer_than_thirty_seconds() -> None:
    assert Restart(deaths=10**6).died(0.0, 0.0, Longest()) == LONGEST_PAUSE


def test_a_pause_may_be_anything_below_its_bound() -> None:
    rng = random.Random(3)
    pauses = [Restart(deaths=9).died(0.0, 0.0, rng) for _ in range(1_000)]
    assert min(pauses) < 0.05 * LONGEST_PAUSE
    assert max(pauses) > 0.95 * LONGEST_PAUSE
    assert sum(pauses) / len(pauses) == pytest.approx(LONGEST_PAUSE / 2, rel=0.1)


@given(lives, randoms)
def test_a_pause_keeps_within_the_bound_of_its_number(
    lived: list[tuple[float, float]], rng: random.Random
) -> None:
    restart, now = Restart(), 0.0
    for n, (starting, healthy) in enumerate(lived):
        now += starting + healthy
        pause = restart.died(now, healthy, rng)
        assert 1 <= restart.deaths <= n + 1
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (restart.deaths - 2))
        assert 0.0 <= pause <= (bound if restart.deaths > 1 else 0.0)


@given(st.integers(0, 50), st.floats(0, 10_000), randoms)
def test_each_whole_minute_of_being_ready_forgives_one_death(
    before: int, healthy: float, rng: random.Random
) -> None:
    restart = Restart(deaths=before)
    restart.died(0.0, healthy, rng)
    assert restart.deaths == max(0, before - math.floor(healthy / FORGIVEN_AFTER)) + 1


@pytest.mark.parametrize(
    ("healthy", "left"), [(0.0, 5), (59.999, 5), (60.0, 4), (119.9, 4), (120.0, 3), (1e9, 1)]
)
def test_healthy_time_forgives_deaths(healthy: float, left: int) -> None:
    restart = Restart(deaths=4)
    restart.died(0.0, healthy, random.Random(1))
    assert restart.deaths == left


@given(st.floats(0, 1_000), st.floats(0, 1_000), randoms)
def test_longer_healthy_time_never_leaves_more_deaths(
    one: float, other: float, rng: random.Random
) -> None:
    short, long = Restart(deaths=12), Restart(deaths=12)
    short.died(0.0, min(one, other), rng)
    long.died(0.0, max(one, other), rng)
    assert long.deaths <= short.deaths


def test_four_deaths_are_no_crash_loop_and_the_fifth_is() -> None:
    restart = Restart()
    seen = []
    for n in range(CRASHES):
        restart.died(float(n), 0.0, random.Random(1))
        seen.append(restart.crash_loop(float(n)))
    assert seen == [False, False, False, False, True]


def test_five_deaths_at_one_moment_are_a_crash_loop() -> None:
    assert after(*[7.0] * CRASHES).crash_loop(7.0)


def test_the_window_holds_its_last_moment_and_no_more() -> None:
    assert after(0, 1, 2, 3, CRASH_WINDOW).crash_loop(CRASH_WINDOW)
    late = math.nextafter(CRASH_WINDOW, math.inf)
    assert not after(0, 1, 2, 3, late).crash_loop(late)


def test_the_window_slides_with_the_last_five_deaths() -> None:
    assert not after(0, 20, 40, 60, 80, 100).crash_loop(100)
    assert after(0, 100, 110, 120, 130, 140).crash_loop(140)
    assert not after(0, 1, 2, 3, 4, 1000).crash_loop(1000)


def test_a_crash_loop_is_not_ended_by_waiting_or_loading() -> None:
    restart = after(0, 1, 2, 3, 4)
    assert restart.crash_loop(1e6)


def test_a_whole_minute_of_being_ready_ends_a_crash_loop() -> None:
    restart = after(0, 1, 2, 3, 4)
    assert restart.crash_loop(100.0, ready_since=100.0)
    assert restart.crash_loop(math.nextafter(160.0, 0), ready_since=100.0)
    assert not restart.crash_loop(160.0, ready_since=100.0)


def test_a_death_within_the_minute_keeps_the_crash_loop() -> None:
    restart = after(0, 1, 2, 3, 4)
    restart.died(50.0, 40.0, random.Random(1))
    assert restart.crash_loop(50.0)


@given(lives.filter(lambda lived: len(lived) >= CRASHES), randoms)
def test_a_crash_loop_is_five_deaths_that_fit_into_a_minute(
    lived: list[tuple[float, float]], rng: random.Random
) -> None:
    restart, now, died = Restart(), 0.0, [-math.inf] * (CRASHES - 1)
    for starting, healthy in lived:
        now += starting + healthy
        restart.died(now, healthy, rng)
        died.append(now)
        assert restart.crash_loop(now) == (now - died[-CRASHES] <= CRASH_WINDOW)


@given(lives, randoms)
def test_no_death_after_a_forgiving_stretch_is_a_crash_loop(
    lived: list[tuple[float, float]], rng: random.Random
) -> None:
    restart, now = after(0, 1, 2, 3, 4), 4.0
    for starting, healthy in lived:
        ready_since = now + starting
        now = ready_since + healthy
        forgiven = not restart.crash_loop(now, ready_since)
        restart.died(now, healthy, rng)
        if healthy > FORGIVEN_AFTER + 1e-6:  # the sums above are rounded
            assert forgiven
            assert not restart.crash_loop(now)


def test_no_more_deaths_are_kept_than_are_needed() -> None:
    assert len(after(*range(1_000))._last) == CRASHES

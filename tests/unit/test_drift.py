"""Drift of a worker from its own baseline: how soon it is seen, and what is never taken for it.

Time is simulated, noise is seeded, and delays are in samples, one a second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.supervise.drift import (
    LARGEST_BATCH,
    LEARNED_SIZES,
    LEARNED_STEPS,
    STEP_LIMIT,
    STEP_SLACK,
    Cusum,
    Leak,
    SlowCreep,
)

DAY = 24 * 3600
STEP = 0.050
MB, MIB = 10**6, 2**20
SETTLED = 300 * MB


class Steps:
    """A worker that is sampled once a second, and whose steps take what the test says."""

    def __init__(self, scatter: float = 0.0, seed: int = 1) -> None:
        self.creep = SlowCreep()
        self.now = 0.0
        self._scatter = scatter
        self._random = random.Random(seed)

    def run(self, samples: int, times: float = 1.0, batch: int = 1) -> None:
        for _ in range(samples):
            self.now += 1.0
            noise = self._random.lognormvariate(0.0, self._scatter)
            self.creep.feed(STEP * times * noise, batch, self.now)

    def delay(self, times: Callable[[int], float], within: int = 1000) -> int:
        """Samples until the alarm; the n-th is `times(n)` as slow as the baseline. One more than
        were judged, since a moment is judged as the next one comes."""
        for n in range(1, within + 1):
            self.run(1, times(n))
            if self.creep.alarm:
                return n
        raise AssertionError(f"no alarm after {within} samples; level {self.creep.level:.2f}")

    def alarms(self, samples: int, times: float = 1.0) -> int:
        """In how many of so many samples there was an alarm."""
        alarms = 0
        for _ in range(samples):
            self.run(1, times)
            alarms += self.creep.alarm
        return alarms


def learned(scatter: float = 0.0, seed: int = 1) -> Steps:
    steps = Steps(scatter, seed)
    steps.run(LEARNED_STEPS + 1)
    return steps


def test_a_sum_alarms_at_its_limit_and_forgets_what_returns() -> None:
    cusum = Cusum(10.0)
    cusum.add(-5.0)
    assert cusum.sum == 0.0
    cusum.add(9.9)
    assert cusum.level < 1.0
    cusum.add(0.1)
    assert cusum.level == 1.0
    cusum.add(-4.0)
    assert cusum.level == pytest.approx(0.6)


def test_a_sum_never_grows_so_far_that_its_alarm_would_not_end() -> None:
    cusum = Cusum(10.0)
    for _ in range(1_000):
        cusum.add(7.0)
    assert cusum.sum == 20.0


@pytest.mark.parametrize(("scatter", "seed"), [(0.2, 1), (0.2, 2), (0.3, 3)])
def test_a_day_of_usual_noise_raises_no_alarm(scatter: float, seed: int) -> None:
    steps = Steps(scatter, seed)
    assert steps.alarms(DAY) == 0
    assert steps.creep.slowdown == pytest.approx(1.0, abs=0.3)


def test_nearly_half_as_slow_again_raises_no_alarm_but_is_shown() -> None:
    steps = learned()
    assert steps.alarms(3600, times=math.exp(STEP_SLACK) * 0.999) == 0
    assert steps.creep.slowdown == pytest.approx(1.47, abs=0.03)


def test_twice_as_slow_is_seen_within_half_a_minute() -> None:
    assert learned().delay(lambda _: 2.0) == 29


def test_four_times_as_slow_is_seen_within_ten_seconds() -> None:
    assert learned().delay(lambda _: 4.0) == 10


@pytest.mark.parametrize("seed", range(10))
def test_noise_hardly_changes_how_soon_twice_as_slow_is_seen(seed: int) -> None:
    assert 18 <= learned(0.2, seed).delay(lambda _: 2.0) <= 60


def test_a_creep_of_one_percent_a_sample_is_seen_when_a_step_takes_little_over_twice() -> None:
    assert learned().delay(lambda n: 1.01**n) == 81


def test_a_creep_that_doubles_within_a_day_does_not_become_the_baseline() -> None:
    steps = learned()
    seen = steps.delay(lambda n: 2.0 ** (n / DAY), within=DAY)
    assert 1.4 < 2.0 ** (seen / DAY) < 2.0


def test_one_long_pause_is_no_alarm() -> None:
    steps = learned()
    steps.run(4, times=1_000.0)
    steps.run(1)
    assert steps.creep.level < 1.0
    assert steps.alarms(60) == 0


def test_cold_first_steps_do_not_become_the_baseline() -> None:
    steps = Steps()
    steps.run(6, times=10.0)
    steps.run(LEARNED_STEPS)
    assert steps.delay(lambda _: 2.0) == 29


def test_nothing_is_said_before_a_baseline_is_learned() -> None:
    steps = Steps()
    steps.run(LEARNED_STEPS)
    assert steps.creep.slowdown is None
    assert steps.creep.level == 0.0
    steps.run(2, times=3.0)
    assert steps.creep.slowdown is not None


def test_the_slowdown_is_half_way_after_its_half_life_and_then_there() -> None:
    steps = learned()
    steps.run(2)
    steps.run(11, times=4.0)
    assert steps.creep.slowdown == pytest.approx(2.0, rel=0.01)
    steps.run(100, times=4.0)
    assert steps.creep.slowdown == pytest.approx(4.0, rel=0.01)


def test_a_worker_that_is_quick_again_ends_the_alarm_after_twenty_samples() -> None:
    steps = learned()
    steps.run(3600, times=3.0)
    assert steps.creep.alarm
    assert steps.alarms(60) == 20


def test_a_worker_that_stays_slow_does_not_become_its_own_usual() -> None:
    steps = learned()
    steps.run(100, times=2.0)
    assert steps.alarms(6 * 3600, times=2.0) == 6 * 3600


def test_each_batch_size_has_a_baseline_of_its_own() -> None:
    steps = learned()
    for _ in range(200):
        steps.run(1)
        steps.run(1, times=8.0, batch=8)
    assert steps.creep.level == 0.0
    assert steps.creep.slowdown == pytest.approx(1.0)


def test_large_batches_share_a_baseline_so_that_there_is_an_end_of_them() -> None:
    steps = Steps()
    for batch in range(1, 5_000):
        steps.run(1, batch=batch)
    assert len(steps.creep._usual) == LARGEST_BATCH + 1
    assert steps.creep.slowdown == pytest.approx(1.0)


def test_all_batch_sizes_of_one_moment_count_as_one_sample() -> None:
    creep = SlowCreep()
    for now in range(LEARNED_STEPS):
        for batch in (1, 2, 3):
            creep.feed(STEP, batch, now)
    delay = 0
    for now in range(LEARNED_STEPS, 100):
        for batch in (1, 2, 3):
            creep.feed(2 * STEP, batch, now)
        delay += 1
        if creep.alarm:
            break
    assert delay == 29


def test_a_batch_size_counts_once_a_moment() -> None:
    creep = SlowCreep()
    for _ in range(1_000):
        creep.feed(STEP, 1, 5.0)
    creep.feed(STEP, 1, 6.0)
    creep.feed(STEP, 1, 7.0)
    assert creep.slowdown is None


@pytest.mark.parametrize(
    ("step", "batch", "later"),
    [
        (math.nan, 1, 1.0),
        (math.inf, 1, 1.0),
        (0.0, 1, 1.0),
        (-1.0, 1, 1.0),
        (9.0, 0, 1.0),
        (9.0, -3, 1.0),
        (9.0, 1, -1.0),
        (9.0, 1, 0.0),
        (9.0, 1, math.nan),
        (9.0, 1, math.inf),
    ],
)
def test_a_sample_that_makes_no_sense_is_ignored(step: float, batch: int, later: float) -> None:
    steps = learned()
    for _ in range(100):
        steps.creep.feed(step, batch, steps.now + later)
    assert steps.creep.level == 0.0
    assert steps.delay(lambda _: 2.0) == 29


@given(st.lists(st.tuples(st.floats(), st.integers() | st.just(10**400), st.floats()), max_size=60))
def test_no_samples_break_the_detector_of_slowness(
    samples: list[tuple[float, int, float]],
) -> None:
    creep = SlowCreep()
    for step, batch, now in samples:
        creep.feed(step, batch, now)
        assert 0.0 <= creep.level <= 1.0
        assert creep.slowdown is None or 0.0 < creep.slowdown < math.inf


@given(st.lists(st.floats(1e-300, 1e300), min_size=LEARNED_STEPS + 2, max_size=60))
def test_steps_of_any_length_stay_within_what_can_be_shown(durations: list[float]) -> None:
    creep = SlowCreep()
    for now, step in enumerate(durations):
        creep.feed(step, 1, float(now))
        assert 0.0 <= creep.level <= 1.0
    assert creep.slowdown is not None
    assert 0.01 < creep.slowdown < 100.0


class Memory:
    """A worker that has settled at `at` bytes, and is sampled once a second."""

    def __init__(self, at: int = SETTLED) -> None:
        self.leak = Leak()
        self.now = 0.0
        self.at = at
        self.feed(self.at for _ in range(LEARNED_SIZES))

    def feed(self, sizes: Iterable[float]) -> int:
        """In how many of the samples there was an alarm."""
        alarms = 0
        for size in sizes:
            self.now += 1.0
            self.leak.feed(int(size), self.now)
            alarms += self.leak.alarm
        return alarms

    def grow(self, rate: float, seconds: int) -> int:
        start = self.at
        self.at += int(rate * seconds)
        return self.feed(start + rate * n for n in range(1, seconds + 1))

    def stay(self, seconds: int) -> int:
        return self.feed(self.at for _ in range(seconds))

    def delay(self, rate: float, within: int = 3600) -> int:
        for n in range(1, within + 1):
            if self.grow(rate, 1):
                return n
        raise AssertionError(f"no alarm after {within} samples; level {self.leak.level:.2f}")


def test_a_leak_of_a_megabyte_a_second_is_seen_in_a_minute_and_a_half() -> None:
    assert Memory().delay(1 * MB) == 90


def test_a_leak_of_ten_megabytes_a_second_is_seen_in_eighty_seconds() -> None:
    assert Memory().delay(10 * MB) == 80


def test_a_leak_of_a_large_worker_is_seen_when_it_is_a_fifth_of_it() -> None:
    memory = Memory(at=1_000 * MB)
    assert memory.delay(1 * MB) == 210
    assert memory.leak.growth >= 200 * MB


def test_a_slow_leak_is_seen_within_minutes() -> None:
    assert Memory().delay(300 * 2**10) == 400


def test_a_leak_in_lumps_is_seen_as_well() -> None:
    memory = Memory()
    assert memory.feed(SETTLED + 8 * MIB * (n // 8) for n in range(200)) > 80


def test_a_leak_beneath_memory_that_comes_and_goes_with_requests_is_seen() -> None:
    memory = Memory()
    assert memory.feed(SETTLED + MB * n + (n % 5) * 25 * MB for n in range(200)) > 80


def test_a_day_of_noise_is_no_leak() -> None:
    rng = random.Random(4)
    memory = Memory()
    assert memory.feed(SETTLED + rng.lognormvariate(17.0, 0.5) for _ in range(DAY)) == 0
    assert abs(memory.leak.rate) < MB


@pytest.mark.parametrize("size", [100, 200, 2_000])
def test_a_cache_that_fills_up_within_a_minute_and_stops_is_no_leak(size: int) -> None:
    """However large: the sum counts for how long memory grows, not how much."""
    memory = Memory()
    seconds = 20 if size == 200 else 50
    assert memory.grow(size * MB / seconds, seconds) + memory.stay(DAY // 4) == 0
    assert memory.leak.growth == pytest.approx(size * MB, abs=2)
    assert memory.leak.rate == pytest.approx(0.0, abs=1.0)


def test_a_cache_that_takes_minutes_to_fill_looks_like_a_leak_until_it_has_stopped() -> None:
    memory = Memory()
    assert memory.grow(1 * MB, 300) > 0
    assert memory.leak.alarm
    memory.stay(600)
    assert not memory.leak.alarm


@pytest.mark.parametrize(("rate", "rise"), [(10 * MB, 20), (5 * MB, 60), (200 * MB, 9)])
def test_memory_that_rises_and_returns_within_a_minute_is_no_leak(rate: int, rise: int) -> None:
    memory = Memory()
    assert memory.feed(SETTLED + rate * (n % rise) for n in range(6 * 3600)) == 0


def test_memory_that_is_given_back_ends_the_alarm() -> None:
    memory = Memory()
    memory.grow(2 * MB, 120)
    assert memory.leak.alarm
    memory.at = SETTLED
    memory.stay(20)
    assert (memory.leak.alarm, memory.leak.level, memory.leak.growth) == (False, 0.0, 0)


def test_growth_below_the_slack_is_left_to_those_who_watch_the_level() -> None:
    memory = Memory()
    assert memory.grow(120 * 2**10, 6 * 3600) == 0
    assert memory.leak.full_in(10**12) is None


def test_lasting_growth_that_is_worth_no_restart_raises_nothing() -> None:
    memory = Memory(at=10_000 * MB)
    assert memory.grow(5 * MB, 380) == 0
    assert memory.leak.level == pytest.approx(0.95, abs=0.03)


def test_the_baseline_follows_the_level_while_a_worker_settles() -> None:
    leak = Leak()
    for n in range(LEARNED_SIZES):
        leak.feed(SETTLED + 50 * MB * n, float(n))
    top = SETTLED + 50 * MB * (LEARNED_SIZES - 1)
    for n in range(LEARNED_SIZES, 600):
        leak.feed(top, float(n))
        assert leak.level == 0.0
    assert leak.growth == 0


def test_a_gap_in_the_samples_is_not_lasting_growth() -> None:
    memory = Memory()
    memory.now += 3600.0
    memory.at += 2_000 * MB
    assert memory.stay(3600) == 0


def test_the_rate_tells_when_memory_will_be_full() -> None:
    memory = Memory()
    memory.grow(4 * MB, 100)
    assert memory.leak.rate == pytest.approx(4 * MB, rel=0.1)
    left = memory.leak.full_in(memory.at + 400 * MB)
    assert left == pytest.approx(100, rel=0.1)
    assert memory.leak.full_in(memory.at - 1) == 0.0


def test_a_fast_leak_can_be_foretold_before_its_alarm() -> None:
    memory = Memory()
    memory.grow(100 * MB, 40)
    assert not memory.leak.alarm
    assert memory.leak.full_in(memory.at + 4_000 * MB) == pytest.approx(40, rel=0.2)


def test_without_growth_nothing_is_foretold() -> None:
    assert Leak().full_in(10**9) is None
    memory = Memory()
    memory.stay(100)
    assert memory.leak.full_in(10**9) is None


@pytest.mark.parametrize("size", [0, -5, 2**70, 10**400, math.nan, math.inf])
def test_a_size_that_makes_no_sense_is_ignored(size: int) -> None:
    memory = Memory()
    for n in range(100):
        memory.leak.feed(size, memory.now + n)
    assert memory.delay(1 * MB) == 90


@pytest.mark.parametrize("later", [0.0, -1.0, -1e9, math.nan, math.inf])
def test_a_size_without_new_time_is_ignored(later: float) -> None:
    memory = Memory()
    for _ in range(100):
        memory.leak.feed(10**10, memory.now + later)
    assert memory.delay(1 * MB) == 90


sizes = st.integers(-(2**70), 2**70) | st.just(10**400)


@given(st.lists(st.tuples(sizes, st.floats()), max_size=80))
def test_no_samples_break_the_detector_of_leaks(samples: list[tuple[int, float]]) -> None:
    leak = Leak()
    for private, now in samples:
        leak.feed(private, now)
        assert 0.0 <= leak.level <= 1.0
        assert leak.growth >= 0
        assert not math.isnan(leak.rate)
        assert (left := leak.full_in(2**40)) is None or left >= 0.0


@given(st.lists(st.integers(1, 2**40), max_size=300), st.floats(0.01, 100.0))
def test_an_alarm_of_a_leak_always_comes_with_growth(private: list[int], every: float) -> None:
    leak = Leak()
    for size, n in zip(private, count(), strict=False):
        leak.feed(size, n * every)
        assert leak.alarm <= (leak.growth >= 64 * MIB)


def test_what_never_rises_above_its_baseline_is_no_leak() -> None:
    rng = random.Random(9)
    memory = Memory()
    falling = (max(1.0, SETTLED - abs(rng.gauss(0, 50)) * MB) for _ in count())
    assert memory.feed(islice(falling, 3600)) == 0
    assert memory.leak.level == 0.0


def test_the_level_of_slowness_rises_by_the_deviation_over_the_slack() -> None:
    steps = learned()
    steps.run(11, times=2.0)
    assert steps.creep.level == pytest.approx(
        10 * (math.log(2) - STEP_SLACK) / STEP_LIMIT, rel=0.01
    )

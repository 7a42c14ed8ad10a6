"""Health of a replica: its parts, its score, what the score earns, and the smoothing beneath."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.supervise.ewma import Ewma
from hxd.daemon.supervise.health import (
    ASSUMED_REQUESTS,
    RAMP_STEP,
    Signs,
    assess,
    ramp,
    weight,
)

counts = st.integers(0, 10_000)
shares = st.floats(0, 1)
signs = st.builds(
    Signs,
    failures=counts,
    requests=counts,
    slowdown=st.none() | st.floats(0, 1000),
    queued=counts,
    slots=st.integers(1, 256),
    memory_growth=shares,
    still=shares,
)
# What a worker may say instead of a number that makes sense; the types are those of the wire.
whole = st.integers() | st.just(10**400) | st.just(-(10**400))
broken = st.builds(
    Signs,
    failures=whole,
    requests=whole,
    slowdown=st.none() | st.floats(),
    queued=whole,
    slots=whole,
    memory_growth=st.floats(),
    still=st.floats(),
)


def score(**known: Any) -> float:
    return assess(Signs(**known)).score


def test_no_news_is_good_news() -> None:
    assert set(asdict(assess(Signs())).values()) == {1.0}


def test_the_breakers_threshold_leaves_the_last_weight() -> None:
    assert score(failures=1_000, requests=10_000) == pytest.approx(0.6, abs=0.01)
    assert weight(score(failures=1_000, requests=10_000)) == 0.1
    assert score(failures=20, requests=200) == pytest.approx(0.6, abs=0.05)
    assert weight(score(failures=1_100, requests=10_000)) == 0.0


def test_a_quarter_of_failures_leaves_nothing() -> None:
    assert score(failures=3_000, requests=10_000) == 0.0


def test_one_failure_of_one_request_is_not_the_end() -> None:
    assert weight(score(failures=1, requests=1)) == 0.7
    assert score(failures=1, requests=1) > score(failures=100, requests=100) == 0.0


def test_the_same_share_of_failures_weighs_more_with_more_requests() -> None:
    scores = [score(failures=n, requests=10 * n) for n in range(1, 200)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.85


def test_more_failures_than_requests_count_as_that_many_requests() -> None:
    assert score(failures=7, requests=0) == score(failures=7, requests=7)


@pytest.mark.parametrize(
    ("slowdown", "expected"),
    [(None, 1), (0.5, 1), (1, 1), (1.25, 1), (2, 0.8), (4, 0.6), (8, 0.4), (32, 0), (1e6, 0)],
)
def test_each_doubling_of_the_step_costs_a_fifth(slowdown: float | None, expected: float) -> None:
    assert score(slowdown=slowdown) == pytest.approx(expected)


@pytest.mark.parametrize("edge", [1.25, 2.0, 32.0])
def test_latency_has_no_jump_at_its_joints(edge: float) -> None:
    assert score(slowdown=edge) == pytest.approx(score(slowdown=edge * 1.000001), abs=1e-5)


def test_a_queue_as_long_as_the_slots_costs_a_fifth_and_at_worst_two() -> None:
    assert score(queued=4, slots=4) == 0.8
    assert score(queued=8, slots=4) == 0.6
    assert score(queued=4_000, slots=4) == 0.6
    assert weight(score(queued=4_000, slots=4)) > 0


def test_no_slots_are_taken_as_one() -> None:
    assert score(queued=1, slots=0) == score(queued=1, slots=1)


def test_a_leak_alarm_leaves_little_traffic() -> None:
    assert score(memory_growth=1.0) == 0.65
    assert weight(score(memory_growth=1.0)) == 0.1


def test_standing_still_counts_from_half_of_its_limit() -> None:
    assert score(still=0.5) == 1.0
    assert score(still=0.75) == pytest.approx(0.5)
    assert score(still=1.0) == 0.0


def test_one_bad_part_is_enough_and_two_middling_ones_add_up() -> None:
    assert score(still=1.0, requests=500) == 0.0
    assert score(slowdown=2.0, queued=4, slots=4) == pytest.approx(0.64)


@given(signs)
def test_the_score_is_the_product_of_parts_between_none_and_one(known: Signs) -> None:
    health = assess(known)
    parts = [health.errors, health.latency, health.queue, health.memory, health.progress]
    assert all(0.0 <= part <= 1.0 for part in parts)
    assert health.score == pytest.approx(math.prod(parts))


@given(signs, st.sampled_from(["failures", "slowdown", "queued", "memory_growth", "still"]), shares)
def test_a_worse_sign_never_raises_the_score(known: Signs, which: str, more: float) -> None:
    usual = 1.0 if which == "slowdown" else 0.0
    worse = (getattr(known, which) or usual) + more
    assert assess(replace(known, **{which: worse})).score <= assess(known).score


@given(signs, st.sampled_from(["requests", "slots"]), st.integers(1, 100))
def test_more_room_or_more_that_went_well_never_lowers_the_score(
    known: Signs, which: str, more: int
) -> None:
    better = replace(known, **{which: getattr(known, which) + more})
    assert assess(better).score >= assess(known).score


@given(broken)
def test_nothing_that_a_worker_says_breaks_the_score(known: Signs) -> None:
    assert all(0.0 <= part <= 1.0 for part in asdict(assess(known)).values())


@pytest.mark.parametrize("name", [field.name for field in fields(Signs)])
def test_what_is_not_a_number_or_negative_is_no_news(name: str) -> None:
    for value in (math.nan, -1, -math.inf):
        assert score(**{name: value}) == 1.0


@pytest.mark.parametrize("name", ["failures", "slowdown", "memory_growth", "still", "queued"])
def test_the_infinite_is_the_worst_there_is(name: str) -> None:
    assert score(**{name: math.inf}) == min(score(**{name: value}) for value in (1, 100, 10**12))


@pytest.mark.parametrize(
    ("least", "share", "below"),
    [(0.9, 1.0, 0.7), (0.8, 0.7, 0.4), (0.7, 0.4, 0.1), (0.6, 0.1, 0.0)],
)
def test_each_weight_begins_at_its_score(least: float, share: float, below: float) -> None:
    assert weight(least) == share
    assert weight(math.nextafter(least, 0)) == below


def test_the_ends_of_the_table_and_what_is_no_score() -> None:
    assert weight(1.0) == 1.0
    assert weight(0.0) == weight(-1.0) == weight(math.nan) == 0.0


@given(shares, shares)
def test_a_better_score_never_weighs_less(one: float, other: float) -> None:
    assert weight(min(one, other)) <= weight(max(one, other))


def test_a_replica_that_comes_back_takes_a_tenth_then_a_third_then_all() -> None:
    assert ramp(0.0) == ramp(math.nextafter(RAMP_STEP, 0)) == 0.1
    assert ramp(RAMP_STEP) == ramp(math.nextafter(2 * RAMP_STEP, 0)) == 0.3
    assert ramp(2 * RAMP_STEP) == ramp(math.inf) == 1.0


def test_a_ramp_without_a_time_is_at_its_first_step() -> None:
    assert ramp(-1.0) == ramp(math.nan) == 0.1


def test_the_assumed_requests_are_those_that_the_breaker_asks_for() -> None:
    assert ASSUMED_REQUESTS == 20


def test_a_smoothed_value_begins_with_the_first_sample() -> None:
    ewma = Ewma(half_life=10.0)
    assert ewma.value is None
    assert ewma.update(3.0, 100.0) == ewma.value == 3.0


def test_half_is_forgotten_after_a_half_life_in_any_number_of_steps() -> None:
    for steps in (1, 3, 1000):
        ewma = Ewma(half_life=10.0)
        ewma.update(0.0, 0.0)
        for step in range(steps):
            ewma.update(1.0, (step + 1) * 10.0 / steps)
        assert ewma.value == pytest.approx(0.5)


def test_a_sample_without_a_value_or_without_new_time_is_ignored() -> None:
    ewma = Ewma(half_life=10.0)
    assert ewma.update(math.nan, 1.0) == 0.0
    assert ewma.value is None
    ewma.update(1.0, 5.0)
    for value, now in [(math.inf, 6.0), (9.0, 5.0), (9.0, 4.0), (9.0, math.nan), (9.0, math.inf)]:
        assert ewma.update(value, now) == 1.0


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1))
def test_a_smoothed_value_stays_among_its_samples(samples: list[tuple[float, float]]) -> None:
    ewma = Ewma(half_life=7.0)
    for value, now in samples:
        ewma.update(value, now)
    values = [value for value, _ in samples]
    assert ewma.value is not None
    assert min(values) - 1e-6 <= ewma.value <= max(values) + 1e-6

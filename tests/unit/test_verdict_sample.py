"""What is kept of a release: exact counts, fair values, and never more than fits."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.rollout.golden import MOST_PROMPTS, Outcome
from hxd.daemon.rollout.sample import (
    FIRST_REQUESTS,
    MOST_VALUES,
    Count,
    Reservoir,
    Sample,
    compare,
    quantile,
)


def test_requests_are_counted_and_the_callers_faults_are_not() -> None:
    sample = Sample()
    sample.request(True, None, 0.1, 30.0)
    sample.request(False, "backend", 0.2)
    sample.request(False, "caller", 9.0, 1.0)
    sample.request(False, "hxd")
    sample.request(False)
    assert sample.errors == Count(3, 4)
    assert sample.requests == 4
    assert sample.caller_faults == 1
    assert sample.faults == {"backend": 1, "hxd": 1, "unknown": 1}
    assert sample.ttft.values == [0.1, 0.2]
    assert sample.speed.values == [30.0]


def test_the_first_requests_are_counted_apart() -> None:
    sample = Sample()
    for n in range(50):
        sample.request(ok=n % 2 == 0, fault="backend")
    assert sample.first_errors == Count(FIRST_REQUESTS // 2, FIRST_REQUESTS)
    assert sample.errors == Count(25, 50)


def test_what_is_kept_stays_bounded_however_much_is_seen() -> None:
    sample = Sample()
    for n in range(3 * MOST_VALUES):
        sample.request(False, f"fault {n}", 0.1 + n, 1.0 + n)
        sample.golden(f"q{n}", Outcome.RIGHT)
    assert sample.ttft.seen == sample.speed.seen == 3 * MOST_VALUES
    assert len(sample.ttft.values) == len(sample.speed.values) == MOST_VALUES
    assert len(sample.outcomes) == MOST_PROMPTS
    assert sample.faults == {"unknown": 3 * MOST_VALUES}


def test_every_value_is_as_likely_to_be_kept() -> None:
    """Each of four quarters of a stream, within four standard deviations."""
    kept = Reservoir(seed=5)
    for n in range(4 * MOST_VALUES):
        kept.add(1.0 + n)
    for quarter in range(4):
        low = 1.0 + quarter * MOST_VALUES
        there = sum(low <= value < low + MOST_VALUES for value in kept.values)
        assert abs(there - MOST_VALUES / 4) < 4 * math.sqrt(MOST_VALUES / 4 * 0.75)


def test_the_same_seed_keeps_the_same_values() -> None:
    one, other = Reservoir(7, most=10), Reservoir(7, most=10)
    for n in range(1, 200):
        one.add(n)
        other.add(n)
    assert one.values == other.values


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1.0, 0.0])
def test_a_value_that_makes_no_sense_is_ignored(value: float | None) -> None:
    kept = Reservoir(1)
    kept.add(value)
    assert (kept.seen, kept.values) == (0, [])


def test_the_latest_outcome_of_a_prompt_counts() -> None:
    sample = Sample()
    sample.golden("a", Outcome.FAILED)
    sample.golden("b", Outcome.REFUSED)
    sample.golden("a", Outcome.RIGHT)
    assert sample.right == Count(1, 2)


def test_feedback_is_counted() -> None:
    sample = Sample()
    for good in (True, False, True):
        sample.feedback(good)
    assert sample.disliked == Count(1, 3)


def test_quantiles_lie_between_the_values_beside_them() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.95) == 3.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([0.0, 10.0], 0.95) == 9.5
    assert quantile([1.0, 2.0, 3.0], 1.0) == 3.0


@given(st.lists(st.floats(0.001, 1e6), min_size=1), st.floats(0.0, 1.0))
def test_a_quantile_is_never_outside_of_its_values(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found is not None
    assert min(values) * (1 - 1e-12) <= found <= max(values) * (1 + 1e-12)


def test_two_releases_are_shown_side_by_side_without_a_judgement() -> None:
    stable, canary = Sample(1), Sample(2)
    for n in range(100):
        stable.request(n > 0, "backend", 0.2, 40.0)
    for n in range(10):
        canary.request(n > 0, "backend", 0.1, 50.0)
    stable.golden("a", Outcome.RIGHT)
    canary.golden("a", Outcome.WRONG)
    stable.perplexity = 8.0
    rows = {row["metric"]: row for row in compare(stable, canary)}
    assert rows["error_rate"] == {
        "metric": "error_rate",
        "unit": "share",
        "stable": 0.01,
        "canary": 0.1,
        "stable_n": 100,
        "canary_n": 10,
        "difference": pytest.approx(0.09),
        "ratio": pytest.approx(10.0),
    }
    assert rows["ttft_median"]["ratio"] == pytest.approx(0.5)
    assert rows["speed_p5"]["canary"] == 50.0
    assert rows["golden_share"]["difference"] == -1.0
    assert (rows["disliked_share"]["stable"], rows["disliked_share"]["ratio"]) == (None, None)
    assert (rows["perplexity"]["stable"], rows["perplexity"]["difference"]) == (8.0, None)
    json.dumps(list(rows.values()), allow_nan=False)

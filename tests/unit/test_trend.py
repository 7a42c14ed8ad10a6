"""Memory that fills up soon is seen in seconds; memory that does not is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.supervise.trend import LEAST_GROWTH, LOOKS, Trend

MB = 1_000_000


def fed(sizes: list[int]) -> Trend:
    """One look a second."""
    trend = Trend()
    for second, size in enumerate(sizes):
        trend.feed(size, float(second))
    return trend


def test_a_steady_growth_is_foretold_to_the_second() -> None:
    trend = fed([100 * MB + 10 * MB * second for second in range(LOOKS)])
    assert trend.full_in(270 * MB) == pytest.approx(10.0)


def test_one_look_too_few_foretells_nothing() -> None:
    assert fed([100 * MB + 10 * MB * n for n in range(LOOKS - 1)]).full_in(200 * MB) is None


@pytest.mark.parametrize("fall", [0, 1])
def test_a_look_without_growth_begins_anew(fall: int) -> None:
    sizes = [100 * MB + 10 * MB * second for second in range(LOOKS)]
    assert fed([*sizes, sizes[-1] - fall]).full_in(1000 * MB) is None


def test_the_breathing_of_a_heap_is_no_growth() -> None:
    step = LEAST_GROWTH // LOOKS - 1
    assert fed([100 * MB + step * second for second in range(LOOKS)]).full_in(101 * MB) is None


def test_what_is_full_already_is_full_now() -> None:
    assert fed([100 * MB + 10 * MB * n for n in range(LOOKS)]).full_in(50 * MB) == 0.0


@given(st.lists(st.tuples(st.floats(), st.integers(-10, 1 << 70)), max_size=30))
def test_no_sizes_and_times_break_it(looks: list[tuple[float, int]]) -> None:
    trend = Trend()
    for now, size in looks:
        trend.feed(size, now)
    left = trend.full_in(1 << 40)
    assert left is None or left >= 0

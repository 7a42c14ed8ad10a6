"""Which inputs go into the next batch: fair between requests, and never over the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hxd.worker.embed import plan

REQUESTS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=30), min_size=1, max_size=8)


@given(REQUESTS, st.integers(1, 100))
def test_a_batch_keeps_to_its_budget_unless_one_input_alone_is_longer(
    waiting: list[list[int]], budget: int
) -> None:
    counts = plan(waiting, budget)
    taken = [sum(lengths[:n]) for lengths, n in zip(waiting, counts, strict=True)]
    assert sum(taken) <= budget or sum(counts) == 1


@given(REQUESTS, st.integers(1, 100))
def test_who_is_first_in_line_always_gets_an_input_in(
    waiting: list[list[int]], budget: int
) -> None:
    assert plan(waiting, budget)[0] >= 1


@given(REQUESTS, st.integers(1, 100))
def test_a_batch_is_as_full_as_it_can_be(waiting: list[list[int]], budget: int) -> None:
    counts = plan(waiting, budget)
    left = budget - sum(sum(x[:n]) for x, n in zip(waiting, counts, strict=True))
    ahead = [lengths[n] for lengths, n in zip(waiting, counts, strict=True) if n < len(lengths)]
    assert all(length > left for length in ahead)


def test_a_small_call_gets_into_the_next_batch_beside_a_large_one() -> None:
    assert plan([[6] * 2048, [6], [5, 5]], 512) == [82, 1, 2]


def test_calls_of_equal_inputs_share_a_batch_equally() -> None:
    assert plan([[10] * 100, [10] * 100, [10] * 100], 300) == [10, 10, 10]


def test_an_input_that_does_not_fit_waits_and_others_fill_the_batch() -> None:
    assert plan([[4], [500], [4, 4]], 100) == [1, 0, 2]


def test_an_input_that_was_passed_over_goes_into_the_batch_after() -> None:
    # As the engine does it: who got nothing is first in line for the next batch.
    line = {"a": [4] * 500, "b": [4] * 500, "long": [500]}
    first = dict(zip(line, plan(list(line.values()), 100), strict=True))
    assert first["long"] == 0
    order = sorted(line, key=lambda name: first[name] > 0)
    second = dict(zip(order, plan([line[name] for name in order], 100), strict=True))
    assert second == {"long": 1, "a": 0, "b": 0}

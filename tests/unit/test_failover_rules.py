"""What becomes of a sequence after each thing that can befall it, and how much is tried again."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.request.failover import (
    BUDGET_LEAST,
    BUDGET_SHARE,
    FATAL_CRASHES,
    FRUITLESS_MOVES,
    PAUSE,
    PROBATION,
    TRIES,
    Next,
    RetryBudget,
    Trail,
)
from hxd.daemon.supervise.link import Loss

OUTSIDE = [loss for loss in Loss if loss is not Loss.CRASHED]


def test_the_numbers_are_those_of_the_design() -> None:
    assert (FATAL_CRASHES, BUDGET_SHARE, BUDGET_LEAST) == (2, 0.2, 3)
    assert (FRUITLESS_MOVES, TRIES, PROBATION) == (16, 3, 2)


@pytest.mark.parametrize("companions", [0, 1, 3])
@pytest.mark.parametrize("loss", OUTSIDE)
def test_a_death_from_outside_costs_nothing_even_on_the_last_worker(
    loss: Loss, companions: int
) -> None:
    trail = Trail()
    for _ in range(100):
        assert trail.lost(loss, companions=companions) is Next.ELSEWHERE
        trail.gained()
    assert trail == Trail()


@pytest.mark.parametrize("loss", OUTSIDE)
def test_without_a_token_between_there_is_a_last_move(loss: Loss) -> None:
    trail = Trail()
    for _ in range(FRUITLESS_MOVES):
        assert trail.lost(loss, companions=1) is Next.ELSEWHERE
    assert trail.lost(loss, companions=1) is Next.GIVE_UP


def test_a_worker_that_ended_by_itself_gives_its_sequences_one_more_try_alone() -> None:
    assert Trail().lost(Loss.CRASHED, companions=1) is Next.ALONE


def test_nothing_that_may_have_ended_a_worker_is_given_the_last_one() -> None:
    assert Trail().lost(Loss.CRASHED, companions=0) is Next.GIVE_UP


@pytest.mark.parametrize("companions", [0, 1, 3])
def test_who_is_there_at_a_second_such_death_is_poison(companions: int) -> None:
    trail = Trail()
    trail.lost(Loss.CRASHED, companions=1)
    assert trail.lost(Loss.CRASHED, companions=companions) is Next.POISON


def test_tokens_gained_between_two_such_deaths_excuse_nothing() -> None:
    trail = Trail()
    trail.lost(Loss.CRASHED, companions=1)
    trail.gained()
    assert trail.lost(Loss.CRASHED, companions=1) is Next.POISON


def test_a_worker_that_lives_is_asked_three_times_in_all() -> None:
    trail = Trail()
    assert [trail.failed() for _ in range(4)] == [
        *(Next.LATER, Next.LATER),
        *(Next.GIVE_UP, Next.GIVE_UP),
    ]


def test_tokens_gained_between_two_failures_give_no_more_tries() -> None:
    trail = Trail()
    for _ in range(TRIES - 1):
        assert trail.failed() is Next.LATER
        trail.gained()
    assert trail.failed() is Next.GIVE_UP


@pytest.mark.parametrize(("failures", "longest"), [(0, 0.05), (1, 0.05), (2, 0.1), (3, 0.2)])
def test_pauses_double_and_are_drawn_from_nothing_up(failures: int, longest: float) -> None:
    trail = Trail(failures=failures)
    assert trail.pause(0.0) == 0.0
    assert trail.pause(0.5) == pytest.approx(longest / 2)
    assert trail.pause(1.0) == pytest.approx(longest)


@given(st.floats(0, 1), st.integers(0, TRIES - 1))
def test_no_client_waits_for_long_before_a_try(draw: float, failures: int) -> None:
    assert 0.0 <= Trail(failures=failures).pause(draw) <= PAUSE * 2.0 ** (TRIES - 2)


# What can befall a sequence: a loss with or without companions, a failure, or a token.
Step = tuple[Loss, int] | str
STEPS: list[Step] = [
    *itertools.product(Loss, (0, 1)),
    "failed",
    "gained",
]


@dataclass
class Judge:
    """Says it again in other words, from all that has happened so far."""

    past: tuple[Step, ...]

    def says(self) -> Next | None:
        match self.past[-1]:
            case "gained":
                return None
            case "failed":
                return Next.LATER if self.past.count("failed") < TRIES else Next.GIVE_UP
            case (Loss.CRASHED, companions):
                if sum(isinstance(s, tuple) and s[0] is Loss.CRASHED for s in self.past) > 1:
                    return Next.POISON
                return Next.ALONE if companions else Next.GIVE_UP
        since = itertools.takewhile(lambda step: step != "gained", reversed(self.past))
        moves = sum(isinstance(step, tuple) and step[0] is not Loss.CRASHED for step in since)
        return Next.ELSEWHERE if moves <= FRUITLESS_MOVES else Next.GIVE_UP


def take(trail: Trail, step: Step) -> Next | None:
    match step:
        case "gained":
            return trail.gained()
        case "failed":
            return trail.failed()
        case (Loss() as loss, int(companions)):
            return trail.lost(loss, companions=companions)
    raise AssertionError(step)


def test_every_short_history_ends_as_the_rules_say() -> None:
    for past in itertools.product(STEPS, repeat=4):
        trail = Trail()
        said = [take(trail, step) for step in past]
        assert said == [Judge(past[: n + 1]).says() for n in range(len(past))], past


@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=60))
def test_every_long_history_ends_as_the_rules_say(past: list[Step]) -> None:
    trail = Trail()
    said = [take(trail, step) for step in past]
    assert said == [Judge(tuple(past[: n + 1])).says() for n in range(len(past))]


@pytest.mark.parametrize(
    ("active", "room"),
    [(0, 3), (1, 3), (3, 3), (15, 3), (19, 3), (20, 4), (24, 4), (25, 5), (100, 20), (1_000, 200)],
)
def test_a_fifth_of_what_runs_may_be_tried_again_and_three_always(active: int, room: int) -> None:
    budget = RetryBudget(lambda: active)
    assert sum(budget.take() for _ in range(active + 10)) == room
    assert budget.taken == room


@given(st.integers(0, 5_000))
def test_a_share_is_never_lost_to_rounding(active: int) -> None:
    budget = RetryBudget(lambda: active)
    budget.taken = max(BUDGET_LEAST, active // 5) - 1
    assert budget.take()
    assert not budget.take()


def test_what_is_given_back_can_be_taken_again() -> None:
    budget = RetryBudget(lambda: 0)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    budget.give_back()
    assert [budget.take(), budget.take()] == [True, False]


def test_what_is_under_way_stays_so_when_less_runs() -> None:
    running = [50]
    budget = RetryBudget(lambda: running[0])
    assert all(budget.take() for _ in range(10))
    running[0] = 5
    assert not budget.take()
    for _ in range(7):
        budget.give_back()
    assert not budget.take()
    budget.give_back()
    assert budget.take()


def test_the_budget_is_never_exceeded_by_any_order_of_takes_and_returns() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")  # noqa: T201 - so that a failure can be seen again
    rng = random.Random(seed)
    active, out = 0, 0
    budget = RetryBudget(lambda: active)
    for _ in range(5_000):
        active = rng.randrange(60)
        if out and rng.random() < 0.5:
            budget.give_back()
            out -= 1
        elif budget.take():
            out += 1
            assert out <= max(BUDGET_LEAST, active // 5)
        assert budget.taken == out

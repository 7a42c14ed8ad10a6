"""The table of a rollout's phases, and what a rollout says of itself on its way through it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.rollout import phases
from hxd.daemon.rollout.phases import OVER, TRANSITIONS, IllegalStep, Phase, Step
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollout import MOST_STEPS, Rollout
from hxd.daemon.store.sources import Choice
from hxd.errors import CallerError
from tests.rollouts import a_release


def rollout(**ask: Any) -> Rollout:
    return Rollout(Ask(model="m", choice=Choice(version=2), **ask), a_release("m"), began=5.0)


@given(st.sampled_from(Phase), st.sampled_from(Step))
def test_an_illegal_step_raises_changes_nothing_and_says_what_was_legal(
    phase: Phase, step: Step
) -> None:
    one = rollout()
    one.phase = phase
    if (phase, step) in TRANSITIONS:
        assert one.step(step, 1.0) is TRANSITIONS[phase, step]
        return
    legal = {s.value for p, s in TRANSITIONS if p is phase}
    with pytest.raises(IllegalStep) as caught:
        one.step(step, 1.0)
    assert all(word in str(caught.value) for word in legal or {"nothing"})
    assert (one.phase, one.steps) == (phase, [])


def test_every_phase_is_reached_and_leads_to_both_ends_but_for_the_ends() -> None:
    reached = {Phase.PREPARING}
    while more := {to for (at, _), to in TRANSITIONS.items() if at in reached} - reached:
        reached |= more
    assert reached == set(Phase)
    for end in OVER:
        leading = {end}
        while more := {at for (at, _), to in TRANSITIONS.items() if to in leading} - leading:
            leading |= more
        on_the_way = set(Phase) - OVER
        if end is Phase.DONE:
            on_the_way -= {Phase.ROLLING_BACK}
        assert leading == on_the_way | {end}


def test_every_phase_that_is_not_over_can_fail_unless_it_takes_back_already() -> None:
    for phase in set(Phase) - OVER - {Phase.ROLLING_BACK}:
        assert phases.after(phase, Step.FAILED) in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)


def test_nothing_follows_an_end() -> None:
    assert not {phase for phase, _ in TRANSITIONS} & OVER


@given(st.integers(0, 1 << 30))
def test_a_walk_ends_and_its_end_is_told(seed: int) -> None:
    rng, one, steps = random.Random(seed), rollout(), 0
    while one.running:
        assert not one.over.is_set()
        legal = [step for phase, step in TRANSITIONS if phase is one.phase]
        one.step(rng.choice(legal), float(steps))
        steps += 1
        assert steps <= len(Phase)
    assert one.over.is_set()
    assert [step["at"] for step in one.body()["steps"]] == [float(at) for at in range(steps)]


def test_the_steps_that_are_kept_are_bounded() -> None:
    one = rollout()
    for _ in range(3 * MOST_STEPS):
        one.phase = Phase.PREPARING
        one.step(Step.ROOM, 0.0)
    assert len(one.steps) == MOST_STEPS


@pytest.mark.parametrize("phase", sorted(OVER | {Phase.ROLLING_BACK}))
def test_what_is_over_or_goes_back_already_is_not_aborted(phase: Phase) -> None:
    one = rollout()
    one.phase = phase
    with pytest.raises(CallerError, match=phase.value) as caught:
        one.abort("why not")
    assert (caught.value.status, caught.value.code) == (409, "rollout_over")
    assert one.aborted is None


def test_workers_that_come_up_can_be_waited_for_no_more_until_it_is_committed() -> None:
    one = rollout()
    one.phase = Phase.PROMOTING
    one.abort("it takes too long")
    assert one.aborted == "it takes too long"
    one = rollout()
    one.phase, one.committed = Phase.PROMOTING, True
    with pytest.raises(CallerError, match="promoting already"):
        one.abort("too late")


def test_the_first_reason_to_abort_stays() -> None:
    one = rollout()
    one.phase = Phase.LOADING
    one.abort("the first")
    one.abort("the second")
    assert (one.aborted, one.pushed.is_set()) == ("the first", True)


@pytest.mark.parametrize(
    ("ask", "kind"),
    [({}, "swap"), ({"share": 0.1}, "canary"), ({"share": 0.5, "compare": True}, "ab")],
)
def test_a_rollout_says_which_kind_it_is_and_where_from(ask: dict[str, Any], kind: str) -> None:
    body = rollout(**ask).body()
    assert (body["kind"], body["from"], body["running"]) == (kind, "m:f16@1 (fake 1.0)", True)
    assert ("share" in body) == (kind != "swap")

"""A canary's verdict: what stops it at once, what ends it, and how often chance is to blame.

Requests are drawn from a seeded generator; nothing is served, and time is a number.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxd.daemon.rollout.golden import DEFAULT, Golden, Outcome, Prompt
from hxd.daemon.rollout.reasons import LIMIT, Margins
from hxd.daemon.rollout.sample import Count, Sample
from hxd.daemon.rollout.verdict import PORTIONS, Decision, Judge, Plan, Verdict

RIGHT, WRONG, REFUSED, FAILED = Outcome.RIGHT, Outcome.WRONG, Outcome.REFUSED, Outcome.FAILED


def prompts(number: int, floor: float = 0.0, required: Iterable[int] = ()) -> Golden:
    must = set(required)
    return Golden(
        tuple(
            Prompt(id=f"q{n}", messages=(("user", "?"),), required=n in must) for n in range(number)
        ),
        floor,
    )


HUNDRED_AND_TWENTY = prompts(120, floor=0.4)


def plan(**changed: object) -> Plan:
    return Plan(**{"share": 0.1, "seconds": 600.0, **changed})  # type: ignore[arg-type]


def asked(sample: Sample, golden: Golden, wrong: int = 0, outcome: Outcome = WRONG) -> Sample:
    """Its first `wrong` prompts got `outcome`, the others are right."""
    for n, prompt in enumerate(golden.prompts):
        sample.golden(prompt.id, outcome if n < wrong else RIGHT)
    return sample


def release(errors: int = 0, of: int = 0, golden: Golden = DEFAULT, wrong: int = 0) -> Sample:
    """With the errors last."""
    sample = asked(Sample(), golden, wrong)
    for n in range(of):
        sample.request(ok=n < of - errors, fault="backend")
    return sample


def timed(ttft: float, speed: float, of: int, seed: int) -> Sample:
    sample, rng = asked(Sample(seed), DEFAULT), random.Random(seed)
    for _ in range(of):
        sample.request(
            True, None, ttft * rng.lognormvariate(0.0, 0.4), speed * rng.lognormvariate(0.0, 0.2)
        )
    return sample


def at_the_end(stable: Sample, canary: Sample, **changed: object) -> Verdict:
    return Judge(plan(**changed)).look(stable, canary, 600.0, 0)


# --- how it ends


def test_a_canary_that_is_no_worse_is_promoted_when_its_time_is_over() -> None:
    stable, canary = release(4, 900), release(0, 100)
    judge = Judge(plan(at_least=100))
    assert judge.look(stable, canary, 599.0, 0).decision is Decision.GO_ON
    verdict = judge.look(stable, canary, 600.0, 0)
    assert verdict.decision is Decision.PROMOTE
    assert verdict.words == (
        "promoted: nothing was worse by more than its margin in 2 looks. An error rate of 11.5 % "
        "or more would have been found with 90 % probability"
    )


def test_golden_prompts_alone_may_promote() -> None:
    verdict = at_the_end(release(), release())
    assert verdict.decision is Decision.PROMOTE
    assert verdict.words.endswith("No error rate could be compared")


def test_nothing_is_promoted_before_its_golden_prompts_ran() -> None:
    canary = Sample()
    judge = Judge(plan())
    assert judge.look(release(), canary, 1_000.0, 0).decision is Decision.GO_ON
    asked(canary, DEFAULT)
    assert judge.look(release(), canary, 1_001.0, 0).decision is Decision.PROMOTE


def test_with_too_few_requests_it_goes_on_and_then_ends_without_a_verdict() -> None:
    stable, canary = release(0, 900), release(0, 12)
    judge = Judge(plan(at_least=50))
    verdict = judge.look(stable, canary, 1_799.0, 0)
    assert verdict.decision is Decision.GO_ON
    assert verdict.words.endswith("12 of 50 requests, at 10 % of the traffic")
    verdict = judge.look(stable, canary, 1_800.0, 0)
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.words == ("inconclusive after 1800 s: 12 of 50 requests, at 10 % of the traffic")


def test_requests_that_a_canary_keeps_waiting_are_waited_for_but_not_for_ever() -> None:
    judge = Judge(plan())
    verdict = judge.look(release(0, 900), release(0, 2), 600.0, 0, unanswered=3)
    assert verdict.decision is Decision.GO_ON
    assert verdict.words.endswith("3 requests wait for it, and 2 have ended")
    verdict = judge.look(release(0, 900), release(0, 2), 1_800.0, 0, unanswered=3)
    assert verdict.decision is Decision.INCONCLUSIVE
    busy = Judge(plan()).look(release(0, 900), release(0, 20), 600.0, 0, unanswered=3)
    idle = Judge(plan()).look(release(0, 900), release(0, 2), 600.0, 0)
    assert busy.decision is idle.decision is Decision.PROMOTE


def test_the_last_look_of_one_that_is_late_can_still_find_something() -> None:
    canary = release(11, 21)
    verdict = Judge(plan(at_least=50)).look(release(0, 900), canary, 1_800.0, 0)
    assert verdict.decision is Decision.ROLL_BACK


def test_enough_requests_that_came_late_are_enough() -> None:
    canary = release(0, 49)
    judge = Judge(plan(at_least=50))
    assert judge.look(release(0, 900), canary, 1_500.0, 0).decision is Decision.GO_ON
    canary.request(True)
    assert judge.look(release(0, 900), canary, 1_501.0, 0).decision is Decision.PROMOTE


def test_a_decision_is_final() -> None:
    judge = Judge(plan())
    first = judge.look(release(), release(), 10.0, 2)
    assert first.decision is Decision.ROLL_BACK
    assert judge.look(release(), release(), 600.0, 0) is first


def test_a_verdict_says_what_it_was_decided_by() -> None:
    verdict = at_the_end(release(2, 480), release(8, 50))
    assert verdict.words == (
        "rolled back: error rate 16.0 % of 50 against 0.4 % of 480: "
        "Farrington-Manning (exact) p = 0.000061 < 0.02"
    )
    first = verdict.reasons[0]
    assert (first.metric, first.worse, first.stable_n, first.canary_n) == (
        "error_rate",
        True,
        480,
        50,
    )
    assert first.canary == pytest.approx(0.16)
    assert first.p is not None
    assert first.alpha is not None
    assert first.p < first.alpha
    assert {reason.metric for reason in verdict.reasons} == set(PORTIONS)


def test_a_verdict_is_plain_json() -> None:
    verdict = at_the_end(timed(0.1, 50, 100, 1), timed(0.5, 50, 100, 2))
    body = json.loads(json.dumps(verdict.body(), allow_nan=False))
    assert body["decision"] == "roll_back"
    assert body["reasons"][0]["metric"] == "ttft"
    assert body["reasons"][0]["words"] in body["words"]


# --- limits


def test_two_deaths_of_its_workers_end_it_at_once() -> None:
    judge = Judge(plan())
    assert judge.look(release(), release(), 1.0, 1).decision is Decision.GO_ON
    verdict = judge.look(release(), release(), 2.0, 2)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.words.startswith("rolled back: 2 of the canary's workers died")
    assert verdict.reasons[0].test == LIMIT


def test_five_errors_in_the_first_ten_requests_end_it_at_once() -> None:
    verdict = Judge(plan()).look(release(9, 100), release(5, 8), 3.0, 0)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.words == (
        "rolled back: 5 errors in the canary's first 8 requests, where stable has 9.0 % of 100; "
        "5 in 10 are enough"
    )


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (release(10, 100), release(5, 8)),
        (release(0, 100), release(4, 10)),
        (release(0, 100), release(4, 14)),
    ],
    ids=["a stable that fails too", "four of ten", "later ones"],
)
def test_fewer_errors_or_a_box_in_trouble_are_left_to_the_tests(
    stable: Sample, canary: Sample
) -> None:
    assert Judge(plan()).look(stable, canary, 3.0, 0).decision is Decision.GO_ON


def test_a_required_prompt_that_stable_gets_right_must_be_right() -> None:
    golden = prompts(40, required=[0])
    for outcome, decision in (
        (WRONG, Decision.ROLL_BACK),
        (REFUSED, Decision.ROLL_BACK),
        (FAILED, Decision.GO_ON),
        (RIGHT, Decision.GO_ON),
    ):
        stable, canary = asked(Sample(), golden), asked(Sample(), golden, 1, outcome)
        assert Judge(plan(golden=golden)).look(stable, canary, 3.0, 0).decision is decision
    wrong = asked(Sample(), golden, 1)
    verdict = Judge(plan(golden=golden)).look(asked(Sample(), golden), wrong, 3.0, 0)
    assert "the required golden prompt 'q0' is wrong; stable gets it right" in verdict.words


def test_a_required_prompt_that_stable_gets_wrong_too_is_no_reason() -> None:
    golden = prompts(40, required=[0])
    stable, canary = asked(Sample(), golden, 1), asked(Sample(), golden, 1)
    assert at_the_end(stable, canary, golden=golden).decision is Decision.PROMOTE


def test_what_is_not_known_of_a_required_prompt_counts_against_it_at_the_end() -> None:
    golden = prompts(40, required=[0])
    stable, canary = asked(Sample(), golden), asked(Sample(), golden, 1, FAILED)
    assert at_the_end(stable, canary, golden=golden).decision is Decision.ROLL_BACK
    judge = Judge(plan(golden=golden))
    wrong = asked(Sample(), golden, 1)
    assert judge.look(Sample(), wrong, 3.0, 0).decision is Decision.GO_ON
    assert judge.look(Sample(), wrong, 600.0, 0).decision is Decision.ROLL_BACK


def test_the_floor_counts_once_the_other_prompts_cannot_mend_it() -> None:
    golden = prompts(10, floor=0.5)
    stable, canary = asked(Sample(), golden, 9), Sample()
    judge = Judge(plan(golden=golden))
    for n in range(5):
        canary.golden(f"q{n}", REFUSED)
        assert judge.look(stable, canary, 3.0, 0).decision is Decision.GO_ON
    canary.golden("q5", WRONG)
    verdict = judge.look(stable, canary, 3.0, 0)
    assert verdict.decision is Decision.ROLL_BACK
    assert "0.0 % of 6, of 10 in all: the floor of 50 % is out of reach" in verdict.words


def test_the_floor_itself_is_enough() -> None:
    golden = prompts(10, floor=0.3)
    stable, canary = asked(Sample(), golden, 7), asked(Sample(), golden, 7)
    assert at_the_end(stable, canary, golden=golden).decision is Decision.PROMOTE


# --- metrics


def test_answers_that_come_much_later_end_it() -> None:
    verdict = at_the_end(timed(0.1, 50, 200, 1), timed(0.3, 50, 100, 2))
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reasons[0].metric == "ttft"
    assert "Mann-Whitney p < 0.00001 < 0.005" in verdict.words


def test_a_delay_that_nobody_notices_does_not() -> None:
    """Three times as long, and 20 ms in all."""
    verdict = at_the_end(timed(0.01, 50, 200, 1), timed(0.03, 50, 100, 2))
    assert verdict.decision is Decision.PROMOTE
    (row,) = (reason for reason in verdict.reasons if reason.metric == "ttft")
    assert row.words.endswith("but less than 50 ms apart")


def test_answers_that_run_much_slower_end_it() -> None:
    verdict = at_the_end(timed(0.1, 50, 200, 1), timed(0.1, 20, 100, 2))
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reasons[0].metric == "speed"
    assert verdict.words.startswith("rolled back: tokens per second 2")


@pytest.mark.parametrize(("ttft", "speed"), [(0.14, 50), (0.1, 38), (0.01, 500)])
def test_differences_within_the_margins_do_not(ttft: float, speed: float) -> None:
    """However surely they are seen."""
    verdict = at_the_end(timed(0.1, 50, 1_500, 1), timed(ttft, speed, 1_500, 2))
    assert verdict.decision is Decision.PROMOTE


def test_few_times_are_not_compared() -> None:
    verdict = at_the_end(timed(0.1, 50, 200, 1), timed(9.0, 1, 5, 2))
    assert verdict.decision is Decision.PROMOTE
    words = [reason.words for reason in verdict.reasons if reason.metric == "ttft"]
    assert words == ["time to first token not compared: 5 values on one side; 6 are needed"]


def test_worse_answers_to_the_golden_prompts_end_it() -> None:
    golden = HUNDRED_AND_TWENTY
    stable, canary = asked(Sample(), golden, 3), asked(Sample(), golden, 36)
    verdict = Judge(plan(golden=golden)).look(stable, canary, 1.0, 0)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.words == (
        "rolled back: golden prompts right 70.0 % of 120 against 97.5 % of 120, 33 lost and 0 won: "
        "Tango (exact) p < 0.00001 < 0.015"
    )


def test_golden_prompts_that_differ_but_are_as_many_are_no_reason() -> None:
    golden = HUNDRED_AND_TWENTY
    stable, canary = asked(Sample(), golden, 20), asked(Sample(), golden)
    for n in range(100, 120):
        canary.golden(f"q{n}", WRONG)
    assert at_the_end(stable, canary, golden=golden).decision is Decision.PROMOTE


def test_answers_that_clients_dislike_end_it() -> None:
    stable, canary = release(0, 100), release(0, 100)
    for n in range(60):
        stable.feedback(n >= 6)
        canary.feedback(n >= 30)
    verdict = at_the_end(stable, canary)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reasons[0].metric == "disliked"
    assert verdict.words.startswith("rolled back: disliked answers 50.0 % of 60 against 10.0 % of")


def test_answers_that_say_nothing_end_it() -> None:
    stable, canary = release(), release()
    for n in range(60):
        stable.request(True, empty=n < 3)
        canary.request(True, empty=n < 30)
    verdict = at_the_end(stable, canary)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reasons[0].metric == "empty"
    assert verdict.words.startswith("rolled back: empty answers 50.0 % of 60 against 5.0 % of 60")


def test_errors_are_no_empty_answers_and_neither_are_those_nobody_saw() -> None:
    stable, canary = release(0, 60), release(0, 60)
    canary.request(False, "backend", empty=True)
    canary.request(True)
    verdict = at_the_end(stable, canary)
    assert verdict.decision is Decision.PROMOTE
    words = [reason.words for reason in verdict.reasons if reason.metric == "empty"]
    assert words == ["empty answers not compared: none of both releases ended well"]


def test_a_canary_that_has_all_the_clients_is_held_to_what_is_healthy() -> None:
    """Traffic is divided by client, and a small box may have one."""
    verdict = at_the_end(release(0, 3), release(30, 100))
    assert verdict.decision is Decision.ROLL_BACK
    assert "stable had only 3 requests, so against 12 %: exact binomial p" in verdict.words
    assert at_the_end(release(0, 3), release(8, 100)).decision is Decision.PROMOTE
    assert at_the_end(release(2, 4), release(40, 100)).decision is Decision.PROMOTE


# --- what looks cost


def parts(judge: Judge) -> float:
    return sum(judge._spent.values())


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 40)), max_size=60),
    st.integers(1, 20),
    st.integers(0, 200),
)
def test_no_schedule_of_looks_spends_more_than_alpha(
    steps: list[tuple[float, int]], looks: int, at_least: int
) -> None:
    judge = Judge(plan(looks=looks, at_least=at_least, golden=prompts(30)))
    stable, canary = Sample(), Sample()
    elapsed, before = 0.0, 0.0
    for seconds, requests in steps:
        elapsed += 300.0 * seconds
        for n in range(requests):
            stable.request(True, None, 0.1, 50.0)
            canary.request(True, None, 0.1, 50.0)
            stable.golden(f"q{n % 30}", RIGHT)
            canary.golden(f"q{n % 30}", RIGHT)
        judge.look(stable, canary, elapsed, 0)
        assert before - 1e-12 <= parts(judge) <= 1.0 + 1e-9
        before = parts(judge)
    assert all(judge._spent[metric] <= PORTIONS[metric] + 1e-9 for metric in PORTIONS)


def test_who_looks_every_second_spends_no_more_than_who_looks_now_and_then() -> None:
    stable, canary = release(3, 900), release(0, 100)
    often = Judge(plan())
    for second in range(600):
        often.look(stable, canary, float(second), 0)
    assert often.looks <= 10
    seldom = Judge(plan())
    for second in range(0, 600, 60):
        seldom.look(stable, canary, float(second), 0)
    assert parts(often) == pytest.approx(parts(seldom))
    assert often.look(stable, canary, 600.0, 0).looks == 11


def test_all_of_alpha_is_there_for_who_looks_once() -> None:
    judge = Judge(plan(alpha=0.04))
    verdict = judge.look(release(0, 900), release(0, 100), 600.0, 0)
    levels = {reason.metric: reason.alpha for reason in verdict.reasons}
    assert levels["error_rate"] == pytest.approx(0.4 * 0.04)
    assert levels["golden"] == pytest.approx(0.3 * 0.04)


def test_golden_prompts_that_were_all_asked_are_tested_once_with_all_of_their_part() -> None:
    judge = Judge(plan())
    judge.look(release(), release(), 1.0, 0)
    assert judge._spent["golden"] == PORTIONS["golden"]
    assert judge.looks == 1
    judge.look(release(), release(), 300.0, 0)
    assert judge.looks == 1


def test_what_cannot_be_compared_yet_costs_nothing() -> None:
    judge = Judge(plan())
    judge.look(release(0, 50), release(), 300.0, 0)
    assert judge._spent["error_rate"] == judge._spent["ttft"] == 0.0


def test_the_portions_make_up_the_whole() -> None:
    assert math.fsum(PORTIONS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0.0},
        {"share": 1.1},
        {"share": math.nan},
        {"seconds": 0.0},
        {"seconds": math.inf},
        {"at_least": -1},
        {"looks": 0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"extension": 0.5},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        plan(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"error_rate": 1.0}, {"golden": -0.1}, {"ttft": 0.9}, {"speed": 0.0}]
)
def test_margins_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Margins(**wrong)


# --- how often chance is to blame


class Box:
    """Two releases that draw their requests, prompts and feedback by these rates; the canary's are
    those of stable with what is `worse` changed. Without `timed` they have no times."""

    def __init__(self, seed: int, timed: bool = True, **worse: float) -> None:
        self.timed = timed
        self.usual = {
            "errors": 0.01, "right": 0.95, "ttft": 0.1, "speed": 40.0, "empty": 0.01, "bad": 0.1
        }  # fmt: skip
        self.changed = {**self.usual, **worse}
        self.rng, self.words = random.Random(seed), random.Random(~seed)

    def fill(self, sample: Sample, rates: dict[str, float], requests: int, told: int) -> None:
        draw = self.rng.random
        for _ in range(requests):
            ok, times = draw() >= rates["errors"], [None, None]
            if self.timed:
                times = [
                    rates["ttft"] * self.rng.lognormvariate(0.0, 0.5),
                    rates["speed"] * self.rng.lognormvariate(0.0, 0.3),
                ]
            sample.request(ok, "backend", *times, empty=self.words.random() < rates["empty"])
        for _ in range(told):
            sample.feedback(draw() >= rates["bad"])

    def ask(self, sample: Sample, rates: dict[str, float], golden: Golden) -> None:
        for prompt in golden.prompts:
            sample.golden(prompt.id, RIGHT if self.rng.random() < rates["right"] else WRONG)

    def canary(self, plan: Plan, requests: int, others: int) -> Decision:
        """The canary's whole life, looked at ten times, with so many requests on either side."""
        stable, canary = Sample(1), Sample(2)
        self.ask(stable, self.usual, plan.golden)
        self.ask(canary, self.changed, plan.golden)
        judge = Judge(plan)
        for step in range(1, 11):
            self.fill(stable, self.usual, others // 10, others // 40)
            self.fill(canary, self.changed, requests // 10, requests // 40)
            verdict = judge.look(stable, canary, plan.seconds * step / 10, 0)
            if verdict.decision is not Decision.GO_ON:
                return verdict.decision
        raise AssertionError("no decision at the end")


def rolled_back(runs: int, life: Callable[[int], Decision]) -> int:
    decisions = [life(seed) for seed in range(runs)]
    assert set(decisions) <= {Decision.ROLL_BACK, Decision.PROMOTE}
    return decisions.count(Decision.ROLL_BACK)


def most(runs: int, rate: float) -> float:
    """What a binomial count exceeds once in some 1,000 times."""
    return runs * rate + 3.1 * math.sqrt(runs * rate * (1.0 - rate))


def test_a_canary_as_good_as_stable_is_seldom_rolled_back() -> None:
    golden = prompts(40, floor=0.4)

    def life(seed: int) -> Decision:
        return Box(seed).canary(plan(golden=golden, at_least=60), 60, 180)

    assert rolled_back(400, life) <= most(400, 0.05) / 2


def test_a_canary_worse_by_all_the_margins_is_seldom_rolled_back() -> None:
    """The worst that alpha has to hold for."""
    golden = prompts(40, floor=0.4)
    worse = {"errors": 0.03, "right": 0.90, "ttft": 0.15, "speed": 28.0, "empty": 0.06, "bad": 0.2}

    def life(seed: int) -> Decision:
        return Box(seed, **worse).canary(plan(golden=golden, at_least=60), 60, 180)

    assert rolled_back(100, life) <= most(100, 0.05)


def test_a_canary_better_than_stable_is_seldom_rolled_back() -> None:
    golden = prompts(40, floor=0.4)
    better = {
        "errors": 0.002,
        "right": 0.99,
        "ttft": 0.08,
        "speed": 50.0,
        "empty": 0.0,
        "bad": 0.05,
    }

    def life(seed: int) -> Decision:
        return Box(seed, **better).canary(plan(golden=golden, at_least=60), 60, 180)

    assert rolled_back(80, life) <= most(80, 0.05) / 2


def test_ten_times_as_many_errors_are_found_in_200_requests() -> None:
    def life(seed: int) -> Decision:
        return Box(seed, timed=False, errors=0.10).canary(plan(at_least=200), 200, 1_800)

    assert rolled_back(150, life) > 0.95 * 150


def test_a_model_that_forgot_a_quarter_is_found_by_120_prompts() -> None:
    """Version 1 of the demo model after version 2."""

    def life(seed: int) -> Decision:
        box = Box(seed, right=0.70)
        box.usual["right"] = 0.97
        return box.canary(plan(golden=HUNDRED_AND_TWENTY), 0, 0)

    assert rolled_back(100, life) > 95


def test_a_model_that_takes_twice_as_long_is_found_in_200_requests() -> None:
    def life(seed: int) -> Decision:
        return Box(seed, ttft=0.2).canary(plan(at_least=200), 200, 600)

    assert rolled_back(20, life) == 20


def test_a_count_without_any_has_no_share() -> None:
    assert Count(0, 0).share is None


@pytest.mark.parametrize(
    ("one_version", "perplexity", "decision"),
    [
        (True, 201.0, Decision.ROLL_BACK),
        (True, 199.0, Decision.PROMOTE),
        (True, None, Decision.PROMOTE),
        # A version that was trained for something else may foretell prose worse and be better.
        (False, 201.0, Decision.PROMOTE),
    ],
)
def test_a_variant_that_is_twice_as_perplexed_is_broken(
    one_version: bool, perplexity: float | None, decision: Decision
) -> None:
    stable, canary = release(of=100), release(of=100)
    stable.perplexity, canary.perplexity = 100.0, perplexity

    verdict = at_the_end(stable, canary, one_version=one_version)

    assert verdict.decision is decision
    assert ("perplexity 201 against 100" in verdict.words) is (decision is Decision.ROLL_BACK)


def test_a_model_that_answers_no_prompts_is_judged_by_the_rest() -> None:
    nothing = Golden(())

    good = at_the_end(
        release(of=100, golden=nothing), release(of=100, golden=nothing), golden=nothing
    )
    bad = at_the_end(
        release(of=100, golden=nothing), release(30, of=100, golden=nothing), golden=nothing
    )

    assert (good.decision, bad.decision) == (Decision.PROMOTE, Decision.ROLL_BACK)

"""The breaker of one replica, number by number, and against a model that recounts everything."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from hxd.daemon.request.breaker import Breaker, BreakerNumbers, Cause, Probe, State

NEVER = 1e9


def fail(breaker: Breaker, count: int, now: float) -> None:
    for _ in range(count):
        breaker.failed(breaker.generation, now)


def succeed(breaker: Breaker, count: int, now: float) -> None:
    for _ in range(count):
        breaker.succeeded(breaker.generation, now)


def demand(breaker: Breaker, count: int, now: float) -> None:
    for _ in range(count):
        breaker.demanded(now)


def begun(breaker: Breaker, now: float) -> Probe:
    """A synthetic probe, which must be had."""
    probe = breaker.probe(now, synthetic=True)
    assert probe is not None
    return probe


def close(breaker: Breaker, now: float) -> float:
    """Probe a half-open breaker until it closes; when that was."""
    for n in range(5):
        begun(breaker, now + 5 * n).succeeded(now + 5 * n)
    return now + 20


def half_open(trips: int = 1) -> tuple[Breaker, float]:
    """A breaker after so many trips in a row, and when its last isolation ended."""
    breaker = Breaker()
    now = 100.0
    fail(breaker, 4, now)
    for _ in range(trips - 1):
        now += breaker.opens_in(now)
        begun(breaker, now).failed(now)
    now += breaker.opens_in(now)
    assert breaker.state(now) is State.HALF_OPEN
    return breaker, now


def test_the_numbers_are_those_of_the_design() -> None:
    assert BreakerNumbers() == BreakerNumbers(
        window=60,
        threshold=0.10,
        least_requests=20,
        streak=3,
        isolation=30,
        longest_isolation=300,
        forgiven_after=60,
        share=0.01,
        synthetic_every=5,
        lease=30,
        successes=5,
        verdict_within=60,
    )


@pytest.mark.parametrize(("good", "opens"), [(18, False), (17, True)])
def test_it_opens_when_more_than_a_tenth_of_twenty_fail(good: int, opens: bool) -> None:
    breaker = Breaker()
    succeed(breaker, good - 1, 10)
    fail(breaker, 20 - good, 10)
    assert breaker.state(10) is State.CLOSED
    succeed(breaker, 1, 10)
    assert breaker.errors(10) == (20 - good, 20)
    assert (breaker.state(10) is State.OPEN) == opens
    assert breaker.cause is (Cause.ERRORS if opens else None)


def test_a_part_that_is_exactly_the_threshold_does_not_open_it() -> None:
    breaker = Breaker(BreakerNumbers(threshold=0.29, streak=100))
    succeed(breaker, 71, 10)
    fail(breaker, 29, 10)
    assert breaker.state(10) is State.CLOSED


def test_nineteen_requests_say_too_little() -> None:
    breaker = Breaker()
    for _ in range(4):
        fail(breaker, 3, 10)
        succeed(breaker, 1, 10)
    fail(breaker, 3, 10)
    assert (breaker.state(10), breaker.errors(10)) == (State.CLOSED, (15, 19))
    succeed(breaker, 1, 10)
    assert (breaker.state(10), breaker.cause) == (State.OPEN, Cause.ERRORS)


def test_the_window_slides_by_single_seconds() -> None:
    breaker = Breaker()
    for second in range(100, 110):
        succeed(breaker, 1, second + 0.9)
    assert breaker.errors(159.9) == (0, 10)
    assert [breaker.errors(160.0 + n)[1] for n in range(12)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]


def test_the_window_is_empty_after_a_long_silence() -> None:
    breaker = Breaker()
    fail(breaker, 2, 100)
    assert breaker.errors(1e6) == (0, 0)
    succeed(breaker, 1, 1e6)
    assert breaker.errors(1e6) == (0, 1)


def test_failures_out_of_the_window_no_longer_count() -> None:
    breaker = Breaker()
    fail(breaker, 3, 100)
    succeed(breaker, 16, 159.9)
    fail(breaker, 1, 160)
    succeed(breaker, 10, 160)
    assert breaker.state(160) is State.CLOSED
    assert breaker.errors(160) == (1, 27)


def test_it_opens_at_the_fourth_failure_in_a_row() -> None:
    breaker = Breaker()
    fail(breaker, 3, 10)
    succeed(breaker, 1, 10)
    fail(breaker, 3, 10)
    assert breaker.state(10) is State.CLOSED
    fail(breaker, 1, 10)
    assert breaker.state(10) is State.OPEN
    assert breaker.cause is Cause.STREAK


def test_failures_in_a_row_count_however_far_apart() -> None:
    breaker = Breaker()
    for n in range(4):
        fail(breaker, 1, 1000.0 * n)
    assert breaker.cause is Cause.STREAK


def test_each_trip_in_a_row_isolates_for_half_a_minute_more_up_to_five() -> None:
    lengths = []
    breaker = Breaker()
    fail(breaker, 4, 0)
    now = 0.0
    for _ in range(12):
        lengths.append(breaker.opens_in(now))
        assert breaker.state(now + lengths[-1] - 0.001) is State.OPEN
        now += lengths[-1]
        assert breaker.state(now) is State.HALF_OPEN
        begun(breaker, now).failed(now)
    assert lengths == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]


def test_time_until_half_open_counts_down_and_is_zero_in_other_states() -> None:
    breaker = Breaker()
    assert breaker.opens_in(0) == 0
    fail(breaker, 4, 0)
    assert [breaker.opens_in(t) for t in (0, 12, 29.5, 30, 31)] == [30, 18, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("closed_for", "left"), [(59.9, 3), (60, 2), (119.9, 2), (120, 1), (180, 0), (NEVER, 0)]
)
def test_each_healthy_minute_forgives_one_trip(closed_for: float, left: int) -> None:
    breaker, now = half_open(trips=3)
    closed = close(breaker, now)
    assert breaker.state(closed + closed_for) is State.CLOSED
    assert breaker.trips == left
    fail(breaker, 4, closed + closed_for)
    assert breaker.trips == left + 1
    assert breaker.opens_in(closed + closed_for) == 30 * (left + 1)


def test_isolation_forgives_nothing() -> None:
    breaker, now = half_open(trips=9)
    begun(breaker, now).failed(now)
    assert breaker.trips == 10


@pytest.mark.parametrize("opened", ["closed", "half-open", "open"])
def test_a_death_opens_from_any_state_and_is_a_trip(opened: str) -> None:
    breaker, now = half_open() if opened == "half-open" else (Breaker(), 100.0)
    if opened == "open":
        fail(breaker, 4, now)
        now += 29
    before = breaker.trips, breaker.generation
    breaker.died(now)
    assert (breaker.state(now), breaker.cause) == (State.OPEN, Cause.DEATH)
    assert (breaker.trips, breaker.generation) == (before[0] + 1, before[1] + 1)
    assert breaker.opens_in(now) == 30 * breaker.trips


def test_an_open_breaker_learns_from_failures_that_a_death_was_not_all() -> None:
    breaker = Breaker()
    breaker.died(0)
    succeed(breaker, 30, 1)
    assert (breaker.cause, breaker.errors(1)) == (Cause.DEATH, (0, 0))
    breaker.failed(breaker.generation - 1, 1)
    assert breaker.cause is Cause.DEATH
    fail(breaker, 9, 1)
    assert (breaker.cause, breaker.trips, breaker.opens_in(1)) == (Cause.ERRORS, 1, 29)


def test_a_failure_does_not_change_other_causes() -> None:
    breaker = Breaker()
    fail(breaker, 9, 0)
    assert breaker.cause is Cause.STREAK


def test_only_a_half_open_breaker_gives_probes() -> None:
    breaker = Breaker()
    demand(breaker, 500, 0)
    assert breaker.probe(0) is breaker.probe(0, synthetic=True) is None
    breaker.died(0)
    demand(breaker, 500, 29)
    assert breaker.probe(29) is breaker.probe(29, synthetic=True) is None


def test_a_probe_is_one_in_a_hundred_of_the_demand_since_half_open() -> None:
    breaker, now = half_open()
    demand(breaker, 99, now)
    assert breaker.probe(now) is None
    demand(breaker, 1, now)
    probe = breaker.probe(now)
    assert probe is not None
    probe.succeeded(now)
    assert breaker.probe(now) is None


def test_demand_saves_up_for_no_more_than_one_probe() -> None:
    breaker, now = half_open()
    demand(breaker, 1000, now)
    probe = breaker.probe(now)
    assert probe is not None
    probe.succeeded(now)
    assert breaker.probe(now) is None


def test_a_share_that_floats_round_earns_its_probe_in_time() -> None:
    breaker = Breaker(BreakerNumbers(share=0.1))
    breaker.died(0)
    demand(breaker, 10, 30)
    assert breaker.probe(30) is not None


def test_a_synthetic_probe_may_begin_five_seconds_after_any_other() -> None:
    breaker, now = half_open()
    begun(breaker, now).succeeded(now)
    assert breaker.probe(now + 4.9, synthetic=True) is None
    demand(breaker, 100, now)
    real = breaker.probe(now + 4.9)
    assert real is not None
    real.succeeded(now + 4.9)
    assert breaker.probe(now + 9.8, synthetic=True) is None
    assert breaker.probe(now + 9.9, synthetic=True) is not None


def test_one_probe_is_in_flight_at_a_time() -> None:
    breaker, now = half_open()
    demand(breaker, 100, now)
    begun(breaker, now)
    assert breaker.probe(now + 29.9) is breaker.probe(now + 29.9, synthetic=True) is None


@pytest.mark.parametrize("answer", [Probe.succeeded, Probe.failed])
def test_a_probe_past_its_deadline_is_lost_and_its_permit_comes_back(
    answer: Callable[[Probe, float], None],
) -> None:
    breaker, now = half_open()
    lost = begun(breaker, now)
    assert lost.deadline == now + 30
    probe = begun(breaker, now + 30)
    answer(lost, now + 30)
    assert breaker.state(now + 30) is State.HALF_OPEN
    assert breaker.probe(now + 35, synthetic=True) is None
    probe.succeeded(now + 35)
    for n in range(4):
        assert breaker.state(now + 40 + 5 * n) is State.HALF_OPEN
        begun(breaker, now + 40 + 5 * n).succeeded(now + 40 + 5 * n)
    assert breaker.state(now + 55) is State.CLOSED


@pytest.mark.parametrize("answer", [Probe.succeeded, Probe.failed])
def test_a_probe_is_lost_at_its_deadline_even_if_nobody_took_its_place(
    answer: Callable[[Probe, float], None],
) -> None:
    breaker, now = half_open()
    answer(begun(breaker, now), now + 30)
    assert breaker.state(now + 59.9) is State.HALF_OPEN
    assert breaker.state(now + 60) is State.OPEN
    assert breaker.cause is Cause.UNDECIDED


def test_a_cancelled_probe_gives_its_permit_back_and_says_nothing() -> None:
    breaker, now = half_open()
    begun(breaker, now).given_back()
    demand(breaker, 100, now)
    assert breaker.probe(now) is not None
    assert breaker.state(now) is State.HALF_OPEN


def test_the_first_word_of_a_probe_counts() -> None:
    breaker, now = half_open()
    probe = begun(breaker, now)
    for _ in range(9):
        probe.succeeded(now)
    probe.failed(now)
    cancelled = begun(breaker, now + 5)
    cancelled.given_back()
    cancelled.failed(now + 5)
    assert breaker.state(now + 5) is State.HALF_OPEN


def test_a_late_word_of_one_probe_does_not_free_the_place_of_another() -> None:
    breaker, now = half_open()
    former = begun(breaker, now)
    former.succeeded(now)
    begun(breaker, now + 5)
    former.given_back()
    former.succeeded(now + 10)
    assert breaker.probe(now + 10, synthetic=True) is None


def test_five_successes_close_it_and_clear_what_was_counted() -> None:
    breaker = Breaker()
    succeed(breaker, 18, 0)
    fail(breaker, 4, 0)
    generation = breaker.generation
    closed = close(breaker, 30.0)
    assert breaker.state(closed) is State.CLOSED
    assert (breaker.cause, breaker.generation) == (None, generation + 1)
    assert breaker.errors(closed) == (0, 0)
    fail(breaker, 3, closed)
    assert breaker.state(closed) is State.CLOSED


def test_four_successes_do_not_close_it_nor_do_those_of_an_earlier_try() -> None:
    breaker, now = half_open()
    for n in range(4):
        begun(breaker, now + 5 * n).succeeded(now + 5 * n)
    begun(breaker, now + 20).failed(now + 20)
    now += 20 + breaker.opens_in(now + 20)
    begun(breaker, now).succeeded(now)
    assert breaker.state(now) is State.HALF_OPEN


def test_one_failed_probe_opens_it() -> None:
    breaker, now = half_open()
    begun(breaker, now).succeeded(now)
    begun(breaker, now + 5).failed(now + 6)
    assert (breaker.state(now + 6), breaker.cause) == (State.OPEN, Cause.PROBE)
    assert (breaker.trips, breaker.opens_in(now + 6)) == (2, 60)


def test_half_open_a_failure_of_any_request_opens_and_only_probes_close() -> None:
    breaker, now = half_open()
    succeed(breaker, 30, now)
    assert breaker.state(now) is State.HALF_OPEN
    fail(breaker, 1, now)
    assert (breaker.state(now), breaker.cause, breaker.trips) == (State.OPEN, Cause.ERRORS, 2)


def test_a_minute_without_a_verdict_opens_it() -> None:
    breaker, now = half_open()
    begun(breaker, now + 40).succeeded(now + 50)
    assert breaker.state(now + 109.9) is State.HALF_OPEN
    assert breaker.state(now + 110) is State.OPEN
    assert (breaker.cause, breaker.trips, breaker.opens_in(now + 110)) == (Cause.UNDECIDED, 2, 60)


def test_what_time_did_is_reckoned_from_when_it_was_due() -> None:
    breaker = Breaker()
    breaker.died(0)
    # Half-open at 30, undecided at 90, half-open at 150, undecided at 210, isolated until 300.
    assert breaker.opens_in(220) == 80
    assert (breaker.trips, breaker.cause) == (3, Cause.UNDECIDED)
    assert breaker.state(300) is State.HALF_OPEN


def test_after_a_long_silence_it_is_as_if_asked_all_along() -> None:
    seldom, often = Breaker(), Breaker()
    seldom.died(0)
    often.died(0)
    for second in range(20_000):
        often.state(second)
    assert (seldom.state(19_999), seldom.trips) == (often.state(19_999), often.trips)
    assert seldom.opens_in(19_999) == often.opens_in(19_999)


def test_results_from_before_a_trip_or_a_closing_are_dropped() -> None:
    breaker = Breaker()
    at_first = breaker.generation
    fail(breaker, 4, 0)
    while_open = breaker.generation
    probe = begun(breaker, 30)
    breaker.died(31)
    probe.failed(31)
    assert (breaker.trips, breaker.cause) == (2, Cause.DEATH)
    closed = close(breaker, 91.0)
    for generation in (at_first, while_open):
        for _ in range(9):
            breaker.failed(generation, closed)
            breaker.succeeded(generation, closed)
    probe.failed(closed)
    assert breaker.errors(closed) == (0, 0)
    assert breaker.state(closed) is State.CLOSED


class Ledger:
    """What the breaker should do, by recounting, its clock ticking through each half second."""

    TICK = 0.5

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = State.CLOSED
        self.since = self.now
        self.generation = self.trips = self.demand = 0
        self.cause: Cause | None = None
        self.outcomes: list[tuple[float, bool]] = []
        self.tried = 0
        self.probed = -math.inf
        # Number of the probe in flight, and its deadline.
        self.probe: tuple[int, float] | None = None
        self.probes = 0

    def isolated(self) -> float:
        return min(300, 30 * self.trips)

    def tick(self) -> None:
        self.now += self.TICK
        spent = self.now - self.since
        if self.probe and self.now >= self.probe[1]:
            self.probe = None
        if self.state is State.CLOSED:
            if spent % 60 == 0:
                self.trips = max(0, self.trips - 1)
        elif self.state is State.OPEN:
            if spent == self.isolated():
                self.state, self.since, self.tried, self.demand = State.HALF_OPEN, self.now, 0, 0
        elif spent == 60:
            self.trip(Cause.UNDECIDED)

    def trip(self, cause: Cause) -> None:
        self.state, self.since, self.cause, self.probe = State.OPEN, self.now, cause, None
        self.trips = min(10, self.trips + 1)
        self.generation += 1

    def recent(self) -> list[bool]:
        return [ok for at, ok in self.outcomes if math.floor(self.now) - math.floor(at) < 60]

    def outcome(self, ok: bool, generation: int) -> None:
        if generation != self.generation:
            return
        if self.state is State.CLOSED:
            self.outcomes.append((self.now, ok))
            recent = self.recent()
            if len(self.outcomes) >= 4 and not any(ok for _, ok in self.outcomes[-4:]):
                self.trip(Cause.STREAK)
            elif len(recent) >= 20 and recent.count(False) * 10 > len(recent):
                self.trip(Cause.ERRORS)
        elif not ok and self.state is State.HALF_OPEN:
            self.trip(Cause.ERRORS)
        elif not ok and self.cause is Cause.DEATH:
            self.cause = Cause.ERRORS

    def may_probe(self, synthetic: bool) -> bool:
        earned = self.now >= self.probed + 5 if synthetic else self.demand >= 100
        return self.state is State.HALF_OPEN and not self.probe and earned

    def begin(self, synthetic: bool) -> int:
        if not synthetic:
            self.demand = 0
        self.probed = self.now
        self.probes += 1
        self.probe = self.probes, self.now + 30
        return self.probes

    def tried_out(self, number: int, ok: bool | None) -> None:
        if self.probe is None or self.probe[0] != number:
            return
        self.probe = None
        if ok is None:
            return
        if not ok:
            self.trip(Cause.PROBE)
            return
        self.since = self.now
        self.tried += 1
        if self.tried == 5:
            self.state, self.cause, self.outcomes = State.CLOSED, None, []
            self.generation += 1


Tried = tuple[Probe, int] | MultipleResults[tuple[Probe, int]]


class Machine(RuleBasedStateMachine):
    """A breaker that is asked now and then, and the ledger."""

    requests: Bundle[int] = Bundle("requests")
    probes: Bundle[tuple[Probe, int]] = Bundle("probes")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.ledger = Ledger()
        self.generation = 0
        # Probes without an answer, with the generation that they are of.
        self.given: dict[Probe, int] = {}

    @property
    def now(self) -> float:
        return self.ledger.now

    @rule(
        seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0, 10.0, 29.5, 30.0, 59.5, 60.0, 90.0, 300.0])
        | st.integers(1, 700).map(float)
    )
    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / Ledger.TICK)):
            self.ledger.tick()

    @rule(target=requests)
    def begin(self) -> int:
        self.breaker.state(self.now)
        return self.breaker.generation

    @rule(generation=consumes(requests), ok=st.booleans())
    def end(self, generation: int, ok: bool) -> None:
        (self.breaker.succeeded if ok else self.breaker.failed)(generation, self.now)
        self.ledger.outcome(ok, generation)

    @rule(ok=st.booleans(), count=st.integers(1, 19))
    def many_end(self, ok: bool, count: int) -> None:
        for _ in range(count):
            self.end(self.ledger.generation, ok)

    @rule()
    @precondition(lambda self: self.ledger.trips < 20)
    def die(self) -> None:
        self.breaker.died(self.now)
        self.ledger.trip(Cause.DEATH)

    @rule(count=st.sampled_from([1, 50, 99, 100, 250]))
    def ask_the_model(self, count: int) -> None:
        demand(self.breaker, count, self.now)
        self.ledger.demand += count

    @rule(target=probes, synthetic=st.booleans())
    def try_out(self, synthetic: bool) -> Tried:
        probe = self.breaker.probe(self.now, synthetic=synthetic)
        assert (probe is not None) == self.ledger.may_probe(synthetic)
        if probe is None:
            return multiple()
        self.given[probe] = self.breaker.generation
        return probe, self.ledger.begin(synthetic)

    @rule(given=probes, ok=st.booleans() | st.none())
    def answer(self, given: tuple[Probe, int], ok: bool | None) -> None:
        probe, number = given
        if ok is None:
            probe.given_back()
        else:
            (probe.succeeded if ok else probe.failed)(self.now)
        self.ledger.tried_out(number, ok)
        self.given.pop(probe, None)

    @rule(answers=st.lists(st.booleans(), min_size=4, max_size=6))
    def try_out_in_turn(self, answers: list[bool]) -> None:
        for ok in [True, True, True, *answers]:
            self.wait(5)
            given = self.try_out(True)
            if isinstance(given, tuple):
                self.answer(given, ok)

    @rule()
    def look(self) -> None:
        breaker, ledger = self.breaker, self.ledger
        assert breaker.state(self.now) is ledger.state
        assert breaker.generation == ledger.generation
        assert (breaker.cause, breaker.trips) == (ledger.cause, ledger.trips)
        left = ledger.since + ledger.isolated() - self.now
        assert breaker.opens_in(self.now) == (left if ledger.state is State.OPEN else 0)
        assert breaker.opens_in(self.now) <= 300

    @rule()
    def recount(self) -> None:
        recent = self.ledger.recent()
        assert self.breaker.errors(self.now) == (recent.count(False), len(recent))

    @invariant()
    def the_generation_never_falls(self) -> None:
        assert self.breaker.generation >= self.generation
        self.generation = self.breaker.generation

    @invariant()
    def at_most_one_probe_is_live(self) -> None:
        live = [
            probe
            for probe, generation in self.given.items()
            if generation == self.ledger.generation and self.now < probe.deadline
        ]
        assert len(live) <= (self.ledger.state is State.HALF_OPEN)

    @invariant()
    def the_totals_equal_the_buckets(self) -> None:
        window = self.breaker._window
        assert (window.failures, window.total) == (sum(window._failures), sum(window._totals))

    def teardown(self) -> None:
        self.look()
        self.recount()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40)

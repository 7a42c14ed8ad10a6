"""p values: against published figures, against counting all outcomes, and what always holds."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hxd.daemon.rollout.evidence import (
    MISSED,
    MOST_DEALT,
    binomial_tail,
    detectable,
    farrington_manning,
    lower_bound,
    more_are_lost,
    rate_is_higher,
    tango,
    upper_bound,
    values_are_larger,
)
from hxd.daemon.rollout.sample import Count


def mass(hits: int, of: int, rate: float) -> float:
    return math.comb(of, hits) * rate**hits * (1.0 - rate) ** (of - hits)


counts = st.integers(1, 60).flatmap(
    lambda of: st.builds(Count, st.integers(0, of), st.just(of)),
)
margins = st.sampled_from([0.0, 0.02, 0.05, 0.1])


# --- binomial distributions


def test_a_binomial_tail_is_the_sum_of_its_terms() -> None:
    assert binomial_tail(8, 10, 0.5) == pytest.approx(56 / 1024)
    assert binomial_tail(2, 10, 0.5) == pytest.approx(1 - 11 / 1024)
    assert binomial_tail(3, 3, 0.1) == pytest.approx(0.001)
    assert [binomial_tail(k, 5, 0.3) for k in (0, 6)] == [1.0, 0.0]
    assert [binomial_tail(2, 5, rate) for rate in (0.0, 1.0)] == [0.0, 1.0]


def test_of_a_tail_that_is_far_out_not_every_term_is_looked_at() -> None:
    assert binomial_tail(10**11, 10**12, 0.01) == 0.0
    assert binomial_tail(10**9, 10**12, 0.01) == 1.0


@given(counts, st.floats(0.001, 0.999))
def test_a_binomial_tail_agrees_with_adding_up(count: Count, rate: float) -> None:
    wanted = sum(mass(k, count.of, rate) for k in range(count.hits, count.of + 1))
    assert binomial_tail(count.hits, count.of, rate) == pytest.approx(wanted, abs=1e-12)


def test_confidence_limits_are_those_of_clopper_and_pearson() -> None:
    """None of n: the rate at which that has the given probability. 10 of 100, and 95 % of both
    sides: 0.0490 and 0.1762, as tables have it."""
    assert upper_bound(0, 20, 0.05) == pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-8)
    assert lower_bound(10, 100, 0.025) == pytest.approx(0.0490, abs=5e-5)
    assert upper_bound(10, 100, 0.025) == pytest.approx(0.1762, abs=5e-5)
    assert (lower_bound(0, 9, 0.1), upper_bound(9, 9, 0.1)) == (pytest.approx(0.0, abs=1e-8), 1.0)


# --- one rate against another


def test_without_a_margin_the_score_is_that_of_the_pooled_rate() -> None:
    """15 of 100 against 5 of 100: 0.1 over the root of 0.1 * 0.9 * 2 / 100."""
    assert farrington_manning(Count(15, 100), Count(5, 100), 0.0) == pytest.approx(
        2.35702, abs=1e-5
    )
    assert farrington_manning(Count(0, 9), Count(0, 7), 0.0) == 0.0
    assert farrington_manning(Count(9, 9), Count(7, 7), 0.0) == 0.0


def test_the_score_is_zero_at_the_margin() -> None:
    assert farrington_manning(Count(7, 100), Count(5, 100), 0.02) == pytest.approx(0.0, abs=1e-9)


def most_likely(canary: Count, stable: Count, margin: float) -> float:
    """The canary's rate at which the likelihood has no slope, by halving."""

    def slope(rate: float) -> float:
        total = 0.0
        for count, p in ((canary, rate), (stable, rate - margin)):
            total += count.hits / p - (count.of - count.hits) / (1.0 - p)
        return total

    low, high = margin, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return low


@given(counts, counts, st.sampled_from([0.02, 0.1, 0.3]))
def test_the_cubic_has_the_most_likely_rates(canary: Count, stable: Count, margin: float) -> None:
    assume(0 < canary.hits < canary.of and 0 < stable.hits < stable.of)
    rate = most_likely(canary, stable, margin)
    before = rate - margin
    deviation = math.sqrt(rate * (1 - rate) / canary.of + before * (1 - before) / stable.of)
    excess = canary.hits / canary.of - stable.hits / stable.of - margin
    score = farrington_manning(canary, stable, margin)
    assert score == pytest.approx(excess / deviation, abs=1e-5)


@given(counts, counts, margins)
def test_the_score_rises_with_the_canarys_hits_and_falls_with_stables(
    canary: Count, stable: Count, margin: float
) -> None:
    """On which the exact p relies."""
    score = farrington_manning(canary, stable, margin)
    if canary.hits < canary.of:
        more = Count(canary.hits + 1, canary.of)
        assert farrington_manning(more, stable, margin) >= score - 1e-9
    if stable.hits < stable.of:
        more = Count(stable.hits + 1, stable.of)
        assert farrington_manning(canary, more, margin) <= score + 1e-9


@given(counts, counts)
def test_without_a_margin_the_score_is_symmetric(one: Count, other: Count) -> None:
    score = farrington_manning(one, other, 0.0)
    assert farrington_manning(other, one, 0.0) == pytest.approx(-score, abs=1e-6)


def by_counting(canary: Count, stable: Count, margin: float) -> float:
    """The exact p, over all outcomes and many of stable's rates."""
    seen = farrington_manning(canary, stable, margin) - 1e-9
    worse = [
        (x, y)
        for x in range(canary.of + 1)
        for y in range(stable.of + 1)
        if farrington_manning(Count(x, canary.of), Count(y, stable.of), margin) >= seen
    ]
    low = lower_bound(stable.hits, stable.of, MISSED / 2)
    high = min(1.0 - margin, upper_bound(stable.hits, stable.of, MISSED / 2))
    rates = [low + (high - low) * step / 160 for step in range(161)]
    return MISSED + max(
        sum(mass(x, canary.of, rate + margin) * mass(y, stable.of, rate) for x, y in worse)
        for rate in rates
    )


@pytest.mark.parametrize(
    ("canary", "stable", "margin"),
    [
        (Count(4, 5), Count(5, 28), 0.02),
        (Count(3, 6), Count(0, 40), 0.02),
        (Count(7, 18), Count(8, 38), 0.0),
        (Count(10, 14), Count(3, 21), 0.1),
        (Count(1, 12), Count(1, 19), 0.02),
        (Count(25, 30), Count(4, 9), 0.1),
    ],
)
def test_p_of_a_rate_agrees_with_counting_all_outcomes(
    canary: Count, stable: Count, margin: float
) -> None:
    wanted = by_counting(canary, stable, margin)
    assert rate_is_higher(canary, stable, margin) == pytest.approx(wanted, rel=0.02)


def test_p_of_a_rate_is_far_from_the_normal_distribution_where_errors_are_few() -> None:
    canary, stable = Count(6, 50), Count(2, 480)
    normal = statistics.NormalDist().cdf(-farrington_manning(canary, stable, 0.02))
    assert normal == pytest.approx(0.000016, abs=1e-6)
    assert rate_is_higher(canary, stable, 0.02) == pytest.approx(0.00095, abs=1e-5)


def test_p_of_a_rate_is_near_the_normal_distribution_where_errors_are_many() -> None:
    canary, stable = Count(1200, 10_000), Count(9_000, 100_000)
    normal = statistics.NormalDist().cdf(-farrington_manning(canary, stable, 0.02))
    assert rate_is_higher(canary, stable, 0.02) == pytest.approx(normal, rel=0.15)


@pytest.mark.parametrize(("of", "stable_of", "margin"), [(10, 30, 0.02), (12, 12, 0.1)])
def test_a_rate_worse_by_the_margin_alone_is_seldom_rejected(
    of: int, stable_of: int, margin: float
) -> None:
    """Every outcome is counted, at many rates and levels: the test holds what it says."""
    outcomes = list(itertools.product(range(of + 1), range(stable_of + 1)))
    p = {(x, y): rate_is_higher(Count(x, of), Count(y, stable_of), margin) for x, y in outcomes}
    for level in (0.05, 0.01, 0.002):
        rejected = [outcome for outcome in outcomes if p[outcome] < level]
        for step in range(46):
            rate = step / 50
            chance = sum(mass(x, of, rate + margin) * mass(y, stable_of, rate) for x, y in rejected)
            assert chance <= level


@settings(max_examples=50)
@given(counts, counts, margins)
def test_p_of_a_rate_is_a_probability_and_falls_with_the_canarys_hits(
    canary: Count, stable: Count, margin: float
) -> None:
    p = rate_is_higher(canary, stable, margin)
    assert MISSED <= p <= 1.0
    if canary.hits < canary.of:
        assert rate_is_higher(Count(canary.hits + 1, canary.of), stable, margin) <= p + 1e-9
    if canary.hits / canary.of <= stable.hits / stable.of + margin:
        assert p > 0.3


def test_nothing_seen_is_no_evidence() -> None:
    assert rate_is_higher(Count(0, 0), Count(1, 9), 0.02) == 1.0
    assert rate_is_higher(Count(9, 9), Count(0, 0), 0.02) == 1.0
    assert more_are_lost(0, 0, 0, 0.05) == 1.0
    assert values_are_larger([], [1.0]) == 1.0


# --- what would have been found


def test_the_rate_that_would_be_found_is_found_that_often() -> None:
    stable, of, level = Count(18, 1800), 200, 0.005
    rate = detectable(of, stable, 0.02, level, 0.9)
    assert rate is not None
    least = next(x for x in range(of) if rate_is_higher(Count(x, of), stable, 0.02) <= level)
    assert binomial_tail(least, of, rate) == pytest.approx(0.9, abs=1e-6)
    assert 0.07 < rate < 0.11


def test_more_requests_find_less() -> None:
    rates = [detectable(of, Count(18, 1800), 0.02, 0.005, 0.9) for of in (20, 100, 500, 2000)]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) == 4


def test_with_too_little_nothing_would_be_found() -> None:
    assert detectable(1, Count(0, 10), 0.02, 0.001, 0.9) is None
    assert detectable(0, Count(0, 10), 0.02, 0.001, 0.9) is None


# --- the same questions to both


def test_the_paired_score_is_tangos() -> None:
    """The example of his paper: of 44, one succeeded with the control only; Z = 1.709 against being
    worse by a tenth. Without a margin it is McNemar's (b - c) over the root of b + c."""
    assert tango(1, 0, 44, 0.1) == pytest.approx(-1.709, abs=1e-3)
    assert tango(25, 9, 100, 0.0) == pytest.approx(16 / math.sqrt(34))
    assert tango(0, 0, 10, 0.0) == 0.0


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), margins)
def test_the_paired_score_rises_with_what_is_lost(
    lost: int, won: int, same: int, margin: float
) -> None:
    """On which the exact p relies."""
    of = lost + won + same + 1
    score = tango(lost, won, of, margin)
    assert tango(lost + 1, won, of, margin) >= score - 1e-9
    assert tango(lost, won + 1, of, margin) <= score + 1e-9


@pytest.mark.parametrize(
    ("lost", "won", "of", "margin"),
    [(8, 0, 8, 0.05), (10, 0, 10, 0.05), (20, 1, 27, 0.1), (9, 2, 20, 0.0), (18, 5, 28, 0.05)],
)
def test_p_of_pairs_agrees_with_counting_all_outcomes(
    lost: int, won: int, of: int, margin: float
) -> None:
    seen = tango(lost, won, of, margin) - 1e-9
    worse = [
        (b, c) for b in range(of + 1) for c in range(of + 1 - b) if tango(b, c, of, margin) >= seen
    ]
    low = lower_bound(won, of, MISSED / 2)
    high = min((1 - margin) / 2, upper_bound(won, of, MISSED / 2))

    def probability(rate: float) -> float:
        same = max(0.0, 1.0 - 2.0 * rate - margin)
        return sum(
            math.comb(of, b)
            * math.comb(of - b, c)
            * (rate + margin) ** b
            * rate**c
            * same ** (of - b - c)
            for b, c in worse
        )

    wanted = MISSED + max(probability(low + (high - low) * step / 120) for step in range(121))
    assert more_are_lost(lost, won, of, margin) == pytest.approx(wanted, rel=0.01)


def test_pairs_worse_by_the_margin_alone_are_seldom_rejected() -> None:
    of, margin = 20, 0.05
    pairs = [(b, c) for b in range(of + 1) for c in range(of + 1 - b)]
    p = {pair: more_are_lost(*pair, of, margin) for pair in pairs}
    for level in (0.05, 0.005):
        rejected = [pair for pair in pairs if p[pair] < level]
        for step in range(20):
            rate = step / 42
            same = 1.0 - 2.0 * rate - margin
            chance = sum(
                math.comb(of, b)
                * math.comb(of - b, c)
                * (rate + margin) ** b
                * rate**c
                * same ** (of - b - c)
                for b, c in rejected
            )
            assert chance <= level


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60), margins)
def test_p_of_pairs_is_a_probability_and_falls_with_what_is_lost(
    lost: int, won: int, same: int, margin: float
) -> None:
    of = lost + won + same + 1
    p = more_are_lost(lost, won, of, margin)
    assert MISSED <= p <= 1.0
    assert more_are_lost(lost + 1, won, of, margin) <= p + 1e-9


# --- values against values


def test_few_values_are_dealt_in_all_ways() -> None:
    """All of five above all of five: one way in 252. One pair the other way round: two."""
    low, high = [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]
    assert values_are_larger(high, low) == pytest.approx(1 / 252)
    assert values_are_larger([5.5, 7.0, 8.0, 9.0, 10.0], [1.0, 2.0, 3.0, 4.0, 6.0]) == (
        pytest.approx(2 / 252)
    )
    assert values_are_larger(low, high) == 1.0
    assert values_are_larger([2.0], [1.0]) == 0.5


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
)
def test_ties_share_their_ranks(canary: list[int], stable: list[int]) -> None:
    def wins(chosen: list[int], others: list[int]) -> float:
        return sum((a > b) + (a == b) / 2 for a in chosen for b in others)

    values, seen = canary + stable, wins(canary, stable)
    deals = 0
    as_much = 0
    for places in itertools.combinations(range(len(values)), len(canary)):
        chosen = [values[place] for place in places]
        others = [value for place, value in enumerate(values) if place not in places]
        deals += 1
        as_much += wins(chosen, others) >= seen
    assert values_are_larger(canary, stable) == pytest.approx(as_much / deals)


def test_many_values_are_compared_by_the_normal_distribution() -> None:
    """By hand: without ties, U of 20 and 20 has mean 200 and variance 20 * 20 * 41 / 12. Each of
    the canary's, 1 to 39, is above 1, 2, … 20 of stable's, 0 to 38: U is 210."""
    canary = [2.0 * n + 1.0 for n in range(20)]
    stable = [2.0 * n for n in range(20)]
    z = (210 - 200 - 0.5) / math.sqrt(20 * 20 * 41 / 12)
    assert values_are_larger(canary, stable) == pytest.approx(statistics.NormalDist().cdf(-z))
    assert values_are_larger([1.0] * 30, [1.0] * 30) == 1.0


def test_ties_among_many_values_narrow_the_spread() -> None:
    """By hand: 30 ones and 10 zeros, of which the canary has 20 ones. U is 20 * 10 + 20 * 10 / 2;
    the variance is 20 * 20 / 12 times 41 - (30^3 - 30 + 10^3 - 10) / (40 * 39)."""
    z = (300 - 200 - 0.5) / math.sqrt(20 * 20 / 12 * (41 - (26_970 + 990) / 1560))
    p = values_are_larger([1.0] * 20, [1.0] * 10 + [0.0] * 10)
    assert p == pytest.approx(statistics.NormalDist().cdf(-z))


def ways(n: int, m: int) -> list[int]:
    """In how many ways U of n and m values comes to each number, by the recursion of Mann and
    Whitney."""

    @cache
    def count(u: int, a: int, b: int) -> int:
        if u < 0:
            return 0
        if not a or not b:
            return int(u == 0)
        return count(u - b, a - 1, b) + count(u, a, b - 1)

    return [count(u, n, m) for u in range(n * m + 1)]


def test_far_out_the_normal_distribution_errs_on_the_safe_side() -> None:
    n, m = 10, 40
    assert n + m > MOST_DEALT
    numbers = ways(n, m)
    total = math.comb(n + m, n)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    for u in range(n * m // 2, n * m + 1):
        exact = sum(numbers[u:]) / total
        normal = statistics.NormalDist().cdf(-(u - n * m / 2 - 0.5) / deviation)
        if exact < 0.01:
            assert normal >= exact


values = st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=25)


@given(values, values)
def test_p_of_values_asks_for_their_order_only(canary: list[float], stable: list[float]) -> None:
    p = values_are_larger(canary, stable)
    assert 0.0 <= p <= 1.0
    powers_of_two = [value * 64.0 for value in canary], [value * 64.0 for value in stable]
    assert values_are_larger(*powers_of_two) == p


@given(values, values)
def test_both_directions_of_values_make_up_the_whole(
    canary: list[float], stable: list[float]
) -> None:
    """And what both share counts twice."""
    assert values_are_larger(canary, stable) + values_are_larger(stable, canary) >= 1.0 - 1e-9


@given(values, values, st.integers(0, 24), st.floats(1.0, 10.0))
def test_a_larger_value_is_never_less_evidence(
    canary: list[float], stable: list[float], place: int, times: float
) -> None:
    assume(len(canary) + len(stable) <= MOST_DEALT)
    more = list(canary)
    more[place % len(more)] *= times
    # Ties that come or go change the spread of the others' ranks, so only without them.
    assume(len({*canary, *stable}) == len({*more, *stable}) == len(canary) + len(stable))
    assert values_are_larger(more, stable) <= values_are_larger(canary, stable) + 1e-12


def test_times_at_the_margin_are_rejected_as_often_as_the_level_says() -> None:
    rng = random.Random(11)
    runs, level = 2000, 0.02
    rejected = 0
    for _ in range(runs):
        canary = [rng.lognormvariate(0.0, 0.6) for _ in range(15)]
        stable = [rng.lognormvariate(0.0, 0.6) for _ in range(30)]
        rejected += values_are_larger(canary, stable) < level
    assert rejected <= runs * level + 4 * math.sqrt(runs * level)

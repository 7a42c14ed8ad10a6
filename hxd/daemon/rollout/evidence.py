"""How surprising it is what was seen of two releases, if one were no worse than a margin allows.

Each function returns a p value: the probability, at most, of evidence this strong against the
canary, were it worse by the margin and no more. Knows no release, only counts and values. Pure.

What all of them take for granted: that requests fail, and are slow, independently of one another.
A box that is in trouble for a minute fails many at once. Since both releases are on it at the same
time and clients are split at random, that hits both; but it is why a verdict can be wrong more
often than it says.
"""

from __future__ import annotations

import itertools
import math
import operator
import statistics
from collections.abc import Callable, Sequence

from hxd.daemon.rollout.sample import Count

# A rate that isn't of interest itself, but on which p depends, is looked for within a confidence
# interval that fails with this probability, which is added to p: Berger and Boos, "P values
# maximized over a confidence set for the nuisance parameter", Journal of the American Statistical
# Association 89, 1994. Small beside any level that is ever asked for.
MISSED = 1e-6
# Rates within that interval for which p is computed. With 16 times as many, p of random tables rose
# by 1.3 % at most, and by 0.3 % where it was small.
_GRID = 41
# Outcomes on one side that are less probable than this, all of them together, are left out.
_NEGLIGIBLE = 1e-10
# Both sides of a Mann-Whitney test together up to which all ways to deal the ranks are counted.
MOST_DEALT = 20
_NORMAL = statistics.NormalDist()


def binomial_tail(hits: int, of: int, rate: float) -> float:
    """P(X >= hits) of a binomial X, exactly."""
    if hits <= 0:
        return 1.0
    if hits > of or rate <= 0.0:
        return 0.0
    if rate >= 1.0:
        return 1.0
    if hits <= of * rate:
        return max(0.0, 1.0 - binomial_tail(of - hits + 1, of, 1.0 - rate))
    # Beyond the mean each term is smaller than the one before, by ever more.
    term, odds, total = _mass(hits, of, rate), rate / (1.0 - rate), 0.0
    for k in range(hits, of + 1):
        total += term
        term *= (of - k) / (k + 1) * odds
        if term <= total * 1e-16:
            break
    return min(1.0, total)


def upper_bound(hits: int, of: int, missed: float) -> float:
    """The largest rate at which so few hits still have the probability `missed`: the upper limit of
    Clopper and Pearson ("The use of confidence or fiducial limits", Biometrika 26, 1934)."""
    low, high = hits / of, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if binomial_tail(of - hits, of, 1.0 - middle) > missed:
            low = middle
        else:
            high = middle
    return high


def lower_bound(hits: int, of: int, missed: float) -> float:
    """The smallest rate at which so many hits still have the probability `missed`."""
    return 1.0 - upper_bound(of - hits, of, missed)


# --- one rate against another


def farrington_manning(canary: Count, stable: Count, margin: float) -> float:
    """By how many standard deviations the canary's rate exceeds stable's and `margin`.

    Farrington and Manning, "Test statistics and sample size formulae for comparative binomial
    trials with null hypothesis of non-zero risk difference", Statistics in Medicine 9, 1990: the
    difference less the margin, over its standard deviation at the most likely rates that lie the
    margin apart. At margin 0 it is the usual test with a pooled rate.
    """
    return _score(canary.hits, canary.of, stable.hits, stable.of, margin)


def _score(x: int, n: int, y: int, m: int, margin: float) -> float:
    """`x` of `n` are the canary's, `y` of `m` stable's. The most likely rate of the canary's is a
    root of the cubic in Farrington and Manning's appendix, with group 1 the canary."""
    theta, theirs, ours = m / n, x / n, y / m
    a = 3.0 * (1.0 + theta)
    b = -(1.0 + theta + theirs + theta * ours + margin * (theta + 2.0)) / a
    c = margin * (margin + 2.0 * theirs + theta + 1.0) + theirs + theta * ours
    v = b**3 - 1.5 * b * c / a - 1.5 * theirs * margin * (1.0 + margin) / a
    u = math.copysign(math.sqrt(max(0.0, b * b - c / a)), v)
    rate = -b
    if u != 0.0:
        rate += 2.0 * u * math.cos((math.pi + math.acos(max(-1.0, min(v / u**3, 1.0)))) / 3.0)
    rate = min(1.0, max(margin, rate))
    before = rate - margin
    variance = rate * (1.0 - rate) / n + before * (1.0 - before) / m
    if variance <= 1e-15:  # without a margin, and all or none were hits
        return 0.0
    return (theirs - ours - margin) / math.sqrt(variance)


def rate_is_higher(canary: Count, stable: Count, margin: float) -> float:
    """p of the canary's rate being stable's and at most `margin` (0 to 1) more.

    Exact: the probability of all outcomes that `farrington_manning` finds at least as bad, at the
    worst of the rates that stable may have (Chan, "Exact tests of equivalence and efficacy with a
    non-zero lower bound for comparative studies", Statistics in Medicine 17, 1998, with the
    interval of Berger and Boos). The normal distribution will not do: for 6 errors in 50 requests
    against 2 in 480 and a margin of 2 points it says 0.00002, and the truth is 0.001.

    Takes a few ms for a thousand requests, and some 40 for a hundred thousand.
    """
    if not canary.of or not stable.of:
        return 1.0
    seen = farrington_manning(canary, stable, margin)
    if seen <= 0.0:
        return 1.0
    n, m = canary.of, stable.of
    rates = _grid(stable, 1.0 - margin)
    # For each number of hits of stable's, the canary's least that is as bad as what was seen.
    first, last = _likely(m, rates[0])[0], _likely(m, rates[-1])[1]
    needed = [0]
    for y in range(first, last + 1):

        def bad(x: int, y: int = y) -> bool:
            return _score(x, n, y, m, margin) >= seen - 1e-9

        needed.append(_first(bad, needed[-1], n + 1))
    del needed[0]
    worst, least = 0.0, needed[0]
    places = [x - least for x in needed]
    for rate in rates:
        tails = _tails(n, rate + margin, least, needed[-1])
        start, masses = _masses(m, rate)
        skipped = max(0, first - start)
        chances = map(tails.__getitem__, places[max(0, start - first) :])
        worst = max(worst, sum(map(operator.mul, masses[skipped:], chances)))
    return min(1.0, worst + MISSED)


def detectable(of: int, stable: Count, margin: float, level: float, power: float) -> float | None:
    """The canary's smallest rate that would have been found with probability `power`, if so many of
    its requests are tested against what was seen of stable; None if none would have been."""
    if not of or not stable.of:
        return None

    def found(hits: int) -> bool:
        return rate_is_higher(Count(hits, of), stable, margin) <= level

    # The normal distribution tells about where, which saves most of the work.
    score = _NORMAL.inv_cdf(1.0 - level)
    hits = _first(lambda x: _score(x, of, stable.hits, stable.of, margin) >= score, 0, of)
    while hits > 0 and found(hits - 1):
        hits -= 1
    while not found(hits):
        hits += 1
        if hits > of:
            return None
    return upper_bound(hits - 1, of, 1.0 - power) if hits else 0.0


# --- the same questions to both


def tango(lost: int, won: int, of: int, margin: float) -> float:
    """By how many standard deviations more than `margin` of the questions were lost than won.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998: as `farrington_manning`, for pairs. At
    margin 0 it is McNemar's test.
    """
    b = lost * (1.0 + margin) + won * (1.0 - margin) - 2.0 * of * margin
    rate = (b + math.sqrt(b * b + 8.0 * of * won * margin * (1.0 - margin))) / (4.0 * of)
    variance = of * (2.0 * max(0.0, rate) + margin * (1.0 - margin))
    if variance <= 1e-15:
        return 0.0
    return (lost - won - of * margin) / math.sqrt(variance)


def more_are_lost(lost: int, won: int, of: int, margin: float) -> float:
    """p of the canary losing at most `margin` (0 to 1) more of `of` questions than it wins. One is
    lost if only stable is right about it, and won if only the canary is.

    Exact, as `rate_is_higher`: all outcomes that `tango` finds at least as bad, at the worst of the
    rates at which questions may be won. (The sign test on the lost and won ones alone, which is
    exact without a margin, has no place for one.)
    """
    if not of:
        return 1.0
    seen = tango(lost, won, of, margin)
    if seen <= 0.0:
        return 1.0
    rates = _grid(Count(won, of), (1.0 - margin) / 2.0)
    first, last = _likely(of, rates[0])[0], _likely(of, rates[-1])[1]
    needed = [0]
    for w in range(first, last + 1):

        def bad(x: int, w: int = w) -> bool:
            return tango(x, w, of, margin) >= seen - 1e-9

        needed.append(_first(bad, needed[-1], of - w + 1))
    del needed[0]
    worst = 0.0
    for rate in rates:
        losing = min(1.0, (rate + margin) / (1.0 - rate))
        start, masses = _masses(of, rate)
        worst = max(
            worst,
            sum(
                mass * binomial_tail(needed[w - first], of - w, losing)
                for w, mass in enumerate(masses, start)
                if first <= w <= last
            ),
        )
    return min(1.0, worst + MISSED)


# --- values against values


def values_are_larger(canary: Sequence[float], stable: Sequence[float]) -> float:
    """p of the canary's values being no larger than stable's, whatever their distribution.

    Mann and Whitney, "On a test of whether one of two random variables is stochastically larger
    than the other", Annals of Mathematical Statistics 18, 1947. Up to `MOST_DEALT` values together
    all ways to deal the ranks are counted; beyond, the normal distribution is used, with the
    correction for ties (Lehmann, "Nonparametrics", 1975, section 1.2) and for continuity. Far out,
    where the levels of a canary lie, it errs on the safe side, since ranks are bounded.
    """
    n, m = len(canary), len(stable)
    if not n or not m:
        return 1.0
    ranks, ties = _doubled_ranks([*canary, *stable])
    seen = sum(ranks[:n])
    if n + m <= MOST_DEALT:
        return _dealt(ranks, n, seen)
    total = n + m
    excess = seen / 2.0 - n * (total + 1) / 2.0 - 0.5
    variance = n * m / 12.0 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0.0:
        return 1.0
    return _NORMAL.cdf(-excess / math.sqrt(variance))


def _doubled_ranks(values: Sequence[float]) -> tuple[list[int], int]:
    """Twice the rank of each value, ties sharing theirs, and the sum of t^3 - t over ties of t."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, ties, before = [0] * len(values), 0, 0
    for _, group in itertools.groupby(order, key=values.__getitem__):
        same = list(group)
        for place in same:
            ranks[place] = 2 * before + len(same) + 1
        before += len(same)
        ties += len(same) ** 3 - len(same)
    return ranks, ties


def _dealt(ranks: Sequence[int], n: int, seen: int) -> float:
    """The share of all choices of `n` ranks whose sum is `seen` or more."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]
    for rank in ranks:
        for chosen in range(n, 0, -1):
            for total, count in ways[chosen - 1].items():
                ways[chosen][total + rank] = ways[chosen].get(total + rank, 0) + count
    as_much = sum(count for total, count in ways[n].items() if total >= seen)
    return as_much / math.comb(len(ranks), n)


# --- binomial distributions, in parts


def _grid(seen: Count, most: float) -> list[float]:
    """Rates within the confidence interval of what was seen, and not above `most`."""
    low = min(most, lower_bound(seen.hits, seen.of, MISSED / 2.0))
    high = min(most, upper_bound(seen.hits, seen.of, MISSED / 2.0))
    return [low + (high - low) * step / (_GRID - 1) for step in range(_GRID)]


def _likely(of: int, rate: float) -> tuple[int, int]:
    """The numbers of hits beyond which lies `_NEGLIGIBLE` on each side, by Bernstein's bound."""
    bound = -math.log(_NEGLIGIBLE)
    far = bound / 3.0 + math.sqrt(bound * bound / 9.0 + 2.0 * bound * of * rate * (1.0 - rate))
    return max(0, math.floor(of * rate - far)), min(of, math.ceil(of * rate + far))


def _mass(hits: int, of: int, rate: float) -> float:
    chosen = math.lgamma(of + 1) - math.lgamma(hits + 1) - math.lgamma(of - hits + 1)
    return math.exp(chosen + hits * math.log(rate) + (of - hits) * math.log1p(-rate))


def _masses(of: int, rate: float) -> tuple[int, list[float]]:
    """P(X = k) for each k of the `_likely` ones, and the first of these."""
    if rate <= 0.0 or rate >= 1.0:
        return (0 if rate <= 0.0 else of), [1.0]
    first, last = _likely(of, rate)
    mass, odds = _mass(first, of, rate), rate / (1.0 - rate)
    masses = []
    for k in range(first, last + 1):
        masses.append(mass)
        mass *= (of - k) / (k + 1) * odds
    return first, masses


def _tails(of: int, rate: float, least: int, most: int) -> list[float]:
    """P(X >= k) for each k from `least` to `most`."""
    first, masses = _masses(of, rate)
    tails = list(itertools.accumulate(reversed(masses)))
    tails.reverse()
    tails = [1.0] * (first - least) + tails[max(0, least - first) :]
    return tails + [0.0] * (most - least + 1 - len(tails))


def _first(holds: Callable[[int], bool], start: int, end: int) -> int:
    """The smallest number from `start` on for which `holds`; `end` if none below it does. Once it
    holds it goes on to; the answer is probably near `start`."""
    low, high, step = start - 1, start, 1
    while high < end and not holds(high):
        low, high, step = high, high + step, 2 * step
    high = min(high, end)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high

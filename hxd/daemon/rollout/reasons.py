"""What speaks against a canary: one comparison per metric, and the limits that need no statistics.

Each gives a `Reason`, which holds the numbers and says them in words. Looks once, at what there is
now; how often one may look is the judge's business. Pure.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hxd.daemon.rollout import evidence
from hxd.daemon.rollout.golden import Golden, Outcome
from hxd.daemon.rollout.sample import FIRST_REQUESTS, Count, Reservoir, Sample

# Values on each side before times are compared: with fewer no ranks are rare enough. The caches are
# warm by then, since golden prompts came first.
LEAST_TIMES = 6
# With fewer requests, stable is no measure: it is taken to fail as often as `HEALTHY`, or as it
# did, whichever is more. So is a stable that no client was left for.
LEAST_STABLE = 20
HEALTHY = 0.10
# Errors among the first `FIRST_REQUESTS` at which nothing more is waited for. Of two releases that
# both fail 2 % of their requests, one in 1.4 million is stopped by this; at 9 %, one in 1,100.
FIRST_ERRORS = 5
# Worker deaths that are blamed on the canary. One may be a request's doing, or the box's.
DEATHS = 2


@dataclass(frozen=True)
class Margins:
    """How much worse a canary may be. Smaller worsenings are no reason to roll back, however
    surely they are seen."""

    error_rate: float = 0.02  # more of all requests
    ttft: float = 1.5  # times as long, and
    ttft_seconds: float = 0.05  # so much longer in the median, which is what a person can notice
    speed: float = 0.7  # times as many tokens per second
    golden: float = 0.02  # fewer of the golden prompts
    empty: float = 0.05  # more of the answers that ended by themselves and say nothing
    disliked: float = 0.10  # more of the answers that clients spoke of
    # Times as perplexed by a fixed text, of two variants of one version. Quantizing that is worth
    # having costs a few hundredths; down to q2_k of a small model it may be half as much again.
    perplexity: float = 2.0

    def __post_init__(self) -> None:
        for name in ("error_rate", "golden", "empty", "disliked"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"margin {name} is not a share from 0 to 1")
        if not (1.0 <= self.ttft < math.inf and 0.0 < self.speed <= 1.0):
            raise ValueError("margin ttft is a factor from 1 up, and speed one from 0 to 1")
        if not 1.0 <= self.perplexity < math.inf:
            raise ValueError("margin perplexity is not a factor from 1 up")
        if not 0.0 <= self.ttft_seconds < math.inf:
            raise ValueError("margin ttft_seconds is not a time")


@dataclass(frozen=True)
class Reason:
    """One comparison. `worse` is whether it is a reason to roll back: `p` is below `alpha`, the
    probability of a false alarm that this look may cost. Both are None for a limit that needs no
    statistics, and for what could not be compared; `test` says which."""

    metric: str
    test: str
    worse: bool
    words: str
    stable: float | None = None
    canary: float | None = None
    margin: float | None = None
    stable_n: int = 0
    canary_n: int = 0
    p: float | None = None
    alpha: float | None = None

    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


LIMIT = "limit"
_SMALLEST = 1e-5  # p that is shown
NOT_COMPARED = "none"


def error_rate(stable: Sample, canary: Sample, margin: float, alpha: float) -> Reason:
    ours, theirs = stable.errors, canary.errors
    if not theirs.of:
        return _not_compared("error_rate", "error rate", "no requests on the canary")
    if ours.of >= LEAST_STABLE:
        return _shares("error_rate", "error rate", ours, theirs, margin, alpha)
    rate = max(HEALTHY, ours.share or 0.0) + margin
    p = evidence.binomial_tail(theirs.hits, theirs.of, min(1.0, rate))
    return Reason(
        metric="error_rate",
        test="exact binomial",
        worse=p < alpha,
        words=f"error rate {_percent(theirs)}; stable had only {ours.of} requests, so against "
        f"{100 * rate:.0f} %: exact binomial {_said(p, alpha)}",
        stable=ours.share,
        canary=theirs.share,
        margin=margin,
        stable_n=ours.of,
        canary_n=theirs.of,
        p=p,
        alpha=alpha,
    )


def disliked(stable: Sample, canary: Sample, margin: float, alpha: float) -> Reason:
    name = "disliked answers"
    if not stable.disliked.of or not canary.disliked.of:
        return _not_compared("disliked", name, "nobody spoke of both releases' answers")
    return _shares("disliked", name, stable.disliked, canary.disliked, margin, alpha)


def empty(stable: Sample, canary: Sample, margin: float, alpha: float) -> Reason:
    name = "empty answers"
    if not stable.empty.of or not canary.empty.of:
        return _not_compared("empty", name, "none of both releases ended well")
    return _shares("empty", name, stable.empty, canary.empty, margin, alpha)


def ttft(stable: Sample, canary: Sample, margins: Margins, alpha: float) -> Reason:
    """Slower by more than the factor, and by more than a person can notice."""
    return _times("ttft", stable.ttft, canary.ttft, margins, alpha)


def speed(stable: Sample, canary: Sample, margins: Margins, alpha: float) -> Reason:
    return _times("speed", stable.speed, canary.speed, margins, alpha)


def golden(stable: Sample, canary: Sample, prompts: Golden, margin: float, alpha: float) -> Reason:
    """Over the prompts that both were asked."""
    ids = both_asked(stable, canary, prompts)
    if not ids:
        return _not_compared("golden", "golden prompts", "none that both releases were asked")
    ours = {name for name in ids if stable.outcomes[name] is Outcome.RIGHT}
    theirs = {name for name in ids if canary.outcomes[name] is Outcome.RIGHT}
    lost, won = len(ours - theirs), len(theirs - ours)
    p = evidence.more_are_lost(lost, won, len(ids), margin)
    before, now = Count(len(ours), len(ids)), Count(len(theirs), len(ids))
    return Reason(
        metric="golden",
        test="Tango, exact",
        worse=p < alpha,
        words=f"golden prompts right {_percent(now)} against {_percent(before)}, {lost} lost and "
        f"{won} won: Tango (exact) {_said(p, alpha)}",
        stable=before.share,
        canary=now.share,
        margin=margin,
        stable_n=before.of,
        canary_n=now.of,
        p=p,
        alpha=alpha,
    )


def both_asked(stable: Sample, canary: Sample, prompts: Golden) -> list[str]:
    asked = (prompt.id for prompt in prompts.prompts)
    return [name for name in asked if name in stable.outcomes and name in canary.outcomes]


def all_asked(canary: Sample, prompts: Golden) -> bool:
    return all(prompt.id in canary.outcomes for prompt in prompts.prompts)


# --- limits


def limits(
    stable: Sample,
    canary: Sample,
    prompts: Golden,
    deaths: int,
    *,
    ending: bool,
) -> list[Reason]:
    """Those that are broken. None of them waits for more to be known; at the end, what is still
    not known of a required prompt counts against the canary."""
    broken = [
        _deaths(deaths),
        _first_errors(stable, canary),
        _below_floor(stable, canary, prompts),
    ]
    broken += [_required(stable, canary, name, ending=ending) for name in prompts.required]
    return [reason for reason in broken if reason is not None]


def perplexed(stable: Sample, canary: Sample, margin: float) -> list[Reason]:
    """A limit for variants of one version; `margin`: times as much as stable's may be."""
    ours, theirs = stable.perplexity, canary.perplexity
    if ours is None or theirs is None or theirs <= margin * ours:
        return []
    reason = Reason(
        metric="perplexity",
        test=LIMIT,
        worse=True,
        words=f"perplexity {theirs:.4g} against {ours:.4g} of another variant of the same version; "
        f"{margin:g} times as much is the limit",
        stable=ours,
        canary=theirs,
        margin=margin,
        stable_n=1,
        canary_n=1,
    )
    return [reason]


def _deaths(deaths: int) -> Reason | None:
    if deaths < DEATHS:
        return None
    return Reason(
        metric="deaths",
        test=LIMIT,
        worse=True,
        words=f"{deaths} of the canary's workers died by themselves; {DEATHS} are enough",
        canary=float(deaths),
        margin=float(DEATHS),
    )


def _first_errors(stable: Sample, canary: Sample) -> Reason | None:
    first = canary.first_errors
    if first.hits < FIRST_ERRORS or (stable.errors.share or 0.0) >= HEALTHY:
        return None
    return Reason(
        metric="error_rate",
        test=LIMIT,
        worse=True,
        words=f"{first.hits} errors in the canary's first {first.of} requests, where stable has "
        f"{_percent(stable.errors)}; {FIRST_ERRORS} in {FIRST_REQUESTS} are enough",
        stable=stable.errors.share,
        canary=first.share,
        margin=FIRST_ERRORS / FIRST_REQUESTS,
        stable_n=stable.errors.of,
        canary_n=first.of,
    )


def _below_floor(stable: Sample, canary: Sample, prompts: Golden) -> Reason | None:
    """Once the prompts that are still to be asked can't mend it."""
    total = len(prompts.prompts)
    asked = [prompt.id for prompt in prompts.prompts if prompt.id in canary.outcomes]
    right = Count(sum(canary.outcomes[name] is Outcome.RIGHT for name in asked), len(asked))
    if right.hits + total - right.of >= prompts.floor * total:
        return None
    return Reason(
        metric="golden",
        test=LIMIT,
        worse=True,
        words=f"golden prompts right {_percent(right)}, of {total} in all: the floor of "
        f"{100 * prompts.floor:g} % is out of reach",
        stable=stable.right.share,
        canary=right.share,
        margin=prompts.floor,
        stable_n=stable.right.of,
        canary_n=right.of,
    )


def _required(stable: Sample, canary: Sample, name: str, *, ending: bool) -> Reason | None:
    now, before = canary.outcomes.get(name), stable.outcomes.get(name)
    if now in (None, Outcome.RIGHT) or (now is Outcome.FAILED and not ending):
        return None
    if before is not Outcome.RIGHT and not (before is None and ending):
        return None
    stable_words = "stable gets it right" if before else "stable was not asked"
    return Reason(
        metric="golden",
        test=LIMIT,
        worse=True,
        words=f"the required golden prompt {name!r} is {now}; {stable_words}",
        stable=None if before is None else 1.0,
        canary=0.0,
        stable_n=int(before is not None),
        canary_n=1,
    )


# --- the shapes of comparisons


def _shares(
    metric: str, name: str, stable: Count, canary: Count, margin: float, alpha: float
) -> Reason:
    p = evidence.rate_is_higher(canary, stable, margin)
    return Reason(
        metric=metric,
        test="Farrington-Manning, exact",
        worse=p < alpha,
        words=f"{name} {_percent(canary)} against {_percent(stable)}: "
        f"Farrington-Manning (exact) {_said(p, alpha)}",
        stable=stable.share,
        canary=canary.share,
        margin=margin,
        stable_n=stable.of,
        canary_n=canary.of,
        p=p,
        alpha=alpha,
    )


def _times(
    metric: str, stable: Reservoir, canary: Reservoir, margins: Margins, alpha: float
) -> Reason:
    slower_is_more = metric == "ttft"
    name = "time to first token" if slower_is_more else "tokens per second"
    ours, theirs = stable.quantile(0.5), canary.quantile(0.5)
    least = min(len(stable.values), len(canary.values))
    if ours is None or theirs is None or least < LEAST_TIMES:
        return _not_compared(metric, name, f"{least} values on one side; {LEAST_TIMES} are needed")
    enough = True
    if slower_is_more:
        margin, shown = margins.ttft, f"{_seconds(theirs)} against {_seconds(ours)}"
        scaled = [value / margin for value in canary.values]
        p = evidence.values_are_larger(scaled, stable.values)
        enough = theirs - ours >= margins.ttft_seconds
    else:
        margin, shown = margins.speed, f"{theirs:.3g} against {ours:.3g}"
        scaled = [value / margin for value in canary.values]
        p = evidence.values_are_larger(stable.values, scaled)
    words = (
        f"{name} {shown} (medians of {canary.seen} and {stable.seen}): "
        f"Mann-Whitney {_said(p, alpha)}"
    )
    if p < alpha and not enough:
        words += f", but less than {_seconds(margins.ttft_seconds)} apart"
    return Reason(
        metric=metric,
        test="Mann-Whitney",
        worse=p < alpha and enough,
        words=words,
        stable=ours,
        canary=theirs,
        margin=margin,
        stable_n=stable.seen,
        canary_n=canary.seen,
        p=p,
        alpha=alpha,
    )


def _not_compared(metric: str, name: str, why: str) -> Reason:
    return Reason(metric, NOT_COMPARED, worse=False, words=f"{name} not compared: {why}")


# --- words


def _percent(count: Count) -> str:
    return "none" if count.share is None else f"{100 * count.share:.1f} % of {count.of}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1.0 else f"{1000 * value:.0f} ms"


def _said(p: float, alpha: float) -> str:
    said = f"p = {_small(p)}" if p >= _SMALLEST else f"p < {_small(_SMALLEST)}"
    return f"{said} < {_small(alpha)}" if p < alpha else said


def _small(probability: float) -> str:
    """Two digits that count, and no exponent."""
    digits = max(3, 1 - math.floor(math.log10(probability)))
    return f"{probability:.{digits}f}".rstrip("0")

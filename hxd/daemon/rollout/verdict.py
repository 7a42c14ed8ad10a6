"""Whether a canary goes on, becomes stable, or is rolled back; decided from two samples.

Acts on nothing and waits for nothing: whoever runs the canary calls `look` as often as it likes,
with the time that has passed, and does what the verdict says. Pure.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hxd.daemon.rollout import evidence, reasons
from hxd.daemon.rollout.golden import DEFAULT, Golden
from hxd.daemon.rollout.reasons import LEAST_TIMES, NOT_COMPARED, Margins, Reason
from hxd.daemon.rollout.sample import Sample

# How the probability of a false alarm is divided: most for what hurts most and is hardest to see.
# Times are many and tell soon.
PORTIONS = {
    "error_rate": 0.4,
    "golden": 0.3,
    "ttft": 0.1,
    "speed": 0.1,
    "empty": 0.05,
    "disliked": 0.05,
}
# Half of a portion is spent on the way, with the square of how much is known, which stops what is
# plainly broken. The other half is kept for the end, when most is known: of canaries that fail 10 %
# of 200 requests beside 1 %, that finds 96 in 100 and not 94.
EARLY = 0.5
# The probability that a promotion tells about.
POWER = 0.9


class Decision(enum.StrEnum):
    GO_ON = "go_on"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    INCONCLUSIVE = "inconclusive"  # the time is over, and too little is known to promote


@dataclass(frozen=True)
class Plan:
    """How a canary is tried. `share` of the traffic (0 to 1) for `seconds`, and until it had
    `at_least` requests, if that takes no more than `extension` times as long.

    `alpha` bounds the probability that a canary which is no worse than the margins is rolled back
    by chance, over all metrics and all of at most `looks` tests of each together. Rolling back by
    a limit that needs no statistics (`reasons.limits`) comes on top. `one_version`: the two are
    variants of it, so that their perplexity can be compared.
    """

    share: float
    seconds: float
    at_least: int = 0
    looks: int = 10
    alpha: float = 0.05
    extension: float = 3.0
    margins: Margins = field(default_factory=Margins)
    golden: Golden = DEFAULT
    one_version: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share {self.share:g} is not above 0 and up to 1")
        if not 0.0 < self.seconds < math.inf:
            raise ValueError(f"seconds {self.seconds:g} is no time")
        if self.at_least < 0 or self.looks < 1:
            raise ValueError("at_least is 0 or more, and looks 1 or more")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha {self.alpha:g} is no probability")
        if not 1.0 <= self.extension < math.inf:
            raise ValueError(f"extension {self.extension:g} is less than 1")


@dataclass(frozen=True)
class Verdict:
    """`reasons` has the latest comparison of every metric, the ones that decided first."""

    decision: Decision
    words: str
    reasons: tuple[Reason, ...]
    elapsed: float
    looks: int

    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "decision": self.decision.value,
            "words": self.words,
            "elapsed": self.elapsed,
            "looks": self.looks,
            "reasons": [reason.body() for reason in self.reasons],
        }


def _available(metric: str, known: float) -> float:
    """The part of alpha that a metric may have spent once so much (0 to 1) is known of it."""
    return PORTIONS[metric] * (1.0 if known >= 1.0 else EARLY * known * known)


class Judge:
    """One canary's. Once it has decided it stays with it.

    Limits are looked at every time. Tests cost: each time that a release is tested it has another
    chance to look bad by accident. So each metric has a portion of `Plan.alpha`, and a test may use
    what has become available of it since the last one. That is the spending of Lan and DeMets
    ("Discrete sequential boundaries for clinical trials", Biometrika 70, 1983) by a power of what
    is known (Kim and DeMets, "Design and analysis of group sequential tests based on the type I
    error spending rate function", Biometrika 74, 1987). The parts are simply added up (Bonferroni):
    that holds whatever the looks and metrics have to do with one another.

    The part that is available depends on the time and on the number of requests, or of golden
    prompts that both were asked; never on how these went. Golden prompts that were all asked at the
    start are tested once, with all of their portion. What is not spent for want of data is kept.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.looks = 0
        self._spent = dict.fromkeys(PORTIONS, 0.0)  # parts of alpha
        self._seen = dict.fromkeys(PORTIONS, 0.0)  # how much was known at the last test
        self._rows: dict[str, Reason] = {}
        self._verdict: Verdict | None = None

    def look(
        self, stable: Sample, canary: Sample, elapsed: float, deaths: int, unanswered: int = 0
    ) -> Verdict:
        """`elapsed` is in seconds since the canary took its first traffic; `deaths` are those of
        its workers that it is to blame for; `unanswered` are requests that it has now."""
        if self._verdict is not None:
            return self._verdict
        plan = self.plan
        asked = reasons.all_asked(canary, plan.golden)
        # Of one that has hardly answered anybody, those who wait for it say the most.
        awaited = unanswered if canary.requests < LEAST_TIMES else 0
        enough = elapsed >= plan.seconds and canary.requests >= plan.at_least and not awaited
        late = elapsed >= plan.extension * plan.seconds
        ending = late or (enough and asked)
        against = reasons.limits(stable, canary, plan.golden, deaths, ending=ending)
        if plan.one_version:
            against += reasons.perplexed(stable, canary, plan.margins.perplexity)
        if not against:
            against = self._test(stable, canary, elapsed, ending=ending)
        if against:
            words = "; ".join(reason.words for reason in against)
            return self._decided(Decision.ROLL_BACK, f"rolled back: {words}", elapsed, against)
        if enough and asked:
            words = f"promoted: nothing was worse by more than its margin in {self._times()}"
            words += f". {self._power(stable, canary)}"
            return self._decided(Decision.PROMOTE, words, elapsed)
        missing = self._missing(canary, elapsed, awaited, asked=asked)
        if late:
            words = f"inconclusive after {elapsed:.0f} s: {missing}"
            return self._decided(Decision.INCONCLUSIVE, words, elapsed)
        words = f"going on: nothing is worse so far, in {self._times()}; {missing}"
        return Verdict(Decision.GO_ON, words, tuple(self._rows.values()), elapsed, self.looks)

    def _decided(
        self, decision: Decision, words: str, elapsed: float, against: list[Reason] | None = None
    ) -> Verdict:
        first = against or []
        rest = [row for row in self._rows.values() if row not in first]
        self._verdict = Verdict(decision, words, (*first, *rest), elapsed, self.looks)
        return self._verdict

    def _test(
        self, stable: Sample, canary: Sample, elapsed: float, *, ending: bool
    ) -> list[Reason]:
        """The metrics that are worse, of those whose turn it is."""
        plan, margins = self.plan, self.plan.margins
        tests: dict[str, Callable[[float], Reason]] = {
            "error_rate": lambda a: reasons.error_rate(stable, canary, margins.error_rate, a),
            "golden": lambda a: reasons.golden(stable, canary, plan.golden, margins.golden, a),
            "ttft": lambda a: reasons.ttft(stable, canary, margins, a),
            "speed": lambda a: reasons.speed(stable, canary, margins, a),
            "empty": lambda a: reasons.empty(stable, canary, margins.empty, a),
            "disliked": lambda a: reasons.disliked(stable, canary, margins.disliked, a),
        }
        traffic = self._traffic(canary, elapsed)
        pairs = reasons.both_asked(stable, canary, plan.golden)
        # Of a model for embeddings there are none.
        prompts = max(1, len(plan.golden.prompts))
        against, tested = [], False
        for metric, test in tests.items():
            known = len(pairs) / prompts if metric == "golden" else traffic
            known = 1.0 if ending else known
            if known <= self._seen[metric]:
                continue
            if known < 1.0 and known - self._seen[metric] < 1.0 / plan.looks - 1e-9:
                continue
            part = _available(metric, known) - self._spent[metric]
            row = test(part * plan.alpha)
            if row.test != NOT_COMPARED:
                self._seen[metric], tested = known, True
                self._spent[metric] += part
            if row.test != NOT_COMPARED or metric not in self._rows:
                self._rows[metric] = row
            if row.worse:
                against.append(row)
        self.looks += tested
        return against

    def _traffic(self, canary: Sample, elapsed: float) -> float:
        """How much of what is to be known is known; the last part is kept for the end."""
        plan = self.plan
        known = min(elapsed / plan.seconds, 1.0 - 1.0 / plan.looks)
        if plan.at_least:
            known = min(known, canary.requests / plan.at_least)
        return max(0.0, known)

    def _times(self) -> str:
        return "1 look" if self.looks == 1 else f"{self.looks} looks"

    def _missing(self, canary: Sample, elapsed: float, awaited: int, *, asked: bool) -> str:
        plan = self.plan
        parts = []
        if awaited and elapsed >= plan.seconds:
            parts.append(f"{awaited} requests wait for it, and {canary.requests} have ended")
        if canary.requests < plan.at_least:
            parts.append(
                f"{canary.requests} of {plan.at_least} requests, at {100 * plan.share:g} % of the "
                "traffic"
            )
        if not asked:
            known = sum(prompt.id in canary.outcomes for prompt in plan.golden.prompts)
            parts.append(f"{known} of {len(plan.golden.prompts)} golden prompts")
        if elapsed < plan.seconds:
            parts.append(f"{elapsed:.0f} of {plan.seconds:.0f} s")
        return ", ".join(parts)

    def _power(self, stable: Sample, canary: Sample) -> str:
        """What would have been found, so that a promotion after few requests is not taken for more
        than it is. By the last look alone, so it is rather too modest."""
        row = self._rows.get("error_rate")
        if row is None or row.alpha is None:
            return "No error rate could be compared"
        if stable.requests < reasons.LEAST_STABLE:
            return f"Stable had only {stable.requests} requests to compare with"
        rate = evidence.detectable(
            canary.requests, stable.errors, self.plan.margins.error_rate, row.alpha, POWER
        )
        if rate is None:
            return f"No error rate would have been found with {100 * POWER:.0f} % probability"
        return (
            f"An error rate of {100 * rate:.1f} % or more would have been found with "
            f"{100 * POWER:.0f} % probability"
        )

"""What was seen of one release while it was tried: counts, and as many values as are needed.

One for stable and one for the canary, begun at the same moment. Bounded however long it goes on.
Judges nothing; who calls it has decided which requests belong to which release. Pure.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hxd.daemon.rollout.golden import MOST_PROMPTS, Outcome
from hxd.errors import Fault

# Values that are kept per metric. The share of slow ones among them is known to 1 point or so.
MOST_VALUES = 2000
# What a first glance is taken at, when there is too little for statistics.
FIRST_REQUESTS = 10


@dataclass(frozen=True)
class Count:
    """`hits` of `of`, in whatever is being counted."""

    hits: int
    of: int

    @property
    def share(self) -> float | None:
        return self.hits / self.of if self.of else None


class Reservoir:
    """A fair sample of a stream: each value is kept with the same probability.

    Algorithm R (Vitter, "Random sampling with a reservoir", ACM Transactions on Mathematical
    Software 11, 1985). Values that are no positive finite number are ignored.
    """

    def __init__(self, seed: int, most: int = MOST_VALUES) -> None:
        self.values: list[float] = []
        self.seen = 0
        self._most = most
        self._random = random.Random(seed)

    def add(self, value: float | None) -> None:
        if value is None or not 0.0 < value < math.inf:
            return
        self.seen += 1
        if len(self.values) < self._most:
            self.values.append(value)
        elif (place := self._random.randrange(self.seen)) < self._most:
            self.values[place] = value

    def quantile(self, share: float) -> float | None:
        """The value below which that share of the kept ones lies; None if there are none."""
        return quantile(self.values, share)


class Sample:
    """`ttft` is in seconds, `speed` in tokens per second."""

    def __init__(self, seed: int = 0) -> None:
        self.errors = Count(0, 0)
        self.first_errors = Count(0, 0)  # of the first `FIRST_REQUESTS`
        self.caller_faults = 0
        self.faults: dict[str, int] = {}
        self.empty = Count(0, 0)  # of the answers that ended well
        self.ttft = Reservoir(2 * seed)
        self.speed = Reservoir(2 * seed + 1)
        self.outcomes: dict[str, Outcome] = {}
        self.disliked = Count(0, 0)
        self.perplexity: float | None = None

    def request(
        self,
        ok: bool,
        fault: str | None = None,
        ttft_seconds: float | None = None,
        tokens_per_second: float | None = None,
        empty: bool | None = None,
    ) -> None:
        """The end of a request. `fault` is whose it was (`errors.Fault`) if it did not go well.
        `empty`: whether the answer was; None if that was not seen.

        What the caller did wrong counts for neither side, as in the breaker: a bad parameter says
        nothing about a version. Nor should a cancelled request be told as a failed one.
        """
        if not ok and fault == Fault.CALLER:
            self.caller_faults += 1
            return
        if not ok:
            known = fault if fault in list(Fault) else "unknown"
            self.faults[known] = self.faults.get(known, 0) + 1
        self.errors = _counted(self.errors, not ok)
        if self.first_errors.of < FIRST_REQUESTS:
            self.first_errors = _counted(self.first_errors, not ok)
        if ok and empty is not None:
            self.empty = _counted(self.empty, empty)
        self.ttft.add(ttft_seconds)
        self.speed.add(tokens_per_second)

    def golden(self, prompt: str, outcome: Outcome) -> None:
        """The outcome of the golden prompt with this id. The latest counts."""
        if prompt in self.outcomes or len(self.outcomes) < MOST_PROMPTS:
            self.outcomes[prompt] = outcome

    def feedback(self, good: bool) -> None:
        """What a client said of an answer."""
        self.disliked = _counted(self.disliked, not good)

    @property
    def requests(self) -> int:
        """Those that say something about the release."""
        return self.errors.of

    @property
    def right(self) -> Count:
        """Golden prompts that were answered rightly, of those that were asked."""
        hits = sum(outcome is Outcome.RIGHT for outcome in self.outcomes.values())
        return Count(hits, len(self.outcomes))


def compare(stable: Sample, canary: Sample) -> list[dict[str, Any]]:
    """Both side by side, for people who decide by themselves. No judgement.

    Each row has `metric`, `unit`, the two values and how many each is from (`stable_n`,
    `canary_n`), `difference` (canary less stable) and `ratio` (canary over stable); None for what
    is unknown. Shares are 0 to 1.
    """
    rows = [
        _row("requests", "", stable.requests, canary.requests, stable.requests, canary.requests),
        _share_row("error_rate", stable.errors, canary.errors),
        _share_row("empty_share", stable.empty, canary.empty),
        _row(
            "caller_faults",
            "",
            stable.caller_faults,
            canary.caller_faults,
            stable.caller_faults,
            canary.caller_faults,
        ),
    ]
    for name, unit, share, ours, theirs in (
        ("ttft_median", "seconds", 0.5, stable.ttft, canary.ttft),
        ("ttft_p95", "seconds", 0.95, stable.ttft, canary.ttft),
        ("speed_median", "tokens/s", 0.5, stable.speed, canary.speed),
        ("speed_p5", "tokens/s", 0.05, stable.speed, canary.speed),
    ):
        values = ours.quantile(share), theirs.quantile(share)
        rows.append(_row(name, unit, *values, ours.seen, theirs.seen))
    rows.append(_share_row("golden_share", stable.right, canary.right))
    rows.append(_share_row("disliked_share", stable.disliked, canary.disliked))
    measured = [sample.perplexity is not None for sample in (stable, canary)]
    rows.append(_row("perplexity", "", stable.perplexity, canary.perplexity, *measured))
    return rows


def quantile(values: Sequence[float], share: float) -> float | None:
    """By linear interpolation between the values beside it."""
    if len(values) < 2:
        return values[0] if values else None
    if share == 0.5:
        return statistics.median(values)
    ordered = sorted(values)
    below, part = divmod(share * (len(ordered) - 1), 1.0)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + part * (high - low)


def _counted(count: Count, hit: bool) -> Count:
    return Count(count.hits + hit, count.of + 1)


def _share_row(metric: str, stable: Count, canary: Count) -> dict[str, Any]:
    return _row(metric, "share", stable.share, canary.share, stable.of, canary.of)


def _row(
    metric: str,
    unit: str,
    stable: float | None,
    canary: float | None,
    stable_n: int,
    canary_n: int,
) -> dict[str, Any]:
    difference = ratio = None
    if stable is not None and canary is not None:
        difference = canary - stable
        ratio = canary / stable if stable else None
    return {
        "metric": metric,
        "unit": unit,
        "stable": stable,
        "canary": canary,
        "stable_n": int(stable_n),
        "canary_n": int(canary_n),
        "difference": difference,
        "ratio": ratio,
    }

"""The arithmetic of the tables: percentiles, medians and ratios. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really seen. NaN of nothing."""
    if not values:
        return math.nan
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def ratio(ours: float, theirs: float) -> float:
    """`ours` / `theirs`; NaN where there is no such number."""
    return ours / theirs if theirs else math.nan


def gaps(times: Sequence[float]) -> list[float]:
    """Differences between neighbours, in the unit of `times`."""
    return [after - before for before, after in itertools.pairwise(times)]

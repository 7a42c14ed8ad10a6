"""What is measured: the metrics by name, and one number of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Metric(Enum):
    """Name, unit, digits after the point, and whether more is better."""

    DECODE = "decode", "tokens/s", 1, True
    OVERALL = "with prompts", "tokens/s", 1, True
    FIRST = "first token, median", "ms", 0, False
    GAP = "gap, median", "ms", 1, False
    GAP_99 = "gap, p99", "ms", 1, False
    SECONDS = "time", "s", 2, False
    LONGEST = "longest gap", "ms", 0, False
    STEPS = "longest gap", "decode steps", 1, False
    CALL = "one call", "ms", 2, False
    TEXTS = "texts", "per s", 0, True
    CALL_99 = "one call, p99", "ms", 2, False
    CALLS = "calls", "per s", 0, True
    KEPT = "keep 20 tokens/s", "streams", 0, True
    RESIDENT = "resident memory", "MB", 0, False
    START = "start until ready", "s", 2, False
    BEFORE = "private memory before", "MB", 0, False
    AFTER = "private memory after", "MB", 0, False

    def __init__(self, title: str, unit: str, digits: int, more_is_better: bool) -> None:
        self.title = title
        self.unit = unit
        self.digits = digits
        self.more_is_better = more_is_better


@dataclass(frozen=True)
class Reading:
    """`case` names the row's situation, such as `8 clients`; `value` is in the metric's unit."""

    case: str
    metric: Metric
    value: float


class NotApplicable(Exception):
    """There is nothing to read off this server; the message says why."""

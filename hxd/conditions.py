"""What can be wrong with the box, from one declared table, and what of it an operator should see.

Pure. A condition whose cause is raised too is not shown: one root cause, one alarm.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Severity(enum.StrEnum):
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Declared:
    """`depends_on`: codes that explain this one for the same subject. `visible_after`: seconds that
    it must have lasted before it is shown."""

    code: str
    title: str
    severity: Severity
    depends_on: tuple[str, ...] = ()
    visible_after: float = 0.0


TABLE: dict[str, Declared] = {
    declared.code: declared
    for declared in (
        Declared("daemon-draining", "The daemon is shutting down", Severity.WARNING),
        Declared("model-refused", "A model's settings or file can't be used", Severity.CRITICAL),
        Declared(
            "model-unavailable", "No replica of a model can answer", Severity.CRITICAL,
            depends_on=("model-refused",),
        ),
        Declared(
            "replica-failed", "A replica is down", Severity.WARNING,
            depends_on=("model-unavailable",),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """`subject` is the model it is about, or "". `since` is in Unix seconds."""

    code: str
    subject: str
    detail: str
    since: float

    def body(self) -> dict[str, object]:
        declared = TABLE[self.code]
        return {
            "code": self.code,
            "severity": declared.severity.value,
            "title": declared.title,
            "subject": self.subject,
            "detail": self.detail,
            "since": self.since,
        }


def visible(
    raised: Iterable[Condition], now: float, table: Mapping[str, Declared] = TABLE
) -> list[Condition]:
    """Those to show at `now` (Unix seconds), most severe first."""
    raised = list(raised)
    present = {(condition.code, condition.subject) for condition in raised}
    shown = [
        condition
        for condition in raised
        if now - condition.since >= table[condition.code].visible_after
        and not any(
            (cause, condition.subject) in present for cause in table[condition.code].depends_on
        )
    ]
    return sorted(shown, key=lambda c: (table[c.code].severity is not Severity.CRITICAL, c.since))

"""What can be wrong with the box, from one declared table, and what of it an operator should see.

Pure. A condition whose cause is raised too is not shown: one root cause, one alarm.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


class Severity(enum.StrEnum):
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True)
class Declared:
    """`depends_on`: codes that explain this one when they are raised for the same subject, for the
    model that it belongs to, or for the box. `visible_after`: seconds that it must have lasted
    before it is shown."""

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
            depends_on=("model-refused", "daemon-draining", "replica-crash-loop"),
        ),
        Declared(
            "replica-crash-loop", "A replica dies again and again", Severity.CRITICAL,
            depends_on=("replica-crash-loop",),
        ),
        Declared(
            "replica-failed", "A replica is down", Severity.WARNING,
            depends_on=("model-unavailable", "replica-crash-loop"),
        ),
        Declared(
            "replica-suspect", "A replica's heartbeat is late", Severity.WARNING,
            depends_on=("model-unavailable",), visible_after=1.0,
        ),
        Declared(
            "model-limping", "Only replicas are left that keep failing requests",
            Severity.CRITICAL, depends_on=("model-unavailable",),
        ),
        Declared(
            "breaker-open", "A replica is isolated because it fails requests", Severity.WARNING,
            depends_on=(
                "model-unavailable", "model-limping", "replica-crash-loop", "replica-failed",
            ),
        ),
        Declared(
            "replica-drifting", "A replica gets slower or larger and should be replaced",
            Severity.WARNING, depends_on=("model-unavailable", "replica-crash-loop"),
        ),
        Declared(
            "replica-unhealthy", "A replica takes less traffic because of its health",
            Severity.WARNING, visible_after=5.0,
            depends_on=(
                "model-unavailable", "model-limping", "breaker-open", "replica-drifting",
                "replica-failed", "replica-crash-loop", "replica-suspect",
            ),
        ),
        Declared(
            "model-single", "A model has one replica left of several", Severity.WARNING,
            depends_on=(
                "model-unavailable", "replica-crash-loop", "replica-failed", "model-refused",
            ),
            visible_after=5.0,
        ),
        Declared(
            "model-on-other-version", "A model is served by another version than it should be",
            Severity.WARNING, depends_on=("model-refused",),
        ),
        Declared(
            "version-taken-back", "A new version of a model has failed and was taken back",
            Severity.WARNING,
        ),
        Declared(
            "choice-not-recorded", "What was swapped into service is not on the disk",
            Severity.WARNING,
        ),
        Declared(
            "model-file-changed", "A model's file was changed while workers had it loaded",
            Severity.CRITICAL,
        ),
        Declared(
            "plugin-changed", "A plugin in use would not be let in again: no new worker starts",
            Severity.WARNING,
        ),
        Declared(
            "requests-blocked", "Requests that broke two workers are refused", Severity.WARNING,
        ),
        Declared(
            "route-on-fallback", "A route is answered by a model that is not its first",
            Severity.WARNING,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """`subject` is the model, route or replica it is about, or "" for the box; `within` is the
    model of a replica. `since` is in Unix seconds."""

    code: str
    subject: str
    detail: str
    since: float
    within: str = ""

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


class Alarms:
    """Since when each condition has been raised without a break."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def dated(self, raised: Iterable[Condition], now: float) -> list[Condition]:
        """Each with the time of its first raising, in Unix seconds; call it with all that there
        are."""
        found = {}
        dated = []
        for condition in raised:
            key = condition.code, condition.subject
            since = self._since.get(key, min(condition.since, now))
            found[key] = since
            dated.append(replace(condition, since=since))
        self._since = found
        return dated


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
            (cause, where) in present and (cause, where) != (condition.code, condition.subject)
            for cause in table[condition.code].depends_on
            for where in (condition.subject, condition.within, "")
        )
    ]
    return sorted(shown, key=lambda c: (table[c.code].severity is not Severity.CRITICAL, c.since))

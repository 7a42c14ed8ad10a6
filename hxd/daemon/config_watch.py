"""Whether the box is worse off after a change of its configuration. Judges conditions alone; knows
nothing of what was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hxd.clock import Clock
from hxd.conditions import TABLE, Condition, Severity

LOOK_EVERY = 0.5  # seconds
# A warning that is younger when the time is over may be the last of the change itself: a replica
# that takes its traffic little by little, a heartbeat that came late. Nobody can tell yet.
STEADY = 5.0


async def watch(
    seconds: float,
    before: Iterable[Condition],
    conditions: Callable[[], list[Condition]],
    clock: Clock,
) -> Condition | None:
    """What got worse within `seconds`, or None once they are over: a critical condition that was
    not there before at once, a warning when it is there at the end and has been for a while."""
    known = {_about(condition) for condition in before}
    until = clock.now() + seconds
    while seconds > 0:
        left = until - clock.now()
        new = [condition for condition in conditions() if _about(condition) not in known]
        age = 0.0 if left > 0 else min(STEADY, seconds / 2)
        if found := worst(new, clock.wall(), age if left <= 0 else None):
            return found
        if left <= 0:
            return None
        await clock.sleep(min(LOOK_EVERY, left))
    return None


def worst(new: Iterable[Condition], now: float, age: float | None) -> Condition | None:
    """The one to go back for: a critical one; or, unless `age` is None, a warning that has been
    raised for `age` seconds at `now` (Unix seconds)."""
    found = list(new)
    for condition in found:
        if TABLE[condition.code].severity is Severity.CRITICAL:
            return condition
    if age is None:
        return None
    return next((condition for condition in found if now - condition.since >= age), None)


def _about(condition: Condition) -> tuple[str, str]:
    """Replicas come and go under new names; their model stays."""
    return condition.code, condition.within or condition.subject

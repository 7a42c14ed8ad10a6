"""The life of a rollout as a table. Nothing else lives here."""

from __future__ import annotations

import enum


class Phase(enum.StrEnum):
    PREPARING = "preparing"  # what is asked for is looked up, and whether there is room for it
    YIELDING = "yielding"  # no room: the old release finishes what it has, arrivals wait
    LOADING = "loading"  # the first worker of the new release comes up
    VALIDATING = "validating"  # golden prompts are asked
    TRIAL = "trial"  # a share of the clients gets the new release
    PROMOTING = "promoting"  # the rest of its workers come up, then all new requests go to it
    DONE = "done"  # it is in service; the old one stays warm for a while
    ROLLING_BACK = "rolling_back"  # new requests go to the old release again
    ROLLED_BACK = "rolled_back"


class Step(enum.StrEnum):
    ROOM = "room"
    NO_ROOM = "no_room"
    YIELDED = "yielded"
    LOADED = "loaded"
    TRY = "try"
    VALID = "valid"
    WARM = "warm"
    WON = "won"
    SHIFTED = "shifted"
    FAILED = "failed"
    BACK = "back"


_P, _S = Phase, Step

TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (_P.PREPARING, _S.ROOM): _P.LOADING,
    (_P.PREPARING, _S.NO_ROOM): _P.YIELDING,
    (_P.PREPARING, _S.WARM): _P.PROMOTING,
    (_P.YIELDING, _S.YIELDED): _P.LOADING,
    (_P.LOADING, _S.LOADED): _P.VALIDATING,
    (_P.VALIDATING, _S.TRY): _P.TRIAL,
    (_P.VALIDATING, _S.VALID): _P.PROMOTING,
    (_P.TRIAL, _S.WON): _P.PROMOTING,
    (_P.PROMOTING, _S.SHIFTED): _P.DONE,
    (_P.PREPARING, _S.FAILED): _P.ROLLED_BACK,
    (_P.YIELDING, _S.FAILED): _P.ROLLING_BACK,
    (_P.LOADING, _S.FAILED): _P.ROLLING_BACK,
    (_P.VALIDATING, _S.FAILED): _P.ROLLING_BACK,
    (_P.TRIAL, _S.FAILED): _P.ROLLING_BACK,
    (_P.PROMOTING, _S.FAILED): _P.ROLLING_BACK,
    (_P.ROLLING_BACK, _S.BACK): _P.ROLLED_BACK,
}

OVER = frozenset({_P.DONE, _P.ROLLED_BACK})


class IllegalStep(Exception):
    pass


def after(phase: Phase, step: Step) -> Phase:
    """The next phase; raises `IllegalStep` naming what was legal."""
    try:
        return TRANSITIONS[phase, step]
    except KeyError:
        legal = sorted(s.value for p, s in TRANSITIONS if p is phase)
        raise IllegalStep(
            f"{step.value!r} in phase {phase.value!r}; legal: {', '.join(legal) or 'nothing'}"
        ) from None

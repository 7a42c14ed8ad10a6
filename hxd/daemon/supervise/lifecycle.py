"""The life of a replica as a table. Nothing else lives here; the supervisor is the only writer."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    STARTING = "starting"  # process spawned, or its file being made; no frame from it yet
    LOADING = "loading"  # plugin imported, model loading
    WARMING = "warming"  # model loaded, first token not yet seen
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    STOPPED = "stopped"  # not started yet, or ended on purpose
    FAILED = "failed"  # dead or given up; a restart may come


class Event(enum.StrEnum):
    START = "start"
    HELLO = "hello"
    LOADED = "loaded"
    WARMED = "warmed"
    DRAIN = "drain"
    EMPTY = "empty"
    DIED = "died"
    RESTART = "restart"


_S, _E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.STOPPED, _E.START): _S.STARTING,
    (_S.STARTING, _E.HELLO): _S.LOADING,
    (_S.LOADING, _E.LOADED): _S.WARMING,
    (_S.WARMING, _E.WARMED): _S.READY,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.EMPTY): _S.STOPPED,
    (_S.STARTING, _E.DRAIN): _S.STOPPED,
    (_S.LOADING, _E.DRAIN): _S.STOPPED,
    (_S.WARMING, _E.DRAIN): _S.STOPPED,
    (_S.FAILED, _E.DRAIN): _S.STOPPED,
    (_S.STARTING, _E.DIED): _S.FAILED,
    (_S.LOADING, _E.DIED): _S.FAILED,
    (_S.WARMING, _E.DIED): _S.FAILED,
    (_S.READY, _E.DIED): _S.FAILED,
    (_S.DRAINING, _E.DIED): _S.STOPPED,
    (_S.FAILED, _E.RESTART): _S.STARTING,
}

ALIVE = frozenset({_S.STARTING, _S.LOADING, _S.WARMING, _S.READY, _S.DRAINING})
COMING = frozenset({_S.STARTING, _S.LOADING, _S.WARMING})


class IllegalTransition(Exception):
    pass


def after(state: State, event: Event) -> State:
    """The next state; raises `IllegalTransition` naming what was legal."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        legal = sorted(e.value for s, e in TRANSITIONS if s is state)
        raise IllegalTransition(
            f"{event.value!r} in state {state.value!r}; legal: {', '.join(legal) or 'nothing'}"
        ) from None

"""What follows from a transition: a table, and nothing else."""

from __future__ import annotations

import enum

from hxd.daemon.supervise.lifecycle import Event, State


class Order(enum.Enum):
    """One thing that is to be done."""

    SPAWN = enum.auto()
    LOAD = enum.auto()
    WARM = enum.auto()
    WATCH = enum.auto()
    DRAIN = enum.auto()
    END = enum.auto()
    KILL = enum.auto()
    SCHEDULE_RESTART = enum.auto()


_BY_EVENT: dict[Event, tuple[Order, ...]] = {
    Event.START: (Order.SPAWN,),
    Event.HELLO: (Order.LOAD,),
    Event.LOADED: (Order.WARM,),
    Event.WARMED: (Order.WATCH,),
    Event.RESTART: (Order.SPAWN,),
    Event.EMPTY: (Order.END,),
}


def decide(event: Event, new: State) -> tuple[Order, ...]:
    """Orders that follow from `event`, which led to `new`."""
    if event is Event.DIED:
        return (Order.KILL, Order.SCHEDULE_RESTART) if new is State.FAILED else (Order.KILL,)
    if event is Event.DRAIN:
        return (Order.DRAIN,) if new is State.DRAINING else (Order.END,)
    return _BY_EVENT[event]

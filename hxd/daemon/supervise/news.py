"""What the supervisor is told: plain data, each about one generation of a replica."""

from __future__ import annotations

from dataclasses import dataclass

from hxd import wire
from hxd.daemon.supervise.lifecycle import Event, State
from hxd.daemon.supervise.replica import Replica


@dataclass(frozen=True)
class Message:
    """Something that happened to one generation of a replica. A time-out counts only `while_in` the
    state that it limits. `outside`: a death that nothing in the worker was the cause of; `barred`:
    it may not start, since what it would load or run is not what it should be."""

    replica: Replica
    generation: int
    event: Event
    detail: str = ""
    loaded: wire.Loaded | None = None
    while_in: State | None = None
    outside: bool = False
    barred: bool = False


@dataclass(frozen=True)
class Doubt:
    """The heartbeat of one generation of a replica is late, or has come back."""

    replica: Replica
    generation: int
    suspect: bool


@dataclass(frozen=True)
class Renew:
    """A replica should be replaced, the new one first, because of `why`. `urgent`: else it dies."""

    replica: Replica
    generation: int
    why: str
    urgent: bool = False


News = Message | Doubt | Renew

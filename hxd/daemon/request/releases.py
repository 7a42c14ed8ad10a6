"""Everything that has workers: a line and a roster for each release, made and unmade while the
daemon serves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hxd.clock import Clock
from hxd.daemon.request.admit import Gate
from hxd.daemon.request.deployment import Served
from hxd.daemon.request.roster import Roster
from hxd.daemon.request.tokenize import AT_ONCE
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor


class Releases:
    """`busy` and `pressed` as `Gate` has them. `changed` is for the supervisor's listeners."""

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        rng: random.Random,
        busy: Callable[[Replica, bool], None],
        pressed: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._random = rng
        self._busy = busy
        self._pressed = pressed
        self.rosters: dict[str, Roster] = {}
        self._served: dict[str, Served] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def of(self, replica: Replica) -> Served | None:
        return self._served.get(replica.source.key)

    def is_open(self, served: Served) -> bool:
        return self._served.get(served.source.key) is served

    def open(self, source: Source) -> Served:
        """A line for what the supervisor has, or is about to get, under this key."""
        roster = Roster(source, self._supervisor, self._clock, self._random)
        settings = source.settings
        gate = Gate(
            roster,
            settings.replicas,
            source.at_once,
            settings.queue,
            self._supervisor,
            self._busy,
            self._pressed,
        )
        tokenizing = Gate(roster, settings.replicas, AT_ONCE, settings.queue, self._supervisor)
        self.rosters[source.key] = roster
        served = self._served[source.key] = Served(source, gate, tokenizing)
        return served

    def arrange(self, served: Served, source: Source) -> None:
        """Settings that need no other worker, on what is in service; `source` has its key."""
        served.source = source
        settings = source.settings
        served.gate.roster.arrange(source)
        for gate in (served.gate, served.tokenizing):
            if gate is not None:
                gate.resize(settings.replicas, settings.queue)
                gate.advance()

    def close(self, served: Served) -> None:
        """Its workers are gone."""
        if self.is_open(served):
            del self._served[served.source.key], self.rosters[served.source.key]

    def stranded(self, key: str) -> bool:
        """Whether a sequence of the release has lost its worker and waits for another."""
        served = self._served.get(key)
        return served is not None and served.gate.stranded > 0

    def changed(self, replica: Replica, old: State, new: State) -> None:
        served = self.of(replica)
        if served is None:
            return
        served.gate.roster.changed(replica, old, new)
        served.gate.advance()
        if served.tokenizing is not None:
            served.tokenizing.advance()

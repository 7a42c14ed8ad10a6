"""Tries half-open replicas with a token each while too few requests come by: 1 % of little is
nothing, and a replica that nobody tries would never take traffic again."""

from __future__ import annotations

from collections.abc import Mapping

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.request.roster import Grant, Roster
from hxd.daemon.supervise.link import Heard, Loss, Lost
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.daemon.supervise.workers import first_request

INTERVAL = 1.0


class Prober:
    """`run` never ends by itself."""

    def __init__(self, rosters: Mapping[str, Roster], supervisor: Supervisor, clock: Clock) -> None:
        self._rosters = rosters
        self._supervisor = supervisor
        self._clock = clock

    async def run(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            for key, roster in list(self._rosters.items()):
                for replica in self._supervisor.ready(key):
                    self._try(replica, roster)

    def _try(self, replica: Replica, roster: Roster) -> None:
        if replica.worker is None or (grant := roster.probe(replica)) is None:
            return
        can = replica.loaded.capabilities if replica.loaded is not None else []

        def answered(heard: Heard) -> None:
            match heard:
                case wire.Done():
                    self._judge(grant)
                case wire.Failed() | Lost(loss=Loss.CRASHED | Loss.KILLED | Loss.STALLED):
                    grant.failed()

        replica.worker.link.call(first_request(can), answered)

    def _judge(self, grant: Grant) -> None:
        """A relay's worker answers by itself, for a provider would bill for a probe; what it says
        of its server counts."""
        if grant.replica.gauges.get("remote_up", 1.0) == 0.0:
            grant.failed()
        else:
            grant.succeeded()

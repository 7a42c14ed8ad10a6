"""Says in the log what has gone wrong and what is well again: one line for each condition that
comes or goes and for each breaker that changes its state, for whoever has no dashboard."""

from __future__ import annotations

import logging

from hxd.clock import Clock
from hxd.conditions import Condition
from hxd.daemon.admin.status import Status
from hxd.daemon.request.breaker import State as BreakerState

log = logging.getLogger("hxd.conditions")

INTERVAL = 1.0


class Herald:
    """`run` never ends by itself. Since it looks all the time, conditions are as old as they say,
    whoever else asks for them."""

    def __init__(self, status: Status, clock: Clock) -> None:
        self._status = status
        self._clock = clock
        self._told: dict[tuple[str, str], Condition] = {}
        self._breakers: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            self.tell()

    def tell(self) -> None:
        now = {(found.code, found.subject): found for found in self._status.conditions()}
        for key, found in now.items():
            if key not in self._told:
                log.warning(
                    "condition=%s subject=%s raised detail=%r",
                    found.code,
                    found.subject,
                    found.detail,
                )
        for code, subject in self._told.keys() - now.keys():
            log.info("condition=%s subject=%s cleared", code, subject)
        self._told = now
        self._tell_breakers()

    def _tell_breakers(self) -> None:
        states = dict(self._status.breakers())
        for id, (state, cause) in states.items():
            former = self._breakers.get(id, BreakerState.CLOSED.value)
            if state != former:
                log.warning(
                    "breaker replica=%s from=%s to=%s cause=%s", id, former, state, cause or "-"
                )
        self._breakers = {id: state for id, (state, _) in states.items()}

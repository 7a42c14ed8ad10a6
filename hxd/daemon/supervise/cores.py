"""Divides the box's cores among the workers that work, and leaves some to whoever else needs them.

A worker uses every core by itself, which is right while all the others are idle. Two that do so at
once are not half as fast but a tenth: their threads wait for one another at every step, and each
waits for one that another process has pushed off its core. So all are told how many they are,
whenever that changes; and one whose threads wait for cores that something else has is told that it
is one of twice as many, for a while.
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.supervise.replica import Replica

# Seconds that a worker must have been idle before the others get its cores: between two requests
# of one client it is not worth it.
IDLE = 0.1
# Seconds until a worker that was short of cores tries more of them, doubled each time that it was
# too early.
TRY_AGAIN = 10.0
LONGEST = 300.0


@dataclass
class Shortage:
    """How often a worker's part was halved, when it may be doubled again and when that was last
    done, and when it was last short."""

    halvings: int = 0
    until: float = 0.0
    pause: float = TRY_AGAIN
    tried: float = -math.inf
    wanted: float = -math.inf


class Cores:
    """Counts replicas that compute here; one that hands requests on to another server does not."""

    def __init__(self, clock: Clock, total: int | None = None) -> None:
        self._clock = clock
        self._total = total or len(os.sched_getaffinity(0))
        self._busy: dict[str, Replica] = {}
        # By replica, and the process that it was told to.
        self._told: dict[str, tuple[int, int]] = {}
        self._short: dict[str, Shortage] = {}
        self._idle: set[str] = set()
        self._due: asyncio.TimerHandle | None = None

    def busy(self, replica: Replica, busy: bool) -> None:
        """The first request came to `replica`, or its last one went."""
        if replica.source.file is None:
            return
        if busy:
            self._idle.discard(replica.id)
            if replica.id not in self._busy:
                self._busy[replica.id] = replica
                self._tell()
            else:
                self._tell_one(replica)
        elif replica.id in self._busy:
            self._idle.add(replica.id)
            if self._due is None:
                self._due = asyncio.get_running_loop().call_later(IDLE, self._settle)

    def measured(self, replica: Replica, *, starved: bool) -> None:
        """Several times a second: whether the threads of a worker had to wait for cores."""
        now = self._clock.now()
        short = self._short.get(replica.id)
        if starved and replica.id in self._busy:
            short = self._short.setdefault(replica.id, Shortage())
            if now - short.tried < TRY_AGAIN:
                short.pause, short.tried = min(LONGEST, 2 * short.pause), -math.inf
            if self._among(replica) < self._total:
                short.halvings += 1
            short.until, short.wanted = now + short.pause, now
        elif short is not None and (now >= short.until or not short.halvings):
            if not short.halvings:
                if now - short.wanted > LONGEST:
                    del self._short[replica.id]
                return
            short.halvings -= 1
            short.tried, short.until = now, now + short.pause
        else:
            return
        self._tell_one(replica)

    def forget(self, replica: Replica) -> None:
        """It has ended for good."""
        for kept in (self._busy, self._told, self._short):
            kept.pop(replica.id, None)
        self._idle.discard(replica.id)

    def _settle(self) -> None:
        self._due = None
        for id in self._idle:
            self._busy.pop(id, None)
        self._idle.clear()
        self._tell()

    def _tell(self) -> None:
        for replica in self._busy.values():
            self._tell_one(replica)

    def _among(self, replica: Replica) -> int:
        short = self._short.get(replica.id)
        doubled = 1 << (short.halvings if short is not None else 0)
        return min(self._total, max(1, len(self._busy)) * doubled)

    def _tell_one(self, replica: Replica) -> None:
        worker = replica.worker
        if worker is None or worker.link.closed:
            return
        among = self._among(replica)
        # A new process begins as the only one.
        pid, told = self._told.get(replica.id, (worker.pid, 1))
        if pid != worker.pid:
            told = 1
        if told != among:
            worker.link.send(wire.Share(among))
        self._told[replica.id] = worker.pid, among

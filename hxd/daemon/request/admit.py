"""Lets sequences of one model in, as many as there are slots; the others wait in line, bounded.

A grant is a `Lease` on one slot of one replica. The line is first come, first served; what has lost
its worker goes before it. A place is given up when the caller is cancelled, when it has waited too
long, or at once when no replica is left that could come up.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hxd.daemon.request.failover import RetryBudget
from hxd.daemon.request.roster import Grant, Roster
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError, QueueFull, Unavailable


@dataclass
class Lease:
    """One slot of a replica; `release` gives it back, and may be called again. `alone`: nothing
    else is let in there until `open_up`, or the release."""

    grant: Grant
    _release: Callable[[Lease], None]
    alone: bool = False
    _held: bool = True

    @property
    def replica(self) -> Replica:
        return self.grant.replica

    def release(self) -> None:
        if self._held:
            self._held = False
            self.grant.settle()
            self._release(self)


@dataclass
class Place:
    """A place in the line. `avoid`: the replica that has just failed this one."""

    granted: asyncio.Future[Lease]
    avoid: str | None = None
    alone: bool = False


class Gate:
    """Admission to one release of a model. `budget` bounds how many of its requests are being tried
    again; `busy` is told when a replica gets its first request or has lost its last, `pressed` when
    a sequence that lost its worker finds no other."""

    def __init__(
        self,
        roster: Roster,
        replicas: int,
        at_once: int,
        queue: int,
        supervisor: Supervisor,
        busy: Callable[[Replica, bool], None] = lambda replica, busy: None,
        pressed: Callable[[str], None] = lambda model: None,
    ):
        self._tell_busy = busy
        self._tell_pressed = pressed
        self.roster = roster
        self._model = roster.model
        self._key = roster.key
        self._slots = at_once
        self.resize(replicas, queue)
        self._supervisor = supervisor
        self._busy: Counter[str] = Counter()
        self._line: deque[Place] = deque()
        self._moved: deque[Place] = deque()
        self._solitary: set[str] = set()
        self._guests = 0
        self.budget = RetryBudget(lambda: self.running)

    def resize(self, replicas: int, queue: int) -> None:
        """As the settings say now; who is in line already stays there."""
        self._capacity = replicas * self._slots
        self._queue = queue

    @property
    def waiting(self) -> int:
        return len(self._line) + len(self._moved)

    @property
    def stranded(self) -> int:
        """Sequences that have lost their worker and wait for another."""
        return len(self._moved)

    @property
    def running(self) -> int:
        return self._busy.total()

    def running_on(self, replica: Replica) -> int:
        return self._busy[replica.id]

    def able(self) -> bool:
        """Whether a request would be taken as usual, now or when its turn comes."""
        return self.roster.able()

    @property
    def hopeless(self) -> bool:
        """Whether waiting is of no use."""
        return self._hopeless() is not None

    def enter(self, count: int, *, guest: bool = False) -> list[Place]:
        """Places for `count` new sequences, all or none; `abandon` gives them up.

        `guest`: hxd asks for itself, until `leave`; no client is sent away for it.

        Raises `QueueFull`, `Unavailable`, or `CallerError` for a count that can never fit.
        """
        self._raise_if_hopeless()
        if count > self._capacity + self._queue:
            raise CallerError(
                f"n asks for {count} sequences at once; this model runs {self._capacity} and "
                f"queues {self._queue}",
                param="n",
            )
        free = self._free() if not self.waiting else 0
        places_left = free + self._queue - len(self._line)
        if count > places_left + (0 if guest else self._guests):
            raise QueueFull(
                f"all {self._capacity} slots of {self._model!r} are busy and {len(self._line)} "
                f"of {self._queue} places in its queue are taken; try again",
                retry_after=1.0,
            )
        self._guests += count if guest else 0
        places = [self._place() for _ in range(count)]
        for _ in places:
            self.roster.demanded()
        self._line.extend(places)
        self.advance()
        return places

    def leave(self, count: int) -> None:
        """So many guests are gone."""
        self._guests -= count

    def reenter(self, *, avoid: str | None = None, alone: bool = False) -> Place:
        """A place before all others, for a sequence that was let in already and lost its worker.

        `alone`: it may be what ended the worker; it gets one that runs nothing else, and never the
        last one that lives. Raises `Unavailable` when there is no hope.
        """
        self._raise_if_hopeless()
        place = self._place(avoid, alone)
        self._moved.append(place)
        self.advance()
        if self._moved:
            self._tell_pressed(self._key)
        return place

    def _place(self, avoid: str | None = None, alone: bool = False) -> Place:
        return Place(asyncio.get_running_loop().create_future(), avoid, alone)

    def advance(self) -> None:
        """Serve the line as far as slots allow; call it whenever a slot or a replica changes."""
        if not self._line and not self._moved:
            return
        for place in [place for place in self._moved if self._serve(place)]:
            self._moved.remove(place)
        while self._line and self._serve(self._line[0]):
            self._line.popleft()
        if self.waiting and (error := self._hopeless()):
            for line in (self._moved, self._line):
                places = list(line)
                line.clear()
                for place in places:
                    if not place.granted.done():
                        place.granted.set_exception(error)

    def _serve(self, place: Place) -> bool:
        """Whether the place is done with."""
        if place.granted.done():
            return True
        barred = self._solitary | self._reserved(place)
        if place.alone:
            ready = self._supervisor.ready(self._key)
            if len(ready) < 2:
                return False
            # Not even one that was alone itself: it may do its harm later.
            barred |= {replica.id for replica in ready if self._busy[replica.id]}
        grant = self.roster.choose(self._busy, self._slots, barred=barred, avoid=place.avoid)
        if grant is None:
            return False
        self._busy[grant.replica.id] += 1
        if self._busy[grant.replica.id] == 1:
            self._tell_busy(grant.replica, True)
        if place.alone:
            self._solitary.add(grant.replica.id)
        place.granted.set_result(Lease(grant, self._release, place.alone))
        return True

    def _reserved(self, place: Place) -> set[str]:
        """While a sequence waits for a worker of its own, the least busy one takes nobody else, so
        that it gets one even when there is always somebody in line."""
        if place.alone or not any(p.alone and not p.granted.done() for p in self._moved):
            return set()
        ready = self._supervisor.ready(self._key)
        if len(ready) < 2 or self._solitary:
            return set()
        return {min(ready, key=lambda replica: self._busy[replica.id]).id}

    async def wait(self, place: Place, seconds: float) -> Lease:
        """The lease, once granted; raises `Unavailable` when that takes over `seconds`. Whatever it
        raises, the place is given up."""
        granted = place.granted
        if granted.done() and not granted.cancelled():
            return granted.result()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancel that meets the grant.
            async with asyncio.timeout(seconds):
                return await granted
        except BaseException as error:
            # A cancel, the time-out's too, may meet the grant: nobody else would release it.
            self.abandon([place])
            if not isinstance(error, TimeoutError):
                raise
            raise Unavailable(
                f"no slot of {self._model!r} became free within {seconds:g} s",
                code="queue_timeout",
                retry_after=self._supervisor.next_restart(self._key),
            ) from None

    def abandon(self, places: Sequence[Place]) -> None:
        """Give up places and leases that nobody will use."""
        for place in places:
            granted = place.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                granted.result().release()
            else:
                granted.cancel()
                self._drop(place)

    def _drop(self, place: Place) -> None:
        if place.granted.cancelled():
            for line in (self._line, self._moved):
                if place in line:
                    line.remove(place)
            if place.alone:
                # What was kept free for it is free for others.
                self.advance()

    def open_up(self, lease: Lease) -> None:
        """The sequence has shown that it does no harm: others may join it."""
        if lease.alone:
            lease.alone = False
            self._solitary.discard(lease.replica.id)
            self.advance()

    def _release(self, lease: Lease) -> None:
        id = lease.replica.id
        self._busy[id] -= 1
        if not self._busy[id]:
            del self._busy[id]
            self._tell_busy(lease.replica, False)
        if lease.alone:
            self._solitary.discard(id)
        self.advance()

    def _free(self) -> int:
        ready = self._supervisor.ready(self._key)
        return sum(self._slots - self._busy[replica.id] for replica in ready)

    def _raise_if_hopeless(self) -> None:
        if error := self._hopeless():
            raise error

    def _hopeless(self) -> Unavailable | None:
        supervisor = self._supervisor
        if supervisor.ready(self._key) or supervisor.coming(self._key):
            return None
        why = "; ".join(supervisor.problems(self._key)) or "it is stopped"
        return Unavailable(
            f"the model {self._model!r} can't answer now: {why}",
            code="model_unavailable",
            retry_after=supervisor.next_restart(self._key),
        )

"""Lets sequences of one model in, as many as there are slots; the others wait in line, bounded.

A grant is a `Lease` on one slot of one replica. The line is first come, first served. A place in
it is given up when the caller is cancelled, when it has waited too long, or at once when no replica
is left that could come up.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from hxd.daemon.request.choose import pack
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError, QueueFull, Unavailable


@dataclass
class Lease:
    """One slot of `replica`; `release` gives it back, and may be called again."""

    replica: Replica
    _release: Callable[[Replica], None]
    _held: bool = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._release(self.replica)


class Gate:
    """Admission to one model."""

    def __init__(self, model: str, replicas: int, slots: int, queue: int, supervisor: Supervisor):
        self._model = model
        self._capacity = replicas * slots
        self._slots = slots
        self._queue = queue
        self._supervisor = supervisor
        self._busy: Counter[str] = Counter()
        self._line: deque[asyncio.Future[Lease]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def running(self) -> int:
        return self._busy.total()

    def running_on(self, replica: Replica) -> int:
        return self._busy[replica.id]

    def enter(self, count: int) -> list[asyncio.Future[Lease]]:
        """Places for `count` sequences, all or none; cancel a future to give its place up.

        Raises `QueueFull`, `Unavailable`, or `CallerError` for a count that can never fit.
        """
        self._raise_if_hopeless()
        if count > self._capacity + self._queue:
            raise CallerError(
                f"n asks for {count} sequences at once; this model runs {self._capacity} and "
                f"queues {self._queue}",
                param="n",
            )
        free = self._free() if not self._line else 0
        if count > free + self._queue - len(self._line):
            raise QueueFull(
                f"all {self._capacity} slots of {self._model!r} are busy and {len(self._line)} "
                f"of {self._queue} places in its queue are taken; try again",
                retry_after=1.0,
            )
        loop = asyncio.get_running_loop()
        places = [loop.create_future() for _ in range(count)]
        self._line.extend(places)
        self.advance()
        return places

    def advance(self) -> None:
        """Serve the line as far as slots allow; call it whenever a slot or a replica changes."""
        while self._line:
            place = self._line[0]
            if place.done():
                self._line.popleft()
                continue
            replica = pack(self._supervisor.ready(self._model), self._busy, self._slots)
            if replica is None:
                break
            self._line.popleft()
            self._busy[replica.id] += 1
            place.set_result(Lease(replica, self._release))
        if self._line and (error := self._hopeless()):
            line, self._line = self._line, deque()
            for place in line:
                if not place.done():
                    place.set_exception(error)

    async def wait(self, place: asyncio.Future[Lease], seconds: float) -> Lease:
        """The lease, once granted; raises `Unavailable` when that takes over `seconds`."""
        if place.done() and not place.cancelled():
            return place.result()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancel that meets the grant.
            async with asyncio.timeout(seconds):
                return await place
        except TimeoutError:
            raise Unavailable(
                f"no slot of {self._model!r} became free within {seconds:g} s",
                code="queue_timeout",
                retry_after=self._supervisor.next_restart(self._model),
            ) from None
        finally:
            self._drop(place)

    def abandon(self, places: list[asyncio.Future[Lease]]) -> None:
        """Give up places and leases that nobody will use."""
        for place in places:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().release()
            else:
                place.cancel()
                self._drop(place)

    def _drop(self, place: asyncio.Future[Lease]) -> None:
        if place.cancelled() and place in self._line:
            self._line.remove(place)

    def _release(self, replica: Replica) -> None:
        self._busy[replica.id] -= 1
        self.advance()

    def _free(self) -> int:
        ready = self._supervisor.ready(self._model)
        return sum(self._slots - self._busy[replica.id] for replica in ready)

    def _raise_if_hopeless(self) -> None:
        if error := self._hopeless():
            raise error

    def _hopeless(self) -> Unavailable | None:
        supervisor = self._supervisor
        if supervisor.ready(self._model) or supervisor.coming(self._model):
            return None
        why = "; ".join(supervisor.problems(self._model)) or "it is stopped"
        return Unavailable(
            f"the model {self._model!r} can't answer now: {why}",
            code="model_unavailable",
            retry_after=supervisor.next_restart(self._model),
        )

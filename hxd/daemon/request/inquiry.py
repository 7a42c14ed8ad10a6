"""One question to one worker, whose answer is gathered whole before the client reads of it.

Vectors, scores and tokens depend on nothing but the question, so that another worker may be asked
when the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hxd import wire
from hxd.daemon.request.admit import Gate, Lease
from hxd.daemon.request.call import failure
from hxd.daemon.supervise.link import new_id
from hxd.daemon.supervise.replica import Replica
from hxd.errors import BackendError, HxdError

# A question that was there when two workers died is not put to a third.
TRIES = 2
WORKER_DIED = "worker_died"


class Collector(Protocol):
    """Takes the frames of an answer in order; what it raises ends the question."""

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None: ...


C = TypeVar("C", bound=Collector)


@dataclass(frozen=True)
class Reply(Generic[C]):
    found: C
    tokens: int
    replica: Replica


@dataclass(frozen=True)
class Inquiry(Generic[C]):
    """`frame` makes the question from its id, `collector` what takes the answer; both anew for
    each try. `confirm` may refuse the replica. `queue_time` in seconds."""

    gate: Gate
    queue_time: float
    frame: Callable[[int], wire.Request]
    collector: Callable[[], C]
    confirm: Callable[[Replica], None]

    async def reply(self) -> Reply[C]:
        """Raises `HxdError`. Cancelling it cancels what the worker does."""
        for left in reversed(range(TRIES)):
            try:
                return await self._try()
            except BackendError as error:
                if error.code != WORKER_DIED or not left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _try(self) -> Reply[C]:
        lease = await self._lease()
        replica = lease.replica
        try:
            self.confirm(replica)
            if replica.worker is None:
                raise BackendError("the worker ended before it was asked", code=WORKER_DIED)
        except HxdError:
            lease.release()
            raise
        link, id, collector = replica.worker.link, new_id(), self.collector()
        answered: asyncio.Future[wire.Done] = asyncio.get_running_loop().create_future()

        def fail(error: HxdError) -> None:
            if not answered.done():
                answered.set_exception(error)

        def sink(answer: wire.Answer) -> None:
            match answer:
                case wire.Done():
                    lease.release()
                    if not answered.done():
                        answered.set_result(answer)
                case wire.Failed():
                    lease.release()
                    fail(failure(answer))
                case _ if not answered.done():
                    try:
                        collector.add(answer)
                    except HxdError as error:
                        fail(error)
                        link.send(wire.Cancel(id))

        link.call(self.frame(id), sink)
        try:
            done = await answered
        except asyncio.CancelledError:
            link.send(wire.Cancel(id))
            raise
        return Reply(collector, done.prompt_tokens, replica)

    async def _lease(self) -> Lease:
        [place] = self.gate.enter(1)
        try:
            return await self.gate.wait(place, self.queue_time)
        except BaseException:
            self.gate.abandon([place])
            raise

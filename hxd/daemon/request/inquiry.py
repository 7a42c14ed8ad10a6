"""One question to one worker, whose answer is gathered whole before the client reads of it.

Vectors, scores and tokens depend on nothing but the question, so that another worker may be asked
when the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hxd import wire
from hxd.daemon.request.admit import Gate, Lease, Place
from hxd.daemon.request.deployment import Outcome, Served
from hxd.daemon.request.failover import Next, Trail
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.strand import POISONED, failure
from hxd.daemon.supervise.link import Heard, Loss, Lost, new_id
from hxd.daemon.supervise.replica import Replica
from hxd.errors import BackendError, Fault, HxdError, QueueFull, Unavailable


class Collector(Protocol):
    """Takes the frames of an answer in order; what it raises ends the question."""

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None: ...


C = TypeVar("C", bound=Collector)


@dataclass(frozen=True)
class Reply(Generic[C]):
    found: C
    tokens: int
    replica: Replica


class Died(Exception):
    """The worker was lost before it had answered."""

    def __init__(self, lost: Lost, replica: Replica) -> None:
        super().__init__(lost.why)
        self.lost, self.replica = lost, replica


class Refused(Exception):
    """The worker lives and could not answer."""

    def __init__(self, error: HxdError, replica: Replica) -> None:
        super().__init__(str(error))
        self.error, self.replica = error, replica


@dataclass(frozen=True)
class Inquiry(Generic[C]):
    """`gate` is the line of `served` for questions of this kind. `frame` makes the question from
    its id, `collector` what takes the answer; both anew for each try. `confirm` may refuse the
    replica."""

    setting: Setting
    served: Served
    gate: Gate
    frame: Callable[[int], wire.Request]
    collector: Callable[[], C]
    confirm: Callable[[Replica], None]

    @property
    def model(self) -> str:
        return self.served.source.name

    @property
    def key(self) -> str:
        return self.served.source.key

    async def reply(self) -> Reply[C]:
        """Raises `HxdError`. Cancelling it cancels what the worker does."""
        if len(self.setting.poison):
            self.setting.poison.check(self.key, self.frame(0))
        trail, clock, metrics = Trail(), self.setting.clock, self.setting.metrics
        asked = clock.now()
        avoid: str | None
        lease = await self._wait(self.gate.enter(1)[0])
        lost: tuple[str, float] | None = None
        while True:
            try:
                answer = await self._ask(lease)
                if lost is not None:
                    metrics.failover(self.model, "retry", lost[0], clock.now() - lost[1])
                self.served.report(Outcome(None, clock.now() - asked))
                return answer
            except Died as died:
                error: HxdError = BackendError(f"the worker died: {died}", code=wire.WORKER_DIED)
                then = trail.lost(
                    died.lost.loss, companions=self.setting.supervisor.companions(died.replica)
                )
                # Its replica may be had again: by then it is another process.
                cause, avoid = died.lost.loss.value, None
                if died.lost.loss in (Loss.CRASHED, Loss.STALLED):
                    self.served.report(Outcome(cause))
                proven = self._proven(died.lost)
                if died.lost.loss is Loss.CRASHED and (refuge := self.served.refuge) is not None:
                    # Whether it was the question or this release, the other release will tell.
                    if not died.lost.company:
                        self.setting.poison.suspect(refuge.source.key, self.frame(0))
                    raise error from None
                if proven:
                    then = Next.POISON
            except Refused as refused:
                then, error = trail.failed(), refused.error
                cause, avoid = "error", refused.replica.id
                self.served.report(Outcome(error.code or "error"))
            if lost is not None:
                metrics.failover(self.model, "retry", lost[0])
            lost = cause, clock.now() if lost is None else lost[1]
            if then is not Next.POISON and len(self.setting.poison):
                self.setting.poison.check(self.key, self.frame(0))
            lease = await self._again(then, trail, cause, avoid, error)

    def _proven(self, lost: Lost) -> bool:
        """Whether the question has ended a worker by itself, and not for the first time."""
        alone = lost.loss is Loss.CRASHED and not lost.company
        return alone and self.setting.poison.suspect(self.key, self.frame(0))

    async def _again(
        self, then: Next, trail: Trail, cause: str, avoid: str | None, error: HxdError
    ) -> Lease:
        """The lease for the next try; raises `error` where there is to be none."""
        setting = self.setting
        match then:
            case Next.ELSEWHERE | Next.ALONE:
                return await self._wait(self.gate.reenter(avoid=avoid, alone=then is Next.ALONE))
            case Next.LATER if self.gate.budget.take():
                try:
                    await setting.clock.sleep(trail.pause(setting.random.random()))
                    return await self._wait(self.gate.reenter(avoid=avoid))
                finally:
                    self.gate.budget.give_back()
            case Next.POISON:
                setting.poison.add(self.key, self.frame(0))
                setting.metrics.poisoned(self.model)
                raise BackendError(
                    f"two workers ended while they served this request; {error}", code=POISONED
                ) from None
        raise error

    async def _ask(self, lease: Lease) -> Reply[C]:
        replica = lease.replica
        worker = replica.worker
        try:
            self.confirm(replica)
        except HxdError:
            lease.release()
            raise
        id, collector = new_id(), self.collector()
        answered: asyncio.Future[wire.Done] = asyncio.get_running_loop().create_future()

        def fail(error: Exception) -> None:
            if not answered.done():
                answered.set_exception(error)

        def sink(answer: Heard) -> None:
            match answer:
                case wire.Done():
                    lease.grant.succeeded()
                    lease.release()
                    if not answered.done():
                        answered.set_result(answer)
                case wire.Failed():
                    error = failure(answer)
                    if answer.fault == Fault.BACKEND:
                        lease.grant.failed()
                    lease.release()
                    fail(Refused(error, replica) if answer.fault == Fault.BACKEND else error)
                case Lost(loss=Loss.MOVED):
                    ready = self.setting.supervisor.ready(self.served.source.key)
                    others = any(other is not replica and not other.suspect for other in ready)
                    after = self.served.successor
                    others = others or (after is not None and after.gate.able())
                    if others and worker is not None and not answered.done():
                        worker.link.leave(id)
                        lease.release()
                        fail(Died(answer, replica))
                case Lost():
                    lease.release()
                    fail(Died(answer, replica))
                case _ if not answered.done():
                    try:
                        collector.add(answer)
                    except HxdError as error:
                        if error.fault is Fault.BACKEND:
                            lease.grant.failed()
                        fail(error)
                        if worker is not None:
                            worker.link.send(wire.Cancel(id))

        if worker is None:
            sink(Lost(id, Loss.KILLED, "the worker ended before it was asked"))
        else:
            worker.link.call(self.frame(id), sink)
        try:
            done = await answered
        except asyncio.CancelledError:
            if worker is not None:
                worker.link.send(wire.Cancel(id))
            raise
        return Reply(collector, done.prompt_tokens, replica)

    async def _wait(self, place: Place) -> Lease:
        return await self.gate.wait(place, self.served.source.settings.queue_time)


async def along(
    chain: Sequence[Served], ask: Callable[[Served], Awaitable[Reply[C]]]
) -> tuple[Served, Reply[C]]:
    """The answer of the first release that can give one, and which that is: of the chain, then of
    what is in service instead of one of them, or beside. Raises what the last one said."""
    rest, asked = list(chain), set[str]()
    while True:
        served = rest.pop(0)
        asked.add(served.source.key)
        try:
            return served, await ask(served)
        except QueueFull:
            # A trial takes no more than it can do; another model is not meant to help out.
            rest = [one for one in rest if one.source.name == served.source.name]
            if not rest:
                raise
        except (Unavailable, BackendError) as error:
            if error.code == POISONED:
                raise
            after = served.successor
            if after is not None and served.gate.hopeless and not after.gate.hopeless:
                # It may have been left for one that is gone now.
                asked.discard(after.source.key)
            rest += [one for one in (after, served.refuge) if one is not None]
            rest = [one for one in rest if one.source.key not in asked]
            if not rest:
                raise

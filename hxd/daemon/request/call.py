"""Runs the sequences of one request on workers, and hands on what they say as one stream.

Owns the leases: a slot is given back when its worker has said the last word on the sequence, not
when the client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.request.admit import Gate, Lease
from hxd.daemon.supervise.link import new_id
from hxd.errors import BY_FAULT, BackendError, HxdError, Unavailable

# An error in place of an answer: the sequence never reached a worker.
Answer = wire.Answer | HxdError
# Which choice, what, and when in monotonic seconds.
Arrival = tuple[int, Answer, float]

RETRY_AFTER = 1.0


@dataclass(slots=True)
class Piece:
    """What one choice gained: `text`, tool calls, logprobs, and at its end a finish reason with
    exact counts."""

    index: int
    text: str
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: Sequence[wire.CallDelta] = ()
    logprobs: Sequence[wire.Logprob] = ()
    reasoning: str = ""


@dataclass
class Call:
    """One request on its way. `orders` holds a `Generate` per choice; their ids are set here.
    `whole`: nobody reads before a choice has ended, so nobody is woken before."""

    model: str
    gate: Gate
    clock: Clock
    metrics: Metrics
    orders: Sequence[wire.Generate]
    queue_time: float
    whole: bool = False
    replicas: set[str] = field(default_factory=set)
    _arrived: list[Arrival] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _leases: dict[int, Lease] = field(default_factory=dict)
    _taken: set[asyncio.Future[Lease]] = field(default_factory=set)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _generated: int = 0

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """Lists of pieces, each list what arrived since the last one was taken.

        Raises `HxdError` when a choice fails. Closing the iterator, or cancelling the task that
        reads it, cancels what still runs.
        """
        places = self.gate.enter(len(self.orders))
        pending = len(self.orders)
        started = self.clock.now()
        last: dict[int, float] = {}
        try:
            if len(self.orders) == 1:
                await self._start(0, places[0])
            else:
                self._tasks = [
                    asyncio.create_task(self._start_or_fail(index, place))
                    for index, place in enumerate(places)
                ]
            while pending:
                await self._wake.wait()
                self._wake.clear()
                arrived, self._arrived = self._arrived, []
                pieces = self._read(arrived, started, last)
                pending -= sum(piece.finish is not None for piece in pieces)
                if pieces:
                    yield pieces
        finally:
            for task in self._tasks:
                task.cancel()
            self.gate.abandon([place for place in places if place not in self._taken])
            self._cancel()

    async def _start_or_fail(self, index: int, place: asyncio.Future[Lease]) -> None:
        try:
            await self._start(index, place)
        except HxdError as error:
            self._arrive(index, error)

    async def _start(self, index: int, place: asyncio.Future[Lease]) -> None:
        lease = await self.gate.wait(place, self.queue_time)
        self._taken.add(place)
        order = self.orders[index]
        order.id = new_id()
        worker = lease.replica.worker
        if worker is None:
            lease.release()
            raise BackendError("the worker ended before the request reached it")
        self.replicas.add(lease.replica.id)
        self._leases[order.id] = lease

        def sink(answer: wire.Answer) -> None:
            ended = isinstance(answer, wire.Done | wire.Failed)
            if ended:
                self._leases.pop(order.id).release()
            self._arrive(index, answer, wake=ended or not self.whole)

        worker.link.call(order, sink)

    def _arrive(self, index: int, answer: Answer, *, wake: bool = True) -> None:
        self._arrived.append((index, answer, self.clock.now()))
        if wake:
            self._wake.set()

    def _cancel(self) -> None:
        for id, lease in self._leases.items():
            if lease.replica.worker is not None:
                lease.replica.worker.link.send(wire.Cancel(id))

    def _read(self, arrived: list[Arrival], started: float, last: dict[int, float]) -> list[Piece]:
        pieces = []
        tokens = 0
        meter = self.metrics.of(self.model)
        for index, answer, at in arrived:
            match answer:
                case wire.Delta():
                    tokens += len(answer.tokens)
                    if answer.text or answer.calls or answer.reasoning:
                        if index in last:
                            meter.gap(at - last[index])
                        else:
                            meter.first_token(at - started)
                        last[index] = at
                    elif not answer.logprobs:
                        continue
                    pieces.append(
                        Piece(
                            index,
                            answer.text,
                            calls=answer.calls,
                            logprobs=answer.logprobs,
                            reasoning=answer.reasoning,
                        )
                    )
                case wire.Done():
                    pieces.append(
                        Piece(
                            index,
                            "",
                            answer.finish,
                            answer.prompt_tokens,
                            answer.completion_tokens,
                            answer.cached_tokens,
                        )
                    )
                case wire.Failed():
                    raise failure(answer)
                case HxdError():
                    raise answer
        if tokens:
            meter.generated(tokens)
            self._generated += tokens
        return pieces

    def count_untold(self, completion: int) -> None:
        """`completion` tokens were generated in all; a relay's come without ids and have not been
        counted."""
        if completion > self._generated:
            self.metrics.of(self.model).generated(completion - self._generated)


def failure(failed: wire.Failed) -> HxdError:
    """The error that a client reads, by whose fault it was."""
    kind = BY_FAULT.get(failed.fault, BackendError)
    retry_after = failed.retry_after
    if retry_after is None and kind is Unavailable:
        retry_after = RETRY_AFTER
    return kind(failed.message, param=failed.param, code=failed.code, retry_after=retry_after)

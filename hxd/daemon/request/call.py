"""Runs the sequences of one request and hands on what they say as one stream of pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial

from hxd import wire
from hxd.daemon.request.admit import Gate, Place
from hxd.daemon.request.deployment import Served
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.strand import Said, Strand
from hxd.errors import CallerError, HxdError, QueueFull

# Which choice, what, and when in monotonic seconds.
Arrival = tuple[int, Said, float]


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
    """One request on its way. `chain`: the models that may answer, best first. `orders` holds a
    `Generate` per choice. `whole`: nobody reads before a choice has ended, so nobody is woken
    before. `strict`: no release may answer that is not in the chain. `guest`: hxd asks for itself,
    and no client is sent away for it."""

    setting: Setting
    chain: list[Served]
    orders: Sequence[wire.Generate]
    choices_per_prompt: int = 1
    whole: bool = False
    strict: bool = False
    guest: bool = False
    _strands: list[Strand] = field(default_factory=list)
    _arrived: list[Arrival] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _generated: int = 0

    @property
    def served(self) -> Served:
        """The model that answers, as far as is known."""
        return self._strands[0].served if self._strands else self.chain[0]

    @property
    def releases(self) -> list[Served]:
        """Everything that has worked on it, in order."""
        found: dict[str, Served] = {}
        for strand in self._strands:
            found |= {served.source.key: served for served in strand.releases}
        return list(found.values())

    @property
    def replicas(self) -> set[str]:
        return {id for strand in self._strands for id in strand.replicas}

    @property
    def failovers(self) -> int:
        """How often a sequence had to go on with another worker, so far."""
        return sum(strand.failovers for strand in self._strands)

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """Lists of pieces, each list what arrived since the last one was taken.

        Raises `HxdError` when a choice fails. Closing the iterator, or cancelling the task that
        reads it, cancels what still runs.
        """
        if len(self.setting.poison):
            self.chain = self._unharmed()
        gate, places = self._enter()
        pending = len(self.orders)
        started = self.setting.clock.now()
        last: dict[int, float] = {}
        self._strands = [
            Strand(
                self.setting,
                self.chain,
                order,
                partial(self._arrive, index),
                whole=self.whole,
                strict=self.strict,
            )
            for index, order in enumerate(self.orders)
        ]
        try:
            if len(self.orders) == 1:
                await self._strands[0].start(places[0])
            else:
                self._tasks = [
                    asyncio.create_task(self._start_or_fail(index, place))
                    for index, place in enumerate(places)
                ]
            while pending:
                await self._wake.wait()
                self._wake.clear()
                arrived, self._arrived = self._arrived, []
                pieces, error = self._read(arrived, started, last)
                pending -= sum(piece.finish is not None for piece in pieces)
                if pieces:
                    yield pieces
                if error is not None:
                    raise error
        finally:
            for task in self._tasks:
                task.cancel()
            gate.abandon([p for p, s in zip(places, self._strands, strict=True) if not s.began])
            for strand in self._strands:
                strand.cancel()
            if self.guest:
                gate.leave(len(self.orders))

    def _enter(self) -> tuple[Gate, list[Place]]:
        """A line with a place for every sequence. One that is full sends its clients away, unless
        the same model has another release for them: a trial takes no more than it can do."""
        while True:
            gate = self.chain[0].gate
            try:
                return gate, gate.enter(len(self.orders), guest=self.guest)
            except QueueFull:
                rest = self.chain[1:]
                if not rest or rest[0].source.name != self.chain[0].source.name:
                    raise
                self.chain = rest

    def _unharmed(self) -> list[Served]:
        """The chain, with another release of the same model in place of one that refuses this
        request. Raises `CallerError` where there is none."""
        chain: list[Served] = []
        for served in self.chain:
            try:
                self._check(served)
            except CallerError:
                refuge = None if self.strict else served.refuge
                if refuge is None:
                    raise
                self._check(refuge)
                served = refuge
            if served not in chain:
                chain.append(served)
        return chain

    def _check(self, served: Served) -> None:
        for order in self.orders[:: self.choices_per_prompt]:
            self.setting.poison.check(served.source.key, order)

    async def _start_or_fail(self, index: int, place: Place) -> None:
        try:
            await self._strands[index].start(place)
        except HxdError as error:
            self._arrive(index, error, self.setting.clock.now())

    def _arrive(self, index: int, said: Said, at: float) -> None:
        self._arrived.append((index, said, at))
        if not self.whole or not isinstance(said, wire.Delta):
            self._wake.set()

    def _read(
        self, arrived: list[Arrival], started: float, last: dict[int, float]
    ) -> tuple[list[Piece], HxdError | None]:
        """What the clients gain, and the error that ends the request after that."""
        pieces = []
        error = None
        tokens = 0
        meter = self.setting.metrics.of(self.served.source.name)
        for index, said, at in arrived:
            match said:
                case wire.Delta():
                    tokens += len(said.tokens)
                    if said.text or said.calls or said.reasoning:
                        if index in last:
                            meter.gap(at - last[index])
                        else:
                            meter.first_token(at - started)
                        last[index] = at
                    elif not said.logprobs:
                        continue
                    pieces.append(
                        Piece(
                            index,
                            said.text,
                            calls=said.calls,
                            logprobs=said.logprobs,
                            reasoning=said.reasoning,
                        )
                    )
                case wire.Done():
                    pieces.append(
                        Piece(
                            index,
                            "",
                            said.finish,
                            said.prompt_tokens,
                            said.completion_tokens,
                            said.cached_tokens,
                        )
                    )
                case HxdError():
                    error = error or said
        if tokens:
            meter.generated(tokens)
            self._generated += tokens
        return pieces, error

    def count_untold(self, completion: int) -> None:
        """`completion` tokens were generated in all; a relay's come without ids and have not been
        counted."""
        if completion > self._generated:
            meter = self.setting.metrics.of(self.served.source.name)
            meter.generated(completion - self._generated)

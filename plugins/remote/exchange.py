"""One try at one request: what is asked of the server, and its answer handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from hxd import wire

from . import ask, tokens, vectors
from .answer import DONE, Answer, deltas
from .client import Client, Reply
from .dialect import Dialect
from .faults import Failure, Reader, Refused, WrongPlace
from .options import Options
from .shape import ShapeError
from .sse import EventError, Events

EVENTS = "text/event-stream"
JSON = "application/json"
WHOLE_LIMIT = 8 << 20  # bytes of an answer that was not streamed although we asked for that
VECTORS_LIMIT = 64 << 20  # bytes: 2,048 vectors of dimension 4,096 in base64, and some room
TOKENS_LIMIT = 64 << 20  # bytes: a text of 4 MiB, a token for each byte, and their pieces
TAIL_SECONDS = 5.0  # after the reason of the end, for the usage and the last event
R = TypeVar("R")


class Out:
    """Where frames go; knows whether anything has gone."""

    def __init__(self, emit: Callable[[wire.Frame], None]) -> None:
        self._emit = emit
        self._drain = getattr(emit, "drain", None)
        self.sent = False

    def __call__(self, frame: wire.Frame) -> None:
        self.sent = True
        self._emit(frame)

    async def drain(self) -> None:
        """Slow the server down to what the daemon takes, where the worker offers that."""
        if self._drain is not None:
            await self._drain()


class Exchange:
    """Everything that the server at `options.url` can be asked. `dialect` is what it has taught
    us."""

    def __init__(self, options: Options, model: str, client: Client, reader: Reader) -> None:
        self._options = options
        self._model = model
        self._client = client
        self._reader = reader
        self.dialect = Dialect(omit=options.omit)

    async def run(self, request: wire.Request, out: Out) -> wire.Done:
        match request:
            case wire.Generate():
                return await self._generate(request, out)
            case wire.Embed():
                return await self._embed(request, out)
            case wire.Rank():
                return await self._rank(request, out)
            case wire.Tokenize():
                return await self._tokenize(request, out)
            case wire.Detokenize():
                return await self._detokenize(request, out)

    async def _post(self, url: str, asked: Callable[[Dialect], dict[str, Any]]) -> Reply:
        """Asks in the server's dialect, and learns it on the way: each lesson is another one, so
        this ends."""
        dialect = self.dialect
        while True:
            body = asked(dialect)
            try:
                reply = await self._client.post(url, body, self._options.first_byte)
            except Refused as refused:
                learnt = dialect.without(body, refused.raw)
                if learnt is None:
                    raise
                dialect = learnt
            else:
                self.dialect = dialect
                return reply

    async def _generate(self, request: wire.Generate, out: Out) -> wire.Done:
        deadline = asyncio.get_running_loop().time() + self._options.first_byte
        answer = Answer(request.id, self._reader)
        url = self._options.url + ask.path(request)
        async with await self._post(url, partial(ask.body, request, self._model)) as reply:
            if reply.kind == EVENTS:
                await self._stream(reply, answer, out, deadline)
            elif reply.kind == JSON:
                await self._whole(reply, answer, out)
            else:
                raise self._client.failure("answered with neither events nor JSON")
        return answer.done()

    async def _stream(self, reply: Reply, answer: Answer, out: Out, deadline: float) -> None:
        """`deadline` is that of the first event that says something."""
        clock = asyncio.get_running_loop().time
        events = Events()
        ending = False
        while not answer.closed:
            try:
                chunk = await reply.chunk(deadline)
            except (TimeoutError, Failure) as error:
                if ending:
                    return  # all that matters has been said
                raise self._late(answer) if isinstance(error, TimeoutError) else error from None
            if not chunk:
                self._check_end(answer, events)
                reply.end()
                return
            before = answer.progress
            self._take(chunk, events, answer, out)
            await out.drain()
            if ending or answer.progress == before:
                # Where data never runs out, no wait of `chunk` does either.
                if clock() >= deadline:
                    if ending:
                        return
                    raise self._late(answer)
            elif answer.finish is None:
                deadline = clock() + self._options.stall
            else:
                ending = True
                deadline = clock() + TAIL_SECONDS
        if not answer.progress:
            raise self._client.failure("ended its answer without saying anything")
        reply.end()

    def _take(self, chunk: bytes, events: Events, answer: Answer, out: Out) -> None:
        try:
            for data in events.feed(chunk):
                for delta in answer.event(data):
                    out(wire.Step([delta]))
                if answer.closed:
                    return
        except EventError as error:
            raise self._client.failure(f"sent what is no stream of events: {error}") from None

    def _late(self, answer: Answer) -> Failure:
        if answer.progress:
            return self._client.failure(
                f"stalled: nothing came for {self._options.stall:g} s in mid-answer"
            )
        return self._client.failure(f"sent nothing within {self._options.first_byte:g} s")

    def _check_end(self, answer: Answer, events: Events) -> None:
        """A connection that closes is the end of an answer only if the answer says so."""
        if answer.finish is None and events.pending.strip() != DONE:
            raise self._client.failure("cut its answer off", transient=True)

    async def _whole(self, reply: Reply, answer: Answer, out: Out) -> None:
        completion = answer.decode(await reply.whole(WHOLE_LIMIT))
        deltas = answer.take(completion)
        if not completion.choices:
            raise self._client.failure("sent JSON that is no completion")
        for delta in deltas:
            out(wire.Step([delta]))
        await out.drain()

    async def _offered(
        self, urls: tuple[str, ...], asked: Callable[[Dialect], dict[str, Any]], limit: int
    ) -> bytes:
        """The JSON from the first of `urls` that there is; raises `Refused` when there is none."""
        for url in urls:
            try:
                async with await self._post(url, asked) as reply:
                    return await reply.whole(limit)
            except WrongPlace:
                continue
        path = urls[0].rpartition("/")[2]
        raise Refused(f"the remote server {self._options.place} has no /{path}")

    async def _embed(self, request: wire.Embed, out: Out) -> wire.Done:
        body = await self._offered(
            (self._options.url + vectors.EMBED,),
            partial(vectors.ask_embed, request, self._model),
            VECTORS_LIMIT,
        )
        rows, count = self._read(vectors.embeddings, body, len(request.inputs))
        for frame in vectors.frames(request.id, rows):
            out(frame)
            await out.drain()
        return wire.Done(request.id, "stop", count, 0)

    async def _rank(self, request: wire.Rank, out: Out) -> wire.Done:
        body = await self._offered(
            (self._options.url + vectors.RANK, self._options.root + vectors.RANK),
            partial(vectors.ask_rank, request, self._model),
            VECTORS_LIMIT,
        )
        rows, count = self._read(vectors.ranking, body, len(request.documents))
        for frame in vectors.frames(request.id, rows):
            out(frame)
            await out.drain()
        return wire.Done(request.id, "stop", count, 0)

    async def _tokenize(self, request: wire.Tokenize, out: Out) -> wire.Done:
        body = await self._offered(
            self._either(tokens.TOKENIZE),
            lambda _: tokens.ask_tokenize(request, self._model),
            TOKENS_LIMIT,
        )
        ids, pieces = self._read(tokens.tokenized, body)
        for frame in tokens.frames(request.id, ids, pieces):
            out(frame)
            await out.drain()
        return wire.Done(request.id, "stop", len(ids), 0)

    async def _detokenize(self, request: wire.Detokenize, out: Out) -> wire.Done:
        body = await self._offered(
            self._either(tokens.DETOKENIZE),
            lambda _: tokens.ask_detokenize(request, self._model),
            TOKENS_LIMIT,
        )
        text = self._read(tokens.detokenized, body)
        for delta in deltas(request.id, text, "", [], []):
            out(wire.Step([delta]))
            await out.drain()
        return wire.Done(request.id, "stop", len(request.tokens), 0)

    def _either(self, path: str) -> tuple[str, ...]:
        """Beside `/v1`, where llama.cpp's server and vLLM have it, or below it."""
        return tuple(dict.fromkeys((self._options.root + path, self._options.url + path)))

    def _read(self, read: Callable[..., R], *arguments: Any) -> R:
        try:
            return read(*arguments)
        except ShapeError as error:
            raise self._client.failure(f"sent what was not asked for: {error}") from None

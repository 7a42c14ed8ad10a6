"""Serves `/tokenize` and `/detokenize`, which any model with a vocabulary can answer.

They take no slot of the model: a text is tokenized while others are generated. A line of their own
keeps them from flooding a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from aiohttp import web

from hxd import wire
from hxd.config.live import Live
from hxd.daemon.request import receive_inputs, reply, transfer
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.deployment import Asker, Served
from hxd.daemon.request.inquiry import C, Inquiry, Reply, along
from hxd.daemon.request.setting import Setting
from hxd.errors import BackendError

AT_ONCE = 16  # in one worker; each is some milliseconds of one thread
TOKENS_PER_BYTE = 8  # NFKC makes 18 letters of the 3 bytes of U+FDFA
MARKS = 64  # the model's own at either end
LONGEST_PIECE = 1024  # characters; tokens of a hundred spaces and more exist
TURN_TOKENS = 1 << 11


class Tokens:
    """Takes token ids and their pieces, over any number of frames; at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.tokens: list[int] = []
        self.pieces: list[bytes] = []

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None:
        if not isinstance(frame, wire.Tokens):
            raise BackendError(f"the worker answered with {type(frame).__name__}")
        self.tokens += frame.tokens
        self.pieces += frame.pieces
        if len(self.tokens) > self._limit or len(self.tokens) != len(self.pieces):
            raise BackendError("the worker's tokens do not fit the text")

    def parts(self, *, with_pieces: bool) -> Iterator[bytes]:
        """The answer in parts, each rendered in about a millisecond. A piece that is no whole
        number of characters is a list of its bytes."""
        yield b'{"tokens":['
        for start in range(0, len(self.tokens), TURN_TOKENS):
            turn = slice(start, start + TURN_TOKENS)
            some: list[Any] = self.tokens[turn]
            if with_pieces:
                pieces = map(_text, self.pieces[turn])
                some = [{"id": id, "piece": text} for id, text in zip(some, pieces, strict=True)]
            yield b"," * (start > 0) + reply.json_bytes(some)[1:-1]
        yield b"]}"


class Text:
    """Takes text, over any number of frames; at most `limit` characters."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self.parts: list[str] = []

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None:
        if not isinstance(frame, wire.Delta):
            raise BackendError(f"the worker answered with {type(frame).__name__}")
        self._room -= len(frame.text)
        if self._room < 0:
            raise BackendError("the worker's text does not fit the tokens")
        self.parts.append(frame.text)


class Tokenization:
    def __init__(self, abilities: Abilities, setting: Setting, live: Live) -> None:
        self._abilities = abilities
        self._setting = setting
        self._live = live

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_tokenize(await transfer.read(request, self._live.limits))
        text = asked.content if asked.content is not None else asked.prompt or ""

        def frame(id: int) -> wire.Request:
            return wire.Tokenize(id, text, asked.add_special, asked.parse_special)

        collector = partial(Tokens, len(text.encode()) * TOKENS_PER_BYTE + MARKS)
        found, headers = await self._ask(request, asked.model, frame, collector)
        parts = []
        for part in found.parts(with_pieces=asked.with_pieces):
            parts.append(part)
            await asyncio.sleep(0)
        return _json(b"".join(parts), headers)

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_detokenize(await transfer.read(request, self._live.limits))

        def frame(id: int) -> wire.Request:
            return wire.Detokenize(id, asked.tokens)

        collector = partial(Text, len(asked.tokens) * LONGEST_PIECE)
        found, headers = await self._ask(request, asked.model, frame, collector)
        return _json(reply.json_bytes({"content": "".join(found.parts)}), headers)

    async def _ask(
        self,
        request: web.Request,
        model: str | None,
        frame: Callable[[int], wire.Request],
        collector: Callable[[], C],
    ) -> tuple[C, dict[str, str]]:
        chain = self._abilities.find(model, None, Asker(request.get("key", "")))
        request["model"] = chain[0].source.name

        async def ask(served: Served) -> Reply[C]:
            inquiry = Inquiry(
                self._setting,
                served,
                served.tokenizing or served.gate,
                frame,
                collector,
                lambda replica: None,
            )
            return await inquiry.reply()

        served, answer = await along(chain, ask)
        request["model"] = served.source.name
        return answer.found, {**served.headers(), "x-hxd-replica": answer.replica.id}


def _json(body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=headers)


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)

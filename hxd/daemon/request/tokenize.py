"""Serves `/tokenize` and `/detokenize`, which any model with a vocabulary can answer.

They take no slot of the model: a text is tokenized while others are generated. A line of their own
keeps them from flooding a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from hxd import wire
from hxd.config.settings import Limits
from hxd.daemon.request import receive_inputs, reply, transfer
from hxd.daemon.request.admit import Gate
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.inquiry import C, Inquiry
from hxd.errors import BackendError

AT_ONCE = 16  # in one worker; each is some milliseconds of one thread


class Tokens:
    """Takes token ids and their pieces, over any number of frames."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.pieces: list[bytes] = []

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None:
        if not isinstance(frame, wire.Tokens):
            raise BackendError(f"the worker answered with {type(frame).__name__}")
        self.tokens += frame.tokens
        self.pieces += frame.pieces

    def with_pieces(self) -> list[dict[str, Any]]:
        """A piece that is no whole number of characters is a list of its bytes."""
        return [
            {"id": token, "piece": _text(piece)}
            for token, piece in zip(self.tokens, self.pieces, strict=True)
        ]


class Text:
    """Takes text, over any number of frames."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None:
        if not isinstance(frame, wire.Delta):
            raise BackendError(f"the worker answered with {type(frame).__name__}")
        self.parts.append(frame.text)


class Tokenization:
    """`gates`: the line of each model."""

    def __init__(self, abilities: Abilities, gates: Mapping[str, Gate], limits: Limits) -> None:
        self._abilities = abilities
        self._gates = gates
        self._limits = limits

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_tokenize(await transfer.read(request, self._limits))
        text = asked.content if asked.content is not None else asked.prompt or ""

        def frame(id: int) -> wire.Request:
            return wire.Tokenize(id, text, asked.add_special, asked.parse_special)

        found, headers = await self._ask(request, asked.model, frame, Tokens)
        body = {"tokens": found.with_pieces() if asked.with_pieces else found.tokens}
        return _json(body, headers)

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_detokenize(await transfer.read(request, self._limits))

        def frame(id: int) -> wire.Request:
            return wire.Detokenize(id, asked.tokens)

        found, headers = await self._ask(request, asked.model, frame, Text)
        return _json({"content": "".join(found.parts)}, headers)

    async def _ask(
        self,
        request: web.Request,
        model: str | None,
        frame: Callable[[int], wire.Request],
        collector: Callable[[], C],
    ) -> tuple[C, dict[str, str]]:
        served = self._abilities.find(model, None)
        source = served.source
        request["model"] = source.name
        gate = self._gates[source.name]
        inquiry = Inquiry(gate, source.settings.queue_time, frame, collector, lambda replica: None)
        answer = await inquiry.reply()
        return answer.found, {**served.headers(), "x-hxd-replica": answer.replica.id}


def _json(body: Any, headers: dict[str, str]) -> web.Response:
    return web.Response(
        body=reply.json_bytes(body), content_type="application/json", headers=headers
    )


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)

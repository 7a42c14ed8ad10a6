"""The least that a gateway can do, as a measure of what hxd adds: aiohttp, uvloop and msgspec, one
hop to a worker over a socketpair, and neither keys nor limits nor queues nor supervision.

    python -m scripts.bench.bare PORT

answers `/v1/chat/completions` with the last message, like hxd's echo backend; streams get one
letter per token at 20 tokens/s.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import Any

import msgspec
import uvloop
from aiohttp import web

RATE = 20
LENGTH_BYTES = 4


class Message(msgspec.Struct):
    role: str
    content: str


class Question(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int = 1 << 30
    stream: bool = False


class Frames(asyncio.Protocol):
    """The socketpair's end in either process; calls `got(value)` for each frame."""

    def __init__(self, got: Any) -> None:
        self._got = got
        self._buffer = bytearray()
        self._out = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, value: Any) -> None:
        """All frames of one turn of the loop go out in one write: writes are what costs most."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        raw = msgspec.msgpack.encode(value)
        self._out += len(raw).to_bytes(LENGTH_BYTES, "big") + raw

    def _flush(self) -> None:
        self._transport.write(bytes(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + int.from_bytes(self._buffer[at : at + LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            self._got(msgspec.msgpack.decode(self._buffer[at + LENGTH_BYTES : end]))
            at = end
        del self._buffer[:at]

    def connection_lost(self, error: Exception | None) -> None:
        # The other process has gone, and one is no use without the other.
        os._exit(0)


async def work(end: socket.socket) -> None:
    """The worker: whole answers at once, and one frame with a letter for each stream per tick."""
    running: dict[int, list[Any]] = {}

    def got(value: Any) -> None:
        number, text, tokens, stream = value
        if stream:
            running[number] = [text, tokens, 0]
        else:
            link.send([[number, text[:tokens], True]])

    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: Frames(got), sock=end)
    due = time.monotonic()
    while True:
        due += 1 / RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        pieces = []
        for number, state in list(running.items()):
            text, tokens, at = state
            state[2] += 1
            pieces.append([number, text[at % len(text)], at + 1 == tokens])
            if at + 1 == tokens:
                del running[number]
        if pieces:
            link.send(pieces)


class Gateway:
    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._last = 0
        self._question = msgspec.json.Decoder(Question)
        self._encode = msgspec.json.Encoder().encode
        self.link: Any = None

    def got(self, pieces: Any) -> None:
        for number, text, ended in pieces:
            if (queue := self._waiting.get(number)) is not None:
                queue.put_nowait((text, ended))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = self._question.decode(await request.read())
        self._last += 1
        number, queue = self._last, asyncio.Queue()
        self._waiting[number] = queue
        text = asked.messages[-1].content
        self.link.send([number, text, asked.max_tokens, asked.stream])
        try:
            if asked.stream:
                return await self._stream(request, asked, queue)
            text, _ = await queue.get()
        finally:
            del self._waiting[number]
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = self._encode({**self._head(asked, "chat.completion"), "choices": [choice]})
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self, request: web.Request, asked: Question, queue: Any
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        ended = False
        while not ended:
            text, ended = await queue.get()
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            chunk = {**self._head(asked, "chat.completion.chunk"), "choices": [choice]}
            await response.write(b"data: " + self._encode(chunk) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _head(self, asked: Question, kind: str) -> dict[str, Any]:
        return {"id": f"chat-{self._last}", "object": kind, "created": 0, "model": asked.model}

    async def alive(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")


async def serve(port: int, end: socket.socket) -> None:
    gateway = Gateway()
    loop = asyncio.get_running_loop()
    _, gateway.link = await loop.create_connection(lambda: Frames(gateway.got), sock=end)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", gateway.chat)
    app.router.add_get("/livez", gateway.alive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


def main() -> None:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        uvloop.run(work(theirs))
        return
    theirs.close()
    uvloop.run(serve(int(sys.argv[1]), ours))


if __name__ == "__main__":
    main()

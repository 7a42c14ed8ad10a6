"""A server that speaks HTTP by hand, well or badly, as a test tells it.

Each POST is answered by the next behaviour of the script; the last one goes on for ever. Nothing
here sleeps: a behaviour that has nothing more to say waits for the client to leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Behaviour = Callable[["Conversation"], Awaitable[None]]
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Conversation:
    """One request, and the connection on which to answer it."""

    def __init__(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.request = request
        self._reader = reader
        self._writer = writer
        self.kept = False

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Until the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    def reset(self) -> None:
        """Close with a RST, as a process that is killed does."""
        self._writer.transport.abort()

    async def reply(
        self, status: int, body: bytes = b"", *, kind: str = "application/json", **headers: str
    ) -> None:
        """A whole answer; the connection may be used again."""
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\n"
        head += "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        await self.send(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.kept = True

    async def stream(self, *events: bytes) -> None:
        """The head of a chunked stream, and its first events."""
        await self.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n")
        for event in events:
            await self.part(event)

    async def part(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")
        self.kept = True


class Server:
    """Listens on a port of its own; `requests` are the POSTs so far, `connections` how many there
    were. GETs of a list of models get `models`, None for a 404."""

    def __init__(self, *script: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self.models: list[str] | None = []
        self.connections = 0
        self.left = asyncio.Event()
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self._tls, limit=32 << 20
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._converse(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.left.set()
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        talk = Conversation(await read_request(reader), reader, writer)
        if talk.request.method == "GET":
            if self.models is None:
                await talk.reply(404)
            else:
                listed = [{"id": name, "object": "model"} for name in self.models]
                await talk.reply(200, json.dumps({"object": "list", "data": listed}).encode())
        else:
            self.requests.append(talk.request)
            behave = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            await behave(talk)
        return talk.kept


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


# What events say.


def event(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"data: " + data + b"\n\n"


DONE = event(b"[DONE]")


def delta(text: str = "", *, finish: str | None = None, **said: Any) -> bytes:
    """A chunk of a chat."""
    content = {"content": text, **said} if text else said
    return event({"choices": [{"index": 0, "delta": content, "finish_reason": finish}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"choices": [], "usage": counts})


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()


# Behaviours.


def answers(*texts: str) -> Behaviour:
    """A chat as it should be, a chunk for each text."""
    return says(
        delta(role="assistant"),
        *(delta(text) for text in texts),
        delta(finish="stop"),
        usage(7, len(texts) + 1, 3),
        DONE,
    )


def says(*events: bytes) -> Behaviour:
    """A stream that ends as HTTP wants it."""

    async def behave(talk: Conversation) -> None:
        await talk.stream(*events)
        await talk.end()

    return behave


def says_whole(value: Any) -> Behaviour:
    return refuses(200, json.dumps(value).encode())


def refuses(
    status: int, body: bytes = b"", *, kind: str = "application/json", **headers: str
) -> Behaviour:
    async def behave(talk: Conversation) -> None:
        await talk.reply(status, body, kind=kind, **headers)

    return behave


async def silent(talk: Conversation) -> None:
    """Takes the request and says nothing."""
    await talk.gone()


def stalls(*events: bytes) -> Behaviour:
    """A stream that stops after `events` and stays open."""

    async def behave(talk: Conversation) -> None:
        await talk.stream(*events)
        await talk.gone()

    return behave


def cuts(*events: bytes) -> Behaviour:
    """A stream whose connection breaks after `events`."""

    async def behave(talk: Conversation) -> None:
        await talk.stream(*events)

    return behave


def writes(data: bytes) -> Behaviour:
    """These bytes, then the end of the connection."""

    async def behave(talk: Conversation) -> None:
        await talk.send(data)

    return behave


def endless(part: bytes, first: bytes = b"") -> Behaviour:
    """A stream of `part` without end, many of them at a time."""
    many = part * max(1, (1 << 15) // len(part))

    async def behave(talk: Conversation) -> None:
        await talk.stream(*([first] if first else []))
        while True:
            await talk.part(many)
            await asyncio.sleep(0)  # a writer that never has to wait would starve the client

    return behave


async def resets(talk: Conversation) -> None:
    talk.reset()


def closed_port() -> str:
    """The URL of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


@contextlib.contextmanager
def deaf_port() -> Iterator[str]:
    """The URL of a port whose connections never come about: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filling.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


# A certificate for 127.0.0.1 that nobody else has signed, and its key, which protects nothing.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBnjCCAUSgAwIBAgIUf4aBWXOqrW4lR4BwoCvt2yRPZZwwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIaHhkIHRlc3QwIBcNMjYxMTIxMTQ0MTU0WhgPMjEyNjEwMjgx
NDQxNTRaMBMxETAPBgNVBAMMCGh4ZCB0ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEODFHsqVx6s0cd2bkN+vtlpohyP7/1MOC0V2KztWxCPLxl7QIkMjFEuEX
pASiEsiwHec2Dh4J7iENzMEM6+iYVqN0MHIwHQYDVR0OBBYEFC11w2aNAmWV+0MG
aeDHcLr7oQa6MB8GA1UdIwQYMBaAFC11w2aNAmWV+0MGaeDHcLr7oQa6MA8GA1Ud
EwEB/wQFMAMBAf8wDwYDVR0RBAgwBocEfwAAATAOBgNVHQ8BAf8EBAMCAoQwCgYI
KoZIzj0EAwIDSAAwRQIgUMMqSUOuD54utIGyVlfeUSdhHFtnmIBQtd6FDAICLwwC
IQCBtHk4Dqv0yGQ9TDWGU5/S3zGxHVJEMCSTxi0HD6uixw==
-----END CERTIFICATE-----
"""
CERTIFICATE_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglAkuE8z2gYQpzl7D
PvsJjPYvvtVs1Td08bobsz+bFg2hRANCAAQ4MUeypXHqzRx3ZuQ36+2WmiHI/v/U
w4LRXYrO1bEI8vGXtAiQyMUS4RekBKISyLAd5zYOHgnuIQ3MwQzr6JhW
-----END PRIVATE KEY-----
"""


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A file that says whom to trust, and what a server of that name needs."""
    trusted, own = folder / "ca.pem", folder / "server.pem"
    trusted.write_text(CERTIFICATE)
    own.write_text(CERTIFICATE + CERTIFICATE_KEY)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own)
    return trusted, context

"""A server of files that tells the truth or lies, as a test tells it. In a thread of its own, so
that what it serves may block.

Requests for a path are of three kinds: `head`, `probe` (a GET of the first bytes, with which a pull
finds out what there is) and `data`. Each takes the next behaviour of its script; after the last one
the server is honest. Nothing here sleeps, but for `trickle`, whose point is time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.own_loop import OwnLoop

Behaviour = Callable[["Exchange"], Awaitable[None]]
PROBE = (0, 64)


@dataclass
class Served:
    data: bytes
    etag: str | None = '"one"'
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """As Python has it: the end is the one after the last."""
        text = self.headers.get("range")
        if text is None:
            return None
        start, _, last = text.removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1

    @property
    def kind(self) -> str:
        if self.method == "HEAD":
            return "head"
        return "probe" if self.range == PROBE else "data"


class LyingServer:
    """`url` is its root. `requests` holds all that it was asked, in order."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[Request] = []
        self.served: dict[str, Served] = {}
        self.url = ""
        self._scripts: defaultdict[tuple[str, str], deque[Behaviour]] = defaultdict(deque)
        self._always: dict[tuple[str, str], Behaviour] = {}
        self._grown = threading.Condition()
        self._running = OwnLoop(self._serve)

    def serve(self, path: str, data: bytes, **settings: Any) -> str:
        """The URL of it."""
        self.served[path] = Served(data, **settings)
        return self.url + path

    def script(self, path: str, *behaviours: Behaviour, kind: str = "data") -> None:
        self._scripts[path, kind].extend(behaviours)

    def always(self, path: str, behaviour: Behaviour, kind: str = "data") -> None:
        self._always[path, kind] = behaviour

    def asked(self, path: str, kind: str = "data") -> list[Request]:
        with self._grown:
            return [one for one in self.requests if (one.path, one.kind) == (path, kind)]

    def wait(self, there: Callable[[], bool], seconds: float = 20) -> None:
        """Until `there`, looked at whenever a request arrives or is answered."""
        with self._grown:
            assert self._grown.wait_for(there, seconds), self.requests

    def note(self) -> None:
        with self._grown:
            self._grown.notify_all()

    def __enter__(self) -> LyingServer:
        port = self._running.begin(ssl=self._tls)
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.end()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.partition(":")[::2] for line in head[1:] if line)
        request = Request(method, path, {name.lower(): text.strip() for name, text in pairs})
        key = (path.partition("?")[0], request.kind)
        with self._grown:
            self.requests.append(request)
            script = self._scripts[key]
            behaviour = script.popleft() if script else self._always.get(key, honest)
            self._grown.notify_all()
        exchange = Exchange(request, self.served.get(key[0]), self, reader, writer)
        await behaviour(exchange)
        self.note()
        return exchange.kept


class Exchange:
    """One request, and the connection on which to answer it. Closed after, unless `kept`."""

    def __init__(
        self,
        request: Request,
        served: Served | None,
        server: LyingServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.request = request
        self.file = served or Served(b"")
        self.there = served is not None
        self.server = server
        self.kept = False
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int, headers: dict[str, str], protocol: str = "1.1") -> None:
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        await self.send(f"HTTP/{protocol} {status} Whatever\r\n{lines}\r\n".encode("latin-1"))

    async def gone(self) -> None:
        """Until the client has closed its end."""
        while await self._reader.read(1 << 16):
            pass

    def reset(self) -> None:
        self._writer.transport.abort()

    def honestly(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a right answer."""
        file, asked = self.file, self.request.range
        if not self.there:
            return 404, {"Content-Length": "0"}, b""
        headers = {"Content-Type": "application/octet-stream", **file.headers}
        if file.etag is not None:
            headers["ETag"] = file.etag
        body, status = file.data, 200
        condition = self.request.headers.get("if-range")
        if asked and condition in (None, file.etag, file.headers.get("Last-Modified")):
            start, end = asked[0], min(asked[1], len(file.data))
            if start >= end:
                return 416, {"Content-Range": f"bytes */{len(file.data)}"}, b""
            body, status = file.data[start:end], 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.data)}"
        headers["Content-Length"] = str(len(body))
        return status, headers, body if self.request.method != "HEAD" else b""


async def honest(exchange: Exchange) -> None:
    status, headers, body = exchange.honestly()
    await exchange.head(status, headers)
    await exchange.send(body)
    exchange.kept = True


async def refuse_connection(exchange: Exchange) -> None:
    """Closes with a RST before a word was said."""
    exchange.reset()


async def no_http(exchange: Exchange) -> None:
    await exchange.send(b"SSH-2.0-OpenSSH_9.6\r\n")


async def ignore_range(exchange: Exchange) -> None:
    """The whole file, and no word that ranges are to be had."""
    exchange.request.headers.pop("range", None)
    await honest(exchange)


async def close_delimited(exchange: Exchange) -> None:
    """As HTTP/1.0 does it: no length, the end of the connection is the end of the file."""
    exchange.request.headers.pop("range", None)
    _, headers, body = exchange.honestly()
    del headers["Content-Length"]
    await exchange.head(200, headers, "1.0")
    await exchange.send(body)


async def page(exchange: Exchange) -> None:
    body = b"<!DOCTYPE html><html><title>Please sign in</title></html>"
    await exchange.head(200, {"Content-Type": "text/html", "Content-Length": str(len(body))})
    await exchange.send(body)
    exchange.kept = True


async def gzipped(exchange: Exchange) -> None:
    status, headers, body = exchange.honestly()
    await exchange.head(status, {**headers, "Content-Encoding": "gzip"})
    await exchange.send(body)


async def longer(exchange: Exchange) -> None:
    """More than was asked, in chunks, so that nothing before shows it."""
    status, headers, body = exchange.honestly()
    del headers["Content-Length"]
    await exchange.head(status, {**headers, "Transfer-Encoding": "chunked"})
    body += b"and more"
    await exchange.send(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")


async def shorter(exchange: Exchange) -> None:
    """Half of it, in chunks, and the end as if that were all."""
    status, headers, body = exchange.honestly()
    del headers["Content-Length"]
    await exchange.head(status, {**headers, "Transfer-Encoding": "chunked"})
    body = body[: max(1, len(body) // 2)]
    await exchange.send(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")


async def trickle(exchange: Exchange) -> None:
    """Sixteen portions with 50 ms between them."""
    status, headers, body = exchange.honestly()
    await exchange.head(status, headers)
    step = -(-len(body) // 16)
    for at in range(0, len(body), step):
        await exchange.send(body[at : at + step])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exchange.gone(), 0.05)
    exchange.kept = False


def cut(after: int) -> Behaviour:
    """The connection ends after so many bytes of the body."""

    async def behave(exchange: Exchange) -> None:
        status, headers, body = exchange.honestly()
        await exchange.head(status, headers)
        await exchange.send(body[:after])

    return behave


def stall(after: int) -> Behaviour:
    """So many bytes of the body, then silence."""

    async def behave(exchange: Exchange) -> None:
        status, headers, body = exchange.honestly()
        await exchange.head(status, headers)
        await exchange.send(body[:after])
        exchange.server.note()
        await exchange.gone()

    return behave


def with_headers(**changed: str | None) -> Behaviour:
    """Honest, but for these headers; underscores are hyphens."""

    async def behave(exchange: Exchange) -> None:
        status, headers, body = exchange.honestly()
        for name, text in changed.items():
            headers.pop(name.replace("_", "-"), None)
            if text is not None:
                headers[name.replace("_", "-")] = text
        # A client that has read all of it would ask for more on a connection that is closed.
        await exchange.head(status, {"Connection": "close", **headers})
        await exchange.send(body)

    return behave


def status(number: int, **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        await exchange.head(number, {**named, "Content-Length": "0"})
        exchange.kept = True

    return behave


def redirect(to: str, number: int = 302, **headers: str) -> Behaviour:
    return status(number, Location=to, **headers)


def hub_head(data: bytes, to: str, sha256: str | None = None) -> Behaviour:
    """What the Hugging Face Hub answers to HEAD for a file in LFS."""
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return redirect(
        to,
        X_Linked_Size=str(len(data)),
        X_Linked_Etag=f'"{digest}"',
        X_Repo_Commit="c" * 40,
    )


def becomes(data: bytes, etag: str | None = '"two"') -> Behaviour:
    """From this request on the file is another one."""

    async def behave(exchange: Exchange) -> None:
        path = exchange.request.path.partition("?")[0]
        exchange.file = exchange.server.served[path] = Served(data, etag)
        await honest(exchange)

    return behave


async def always_new(exchange: Exchange) -> None:
    """The file is another one every time it is asked for."""
    number = len(exchange.server.requests)
    await becomes(exchange.file.data, f'"{number}"')(exchange)

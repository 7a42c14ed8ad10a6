"""A small HTTP proxy, as stands between a company's network and the world. In a thread of its own.

Whatever is asked for, it connects to `upstream`: names that do not exist lead to a server of the
test. It understands CONNECT, and whole URLs for what is not encrypted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from types import TracebackType
from urllib.parse import urlsplit

from tests.own_loop import OwnLoop


class ConnectProxy:
    """`url` is the proxy's; `asked` holds method, target and headers of all that it was asked, and
    no byte of what went through a tunnel. With `login`, `USER:PASSWORD`, others get 407; with
    `status` all get that."""

    def __init__(
        self, upstream: str, *, login: str | None = None, status: int | None = None
    ) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._login = None if login is None else base64.b64encode(login.encode()).decode()
        self.status = status
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""
        self._running = OwnLoop(self._serve)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def __enter__(self) -> ConnectProxy:
        self.url = f"http://127.0.0.1:{self._running.begin()}"
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
                await self._exchange(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await self._head(reader, writer)
        if head is None:
            return
        there, back = await asyncio.open_connection(*self._upstream)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(there, writer))
            if head[0].startswith("CONNECT "):
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await _pump(reader, back)
                return
            with contextlib.closing(back), contextlib.suppress(asyncio.IncompleteReadError):
                while head is not None:
                    back.write("\r\n".join(head).encode("latin-1"))
                    head = await self._head(reader, writer)

    async def _head(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> list[str] | None:
        """Of the next request, as its server gets it; None when it was refused."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, protocol = head[0].split(" ")
        headers = {
            name.lower(): text.strip()
            for name, text in (line.partition(":")[::2] for line in head[1:] if line)
        }
        self.asked.append((method, target, headers))
        status = self.status
        if status is None and self._login is not None:
            given = headers.get("proxy-authorization")
            status = None if given == f"Basic {self._login}" else 407
        if status is not None:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            return None
        path = urlsplit(target)._replace(scheme="", netloc="").geturl()
        kept = [line for line in head[1:] if not line.lower().startswith("proxy-")]
        return [f"{method} {path if method != 'CONNECT' else target} {protocol}", *kept]


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()

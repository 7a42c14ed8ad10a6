"""HTTP to one server: pooled connections, bounds on time and size, failures in our words.

Protects: no redirect is followed (the key would follow it), no cookie is kept, no proxy of the
environment is used, nothing is decompressed, headers and bodies are bounded. Does not protect: what
a server does with the prompts that it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import ssl
import time
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from hxd import __version__

from .faults import Failure, Reader
from .key import Key
from .options import Options

CONNECTIONS = 512  # of a worker's 1,024 open files
IDLE_SECONDS = 30.0  # less than servers keep idle connections, 60 s and more
ERROR_LIMIT = 64 << 10  # bytes of an error's body
ERROR_SECONDS = 5.0  # for the body of an error; its status says the most
END_SECONDS = 1.0  # for a stream to end after its last event, so that its connection can be kept
END_LIMIT = 64 << 10  # bytes, the same
WHOLE_UPLOAD = 1 << 20  # bytes; aiohttp wants larger bodies as files


class Client:
    """One pool of connections; make it inside the loop. `up`: whether the server was there when it
    was last asked, whatever it said."""

    def __init__(
        self, options: Options, key: Key | None, trusted: ssl.SSLContext | bool, reader: Reader
    ) -> None:
        self._options = options
        self._key = key
        self._reader = reader
        self._ending: set[asyncio.Task[None]] = set()
        self.up = False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=CONNECTIONS, keepalive_timeout=IDLE_SECONDS, ssl=trusted
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": f"hxd/{__version__}",
                "Accept-Encoding": "identity",
                **options.headers,
            },
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=options.connect,
                sock_connect=options.connect,
                ceil_threshold=3600.0,  # aiohttp rounds longer time-outs up to whole seconds
            ),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=1 << 16,
        )

    async def get(self, url: str, seconds: float) -> Reply:
        """As `post`."""
        return await self._open("GET", url, None, seconds)

    async def post(self, url: str, body: dict[str, Any], seconds: float) -> Reply:
        """The answer, once its headers are there and say 200, within `seconds`. Raises `Failure`
        or `Refused`."""
        return await self._open("POST", url, msgspec.json.encode(body), seconds)

    async def _open(self, method: str, url: str, body: bytes | None, seconds: float) -> Reply:
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._session.request(
                    method,
                    url,
                    data=body if body is None or len(body) < WHOLE_UPLOAD else io.BytesIO(body),
                    headers=self._headers(body),
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError) as error:
            self.up = False
            raise self._lost(error, seconds) from None
        self.up = True
        reply = Reply(response, self, deadline)
        if response.status != 200:
            async with reply:
                said = await reply.error_body()
                raise self._reader.refusal(response.status, response.headers, said, time.time())
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            response.close()
            raise self.failure("sent a compressed answer, which was not asked for")
        return reply

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = self._key.header()
        return headers

    def failure(self, what: str, *, transient: bool = False) -> Failure:
        return Failure(f"the remote server {self._options.place} {what}", transient=transient)

    def _lost(self, error: Exception, seconds: float) -> Failure:
        """Before the first byte of the answer."""
        place = self._options.place
        match error:
            case aiohttp.ConnectionTimeoutError():
                return Failure(
                    f"can't connect to the remote server {place} within "
                    f"{self._options.connect:g} s",
                    transient=True,
                )
            case TimeoutError():
                return self.failure(f"has not begun to answer within {seconds:g} s")
            case aiohttp.ClientConnectorCertificateError():
                return self.failure(f"has a certificate that is not trusted: {_why(error)}")
            case aiohttp.ClientConnectorDNSError():
                return Failure(
                    f"the name of the remote server {place} is not found: {_why(error)}",
                    transient=True,
                )
            case aiohttp.ClientConnectorError():
                return Failure(
                    f"can't connect to the remote server {place}: {_why(error)}", transient=True
                )
            case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
                return self.failure("answered with what is not HTTP")
        # Often a connection that was kept and that the server closed just now.
        return self.failure("closed the connection without an answer", transient=True)

    def end(self, response: aiohttp.ClientResponse) -> None:
        """Reads what is left of an answer that has said its last, without anybody waiting."""
        if response.content.at_eof():
            response.release()
            return
        task = asyncio.create_task(_read_out(response))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        for task in list(self._ending):
            task.cancel()
        await self._session.close()


class Reply:
    """An answer with status 200. Leaving it closes the connection, unless `end` was called."""

    def __init__(self, response: aiohttp.ClientResponse, client: Client, deadline: float) -> None:
        self._response = response
        self._client = client
        self._deadline = deadline
        self._ended = False
        self.kind = response.content_type

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._ended:
            self._response.close()

    async def chunk(self, deadline: float) -> bytes:
        """What has come next, b"" at the end. `deadline` is in the loop's time. Raises
        `TimeoutError`, or `Failure` for a connection that broke."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._response.content.readany()
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError):
            raise self._client.failure("cut its answer off", transient=True) from None

    async def whole(self, limit: int) -> bytes:
        """The whole body, by the deadline of the request. Raises `Failure`."""
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part = await self.chunk(self._deadline)
            except TimeoutError:
                raise self._client.failure("did not end its answer in time") from None
            if not part:
                self.end()
                return b"".join(parts)
            size += len(part)
            if size > limit:
                raise self._client.failure(f"sent an answer of over {limit} bytes")
            parts.append(part)

    async def error_body(self) -> bytes:
        """What there is of it soon, and of a length that explains an error."""
        data = b""
        soon = asyncio.get_running_loop().time() + ERROR_SECONDS
        with contextlib.suppress(Failure, TimeoutError):
            while len(data) < ERROR_LIMIT and (part := await self.chunk(soon)):
                data += part
            if len(data) < ERROR_LIMIT:
                self.end()
        return data[:ERROR_LIMIT]

    def end(self) -> None:
        """The answer is complete; its connection may serve another."""
        self._ended = True
        self._client.end(self._response)


async def _read_out(response: aiohttp.ClientResponse) -> None:
    left = END_LIMIT
    try:
        async with asyncio.timeout(END_SECONDS):
            while left > 0 and (part := await response.content.readany()):
                left -= len(part)
        response.release()
    except (aiohttp.ClientError, OSError):
        response.close()


def trust(options: Options) -> ssl.SSLContext | bool:
    """What certificates are checked against. Raises `ValueError`."""
    if options.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(
            f"option ca_file: {options.ca_file}: can't be used: {error.strerror or error}"
        ) from None


def _why(error: aiohttp.ClientConnectorError) -> str:
    number = error.errno
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(getattr(error.certificate_error, "verify_message", "") or "unknown reason")
    if isinstance(error, aiohttp.ClientConnectorDNSError) or not number or number < 0:
        return str(error.strerror or "unknown reason")[:200]
    return os.strerror(number)

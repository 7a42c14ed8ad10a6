"""Requests, one at a time: redirects, the token, timeouts, and which failures may pass. Knows
nothing of ranges or of the disk."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from hxd import __version__
from hxd.clock import Clock
from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull import address
from hxd.daemon.store.pull.address import AddressError, origin, shown
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.proxy import Proxies, Proxy
from hxd.daemon.store.pull.reference import Wanted
from hxd.daemon.store.pull.refusal import NEVER_THERE, PROXY_LOGIN, refused, refused_by_proxy
from hxd.daemon.store.pull.tries import Again

REDIRECTS = frozenset({301, 302, 303, 307, 308})
FILE = frozenset({200, 206, 416})
# What a signed URL answers when its time is over.
_EXPIRED = frozenset({400, 401, 403}) | NEVER_THERE
_BUFFER = 1 << 20  # so that bytes go on arriving while others are written


@dataclass
class Answer:
    """Redirects are behind it. `url` is where it came from."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: aiohttp.StreamReader


class Web:
    """The requests of one pull."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        wanted: Wanted,
        limits: Limits,
        clock: Clock,
        proxies: Proxies,
    ) -> None:
        self._session = session
        self._wanted = wanted
        self._limits = limits
        self._clock = clock
        self._proxies = proxies

    @contextlib.asynccontextmanager
    async def ask(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        within: str | None = None,
        takes: frozenset[int] = frozenset(),
        link: bool = False,
    ) -> AsyncIterator[Answer]:
        """The answer to `url` or to what it leads to, when it is 200, 206, 416 or one of `takes`.
        A redirect away from the origin `within` is itself the answer. `link`: the URL is one that
        was found before and may have expired.

        Raises `Again` for what may pass, in the body of the `async with` too, else `SourceFailed`.
        """
        async with contextlib.AsyncExitStack() as stack:
            with _failures(shown(url), self._proxies.for_url(url)):
                for _ in range(self._limits.redirects + 1):
                    response = await stack.enter_async_context(self._send(method, url, headers))
                    location = response.headers.get("Location", "")
                    if response.status not in REDIRECTS or not location:
                        break
                    try:
                        target = address.redirected(
                            url, location, allow_http=self._wanted.allow_http
                        )
                    except AddressError as error:
                        raise SourceFailed(
                            f"{shown(url)} redirects, and that is not followed: {error}"
                        ) from None
                    if within is not None and origin(target) != within:
                        takes |= REDIRECTS
                        break
                    url = target
                    await stack.aclose()
                else:
                    raise SourceFailed(
                        f"{shown(url)}: over {self._limits.redirects} redirects in a row"
                    )
                self._judge(url, response, takes | FILE, link=link)
                yield Answer(url, response.status, response.headers, response.content)

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        sent = dict(headers or {})
        authorization = self._wanted.authorization.get(origin(url))
        if authorization is not None:
            sent["Authorization"] = authorization
        try:
            # As it is: a signed URL is only good byte by byte.
            target = URL(url, encoded=True)
        except ValueError as error:
            raise SourceFailed(f"{shown(url)} is not asked: {error}") from None
        proxy = self._proxies.for_url(url)
        login = {}
        if proxy is not None and proxy.authorization is not None:
            login["Proxy-Authorization"] = proxy.authorization
        if target.scheme == "http":
            # No tunnel: the request itself goes to the proxy.
            sent |= login
        return self._session.request(
            method,
            target,
            headers=sent,
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=login,
        )

    def _judge(
        self, url: str, response: aiohttp.ClientResponse, takes: frozenset[int], *, link: bool
    ) -> None:
        """Raises for an answer that is of no use to anyone."""
        status = response.status
        if status in takes:
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in ("", "identity"):
                raise SourceFailed(
                    f"{shown(url)}: the server sends it with Content-Encoding {coding[:40]!r}, "
                    "though it was asked not to"
                )
            return
        if link and status in _EXPIRED:
            raise Again(f"{shown(url)}: the link to it has expired ({status})")
        proxy = self._proxies.for_url(url)
        if proxy is not None and status == PROXY_LOGIN:
            raise refused_by_proxy(status, shown(url), proxy)
        raise refused(
            status,
            response.headers,
            shown(url),
            hub=origin(url) == self._wanted.hub,
            token=origin(url) in self._wanted.authorization,
            now=self._clock.wall(),
        )


@contextlib.asynccontextmanager
async def open_web(
    wanted: Wanted, limits: Limits, clock: Clock, proxies: Proxies
) -> AsyncIterator[Web]:
    """Closes all connections at the end. No cookies and no .netrc: what is sent, and through whom,
    is what is said here."""
    timeout = aiohttp.ClientTimeout(
        total=None, connect=limits.connect, sock_connect=limits.connect, sock_read=limits.stall
    )
    headers = {"Accept-Encoding": "identity", "User-Agent": f"hxd/{__version__}"}
    # The system's certificates as they are now; aiohttp's own context, for a redirect, has those
    # of when the daemon started. Reading them takes 90 ms.
    encrypted = any(file.url.startswith("https:") for file in wanted.files)
    trust = ssl.create_default_context() if encrypted else True
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
        headers=headers,
        auto_decompress=False,
        read_bufsize=_BUFFER,
    ) as session:
        yield Web(session, wanted, limits, clock, proxies)


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """In the system's words; asyncio's own have the address once more, as a tuple."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or "no reason"


@contextlib.contextmanager
def _failures(name: str, proxy: Proxy | None) -> Iterator[None]:
    """What goes wrong below HTTP. aiohttp's own words may hold a whole URL, so they are not
    repeated."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        reason = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
        raise SourceFailed(
            f"{name}: the certificate of {error.host} is refused: {reason}"
        ) from None
    except aiohttp.InvalidURL:
        raise SourceFailed(f"{name}: the server redirects to what is no URL") from None
    except aiohttp.ClientProxyConnectionError as error:
        raise Again(
            f"{name}: can't connect to the proxy {error.host}:{error.port}: {_reason(error)}"
        ) from None
    except aiohttp.ClientHttpProxyError as error:
        raise refused_by_proxy(error.status, name, proxy) from None
    except aiohttp.ClientConnectorDNSError as error:
        raise Again(f"{name}: the name {error.host} is not found") from None
    except aiohttp.ClientConnectorError as error:
        raise Again(f"{name}: can't connect to {error.host}: {_reason(error)}") from None
    except aiohttp.ServerDisconnectedError:
        raise Again(f"{name}: the server closed the connection") from None
    except TimeoutError:
        raise Again(f"{name}: the server was silent for too long") from None
    except aiohttp.ClientPayloadError:
        raise Again(f"{name}: the answer was cut off") from None
    except aiohttp.ClientResponseError:
        raise Again(f"{name}: what the server sends is not HTTP") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Again(f"{name}: the connection failed ({type(error).__name__})") from None

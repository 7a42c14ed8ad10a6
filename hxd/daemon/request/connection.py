"""One client connection, below the routes: what aiohttp leaves open is closed here.

Malformed HTTP gets an error in the same shape as everything else and no traceback in the log, so
that a stranger can't fill it; headers must come within a bound, which aiohttp does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from hxd.config.live import Live
from hxd.daemon.request.listener import Port
from hxd.errors import CallerError, HxdError

Render = Callable[[HxdError], web.Response]


class Connection(RequestHandler):
    """`header_time`: seconds in which a request's headers must be complete. `port`: what it came
    through; None is the admin socket."""

    __slots__ = ("_header_time", "_header_timer", "_render", "port")

    def __init__(
        self,
        manager: web.Server,
        *,
        header_time: float,
        render: Render,
        port: Port | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(manager, **settings)
        self._header_time = header_time
        self._header_timer: asyncio.TimerHandle | None = None
        self._render = render
        self.port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._cancel_timer()
        elif self._current_request is None and self._header_timer is None:
            self._expect_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._header_timer = self._loop.call_later(self._header_time, self._too_slow)

    def _cancel_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never reached a route; the connection ends with it."""
        if status >= 500:
            self.log_exception("a request failed outside its route", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already begun")
        first_line = (message or "").strip().partition("\n")[0].strip(" :")
        said = f"not a valid HTTP request: {first_line[:200]}" if first_line else "bad request"
        error = HxdError("the request failed") if status >= 500 else CallerError(said)
        error.status = status
        response = self._render(error)
        response.headers["Server"] = "hxd"
        response.force_close()
        return response


async def part(request: web.Request, response: web.StreamResponse) -> None:
    """Signal of aiohttp, just before headers go out: the last answer on a connection whose port is
    closed says that it is the last."""
    protocol = request.protocol
    if isinstance(protocol, Connection) and protocol.port is not None and protocol.port.leaving:
        response.headers["Connection"] = "close"
        response.force_close()


class ConnectionRunner(web.AppRunner):
    """An aiohttp runner whose connections are `Connection`s, each with the limits that hold when it
    begins."""

    __slots__ = ("_live", "_render")

    def __init__(self, app: web.Application, *, live: Live, render: Render, **settings: Any):
        super().__init__(app, **settings)
        self._live = live
        self._render = render

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp names its protocol class in one method only, and takes no other.
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.live, server.render = self._live, self._render
        return server

    def through(self, port: Port) -> Callable[[], Connection]:
        """Makes the connections of one port, once the runner is set up."""
        assert isinstance(self.server, _Server)
        return partial(self.server.connection, port)


class _Server(web.Server):
    live: Live
    render: Render

    def __call__(self) -> Connection:
        return self.connection(None)

    def connection(self, port: Port | None) -> Connection:
        return Connection(
            self,
            port=port,
            loop=self._loop,
            header_time=self.live.limits.header_time,
            render=self.render,
            **{**self._kwargs, "keepalive_timeout": self.live.limits.keepalive},
        )

"""The HTTP side: one table of routes with the role that each needs, and one place for errors.

Every answer that is not a success has OpenAI's error shape, whatever path or method was asked.
"""

from __future__ import annotations

import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import product

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from hxd.clock import Clock
from hxd.config.live import Live
from hxd.config.settings import LARGEST_BODY
from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.request import generate, reply, transfer
from hxd.daemon.request.identify import Keys, Role, check_origin, identify, on_loopback
from hxd.errors import CallerError, HxdError

log = logging.getLogger("hxd.request")

Route = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Entry:
    """One route, served below `/api` too unless it is an operator's. `role` None is open to
    everyone; `work` counts as traffic: refused while the daemon drains, and waited for."""

    method: str
    path: str
    role: Role | None
    handler: Route
    work: bool = False


class Traffic:
    """Requests that are being worked on. `closing` refuses new ones."""

    def __init__(self) -> None:
        self.running = 0
        self.closing = False


class Front:
    """Builds the aiohttp application around a table of routes."""

    def __init__(
        self, live: Live, keys: Keys, metrics: Metrics, clock: Clock, traffic: Traffic
    ) -> None:
        self._live = live
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._traffic = traffic
        self._entries: dict[web.AbstractRoute, Entry] = {}
        own = socket.gethostname().lower()
        self._own_names = frozenset({own, f"{own}.local"})
        self._names = self._own_names
        self._configured: tuple[str, ...] = ()

    def application(self, entries: list[Entry], *, trusted: bool = False) -> web.Application:
        """`trusted`: behind the admin socket, whose file permissions have already decided."""
        app = web.Application(
            client_max_size=LARGEST_BODY,
            middlewares=[self._trusted if trusted else self._public],
        )
        for entry in entries:
            methods = ("GET", "HEAD") if entry.method == "GET" else (entry.method,)
            prefixes = ("",) if entry.path.startswith("/admin") else ("", "/api")
            for method, prefix in product(methods, prefixes):
                route = app.router.add_route(
                    method, prefix + entry.path, entry.handler, expect_handler=_expect
                )
                self._entries[route] = entry
        return app

    @web.middleware
    async def _public(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await self._serve(request, handler, trusted=False)

    @web.middleware
    async def _trusted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await self._serve(request, handler, trusted=True)

    async def _serve(
        self, request: web.Request, handler: Handler, *, trusted: bool
    ) -> web.StreamResponse:
        started = self._clock.now()
        entry = self._entries.get(request.match_info.route)
        request["id"] = _request_id(request)
        status = transfer.CLIENT_LEFT
        try:
            response = await self._guarded(request, handler, entry, trusted)
            status = request.get("status", response.status)
            return response
        finally:
            endpoint = entry.path if entry else "unknown"
            seconds = self._clock.now() - started
            self._metrics.answered(endpoint, request.get("model", ""), status, seconds)
            log.debug(
                "request=%s method=%s endpoint=%s model=%s status=%d seconds=%.4f",
                request["id"], request.method, endpoint, request.get("model", ""), status, seconds,
            )  # fmt: skip

    async def _guarded(
        self, request: web.Request, handler: Handler, entry: Entry | None, trusted: bool
    ) -> web.StreamResponse:
        """The answer or the error; the boundary where nothing may slip through."""
        try:
            if not trusted:
                self._identify(request, entry)
            if entry is None or not entry.work:
                return await handler(request)
            if self._traffic.closing:
                raise generate.draining(self._live.limits.drain)
            self._traffic.running += 1
            try:
                return await handler(request)
            finally:
                self._traffic.running -= 1
        except HxdError as error:
            return error_response(error)
        except web.HTTPException as error:
            return error_response(_from_aiohttp(error, request))
        except ConnectionError:
            # The client is gone: nobody reads this, and aiohttp drops the connection.
            request["status"] = transfer.CLIENT_LEFT
            return web.Response(status=400)
        except Exception:
            log.exception("request=%s failed inside hxd", request["id"])
            return error_response(HxdError(f"something broke inside hxd; request {request['id']}"))

    def _identify(self, request: web.Request, entry: Entry | None) -> None:
        check_origin(request.headers, self._allowed())
        if not self._asks_for_keys(request):
            return
        if entry is None:
            # Whether a path exists is not for strangers to learn; any valid key may.
            identify(request.headers, self._keys, None)
        elif entry.role is not None:
            request["key"] = identify(request.headers, self._keys, entry.role)

    def _asks_for_keys(self, request: web.Request) -> bool:
        """Without keys, nobody but who has come over loopback: a connection outlives the address
        where it began."""
        return self._live.config.auth.required or not on_loopback(request.protocol.sockname)

    def _allowed(self) -> frozenset[str]:
        """Names by which clients may call the box."""
        configured = self._live.config.listen.names
        if configured is not self._configured:
            self._configured = configured
            self._names = self._own_names | {name.lower() for name in configured}
        return self._names

    def may_see_detail(self, request: web.Request) -> bool:
        """Whether an open route may say more than yes or no."""
        if not self._asks_for_keys(request):
            return True
        try:
            identify(request.headers, self._keys, None)
        except HxdError:
            return False
        return True


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal of aiohttp: just before headers go out."""
    response.headers["X-Request-Id"] = request.get("id") or _new_id()
    response.headers["Server"] = "hxd"
    response.headers["X-Content-Type-Options"] = "nosniff"


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Answers `Expect`; None goes on to the route."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # What aiohttp's own handler does: the real answer has not begun.
        request.writer.output_size = 0
        return None
    return error_response(CallerError("only 100-continue can be expected", status=417))


def _request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def _from_aiohttp(error: web.HTTPException, request: web.Request) -> HxdError:
    path = request.path[:200]
    if isinstance(error, web.HTTPMethodNotAllowed):
        return CallerError(
            f"{request.method[:20]} is not possible on {path}; "
            f"{', '.join(sorted(error.allowed_methods))} is",
            status=405,
            code="method_not_allowed",
            allow=error.allowed_methods,
        )
    if error.status == 404:
        return CallerError(f"there is nothing at {path}", status=404, code="not_found")
    return CallerError(error.reason or "bad request", status=error.status)


def error_response(error: HxdError) -> web.Response:
    response = web.Response(
        status=error.status,
        body=reply.json_bytes(error.body()),
        content_type="application/json",
        headers=error.headers(),
    )
    if error.status in (408, 413):
        # The rest of the body is still on its way; it must not be read as the next request.
        response.headers[hdrs.CONNECTION] = "close"
        response.force_close()
    return response

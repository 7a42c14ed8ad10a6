"""The bytes of one HTTP exchange, in and out, each way bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aiohttp import web

from hxd.config.settings import Limits
from hxd.errors import CallerError

CLIENT_LEFT = 499  # nginx's code for a client that closed the connection; only in logs and metrics


async def read(request: web.Request, limits: Limits) -> bytes:
    """The body; bounded in size by aiohttp, in time here, and JSON by its label."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise CallerError("compressed bodies are not accepted", status=415)
    if "Content-Type" in request.headers and request.content_type != "application/json":
        raise CallerError(
            f"the body must be application/json, not {request.content_type[:100]}", status=415
        )
    if (request.content_length or 0) > limits.body:
        raise _too_large(limits.body)
    try:
        if request.content.is_eof():
            # It came with the headers, as small ones do: there is nothing to wait for.
            data = await request.read()
        else:
            async with asyncio.timeout(limits.body_time):
                data = await request.read()
    except TimeoutError:
        raise CallerError(
            f"the body did not arrive within {limits.body_time:g} s", status=408
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits.body) from None
    if len(data) > limits.body:
        # One without a length, which aiohttp bounds by the largest that can be configured.
        raise _too_large(limits.body)
    return data


async def write(
    request: web.Request, response: web.StreamResponse, data: bytes, limits: Limits
) -> None:
    """Raises `ConnectionError` when the client takes nothing for too long."""
    if not data:
        return
    transport = request.transport
    if transport is not None and not transport.get_write_buffer_size():
        # The kernel has taken all that came before: there is nothing to wait for.
        await response.write(data)
        return
    try:
        async with asyncio.timeout(limits.write_stall):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the client stopped reading") from None


@contextlib.contextmanager
def leaving(request: web.Request) -> Iterator[None]:
    """For an answer in parts: when the client leaves, or takes nothing for too long, it ends there,
    since there is nobody to tell."""
    try:
        yield
    except ConnectionError:
        request["status"] = CLIENT_LEFT
        if request.transport is not None:
            request.transport.abort()


def _too_large(limit: int) -> CallerError:
    return CallerError(f"the body is larger than {limit} bytes", status=413, code="body_too_large")

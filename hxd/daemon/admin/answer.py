"""How the admin API reads bodies and words answers."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hxd.daemon.request.reply import json_bytes
from hxd.errors import CallerError

T = TypeVar("T")


def decoded(body: bytes, type: type[T]) -> T:
    """Raises `CallerError` for a body that does not fit."""
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.DecodeError as error:
        raise CallerError(str(error)) from None


def answer(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json_bytes(body), content_type="application/json")

"""Tool calls as they grow: which part belongs to which call. Pure."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from hxd.wire import CallDelta

from .shape import Call, Function

MAX_CALLS = 128


class TooManyCalls(Exception):
    pass


class Calls:
    """Numbers calls from 0 in the order in which they begin.

    Servers differ: some leave `index` out, and some give each call of an answer the index 0 and an
    id of its own. So a new id begins a new call, and a part without an id continues the latest
    call with its index, or the latest of all.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}
        self.count = 0

    def take(self, part: Call) -> CallDelta:
        """Raises `TooManyCalls`."""
        function = part.function or Function()
        number = self._number(part)
        arguments = _text(function.arguments)
        if number is not None:
            return CallDelta(number, None, None, arguments)
        number = self.count
        self.count += 1
        if self.count > MAX_CALLS:
            raise TooManyCalls(f"more than {MAX_CALLS} tool calls in one answer")
        # Clients answer a call by its id, so each must have one.
        id = part.id or f"call_{secrets.token_hex(12)}"
        self._by_id[id] = number
        if part.index is not None:
            self._by_index[part.index] = number
        return CallDelta(number, id, function.name or "", arguments)

    def _number(self, part: Call) -> int | None:
        """The call that `part` continues; None when it begins one."""
        if part.id:
            return self._by_id.get(part.id)
        if part.index is not None:
            return self._by_index.get(part.index)
        if part.function is not None and part.function.name:
            return None
        return self.count - 1 if self.count else None


def _text(arguments: str | dict[str, Any] | None) -> str:
    if isinstance(arguments, dict):
        return msgspec.json.encode(arguments).decode()
    return arguments or ""

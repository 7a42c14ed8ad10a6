"""Values whose shape is the client's own, such as schemas and template variables.

Protects: whoever walks or encodes them (depth and count are bounded), and the wire, whose numbers
have 64 bits. What they mean is the worker's to judge, whose own bounds may be tighter.
"""

from __future__ import annotations

from typing import Any

from hxd.errors import CallerError

MAX_DEPTH = 128
MAX_VALUES = 20_000
MAX_SIZE = 1 << 20  # characters of keys and texts


def check(value: Any, param: str) -> None:
    """Raises `CallerError` that names `param`."""
    count = size = 0
    todo: list[tuple[Any, int]] = [(value, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict | list):
            count += len(value)
            if depth > MAX_DEPTH:
                raise _refused(param, f"nested deeper than {MAX_DEPTH}")
            if count > MAX_VALUES:
                raise _refused(param, f"more than {MAX_VALUES} values")
            if isinstance(value, dict):
                size += sum(map(len, value))
                value = value.values()
            todo += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise _refused(param, "a number of more than 64 bits")
        if size > MAX_SIZE:
            raise _refused(param, f"more than {MAX_SIZE} characters")


def _refused(param: str, message: str) -> CallerError:
    return CallerError(f"{param}: {message}", param=param)

"""What a client's tools and schemas may look like, checked before anything is made of them.

Protects: recursive walkers (nesting is bounded), time (nodes and size are), and the grammar engine
from references that lead nowhere or in a circle without ever reaching a value. Does not check that
a schema can be fulfilled, nor that the engine knows all its keywords: compiling it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from hxd.hookspecs import RequestRefused
from hxd.wire import Tools

MAX_TOOLS = 128
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_SIZE = 256 << 10
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Keywords whose value is data and holds no schema, whatever it looks like.
DATA = frozenset({"enum", "const", "default", "example", "examples"})
# Keywords that apply another schema to the very same value.
_SAME_VALUE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else"})
_LARGEST = 1e308
_SHOWN = 120


@dataclass
class Budget:
    """What the schemas of one request may hold together."""

    nodes: int = MAX_NODES
    size: int = MAX_SIZE


def check_tools(tools: Tools) -> None:
    """Raises `RequestRefused` that names the tool and the place in it."""
    if len(tools.functions) > MAX_TOOLS:
        raise RequestRefused(f"tools: {len(tools.functions)} of at most {MAX_TOOLS}", "tools")
    budget = Budget()
    seen: dict[str, int] = {}
    for i, tool in enumerate(tools.functions):
        where = f"tools[{i}].function"
        if not NAME.fullmatch(tool.name):
            raise _refused(
                f"{where}.name",
                f"{_short(repr(tool.name))} is not made of 1 to 64 letters, digits, and _ . -",
            )
        if tool.name in seen:
            raise _refused(f"{where}.name", f"tools[{seen[tool.name]}] has the same name")
        seen[tool.name] = i
        _spend(budget, f"{where}.description", size=len(tool.description))
        kind = tool.parameters.get("type", "object")
        if kind != "object":
            raise _refused(
                f"{where}.parameters", f"its type is {_short(json.dumps(kind))}, not object"
            )
        check_schema(tool.parameters, f"{where}.parameters", budget)
    if tools.named and tools.choice not in seen:
        raise RequestRefused(
            f"tool_choice: {_short(repr(tools.choice))} is not among the tools", "tool_choice"
        )


def check_schema(schema: Any, where: str, budget: Budget | None = None) -> None:
    """Checks a JSON schema, decoded or as text. Raises `RequestRefused` that names `where` and the
    place in it."""
    if isinstance(schema, str):
        schema = _decoded(schema, where)
    if not isinstance(schema, dict | bool):
        raise _refused(where, "a schema is an object")
    references = _walk(schema, where, budget or Budget())
    _check_references(schema, references, where)


def _decoded(text: str, where: str) -> Any:
    if len(text) > 2 * MAX_SIZE:
        raise _refused(where, f"{len(text)} characters; the limit is {2 * MAX_SIZE}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(where, f"not JSON, or nested too deeply: {error}") from None


_Place = tuple["_Place | None", str]
_Schema = dict[str, Any]


def _walk(schema: Any, where: str, budget: Budget) -> list[tuple[_Schema, _Place | None]]:
    """Bounds everything below `schema`; returns the schemas with a `$ref`."""
    references: list[tuple[_Schema, _Place | None]] = []
    # Objects and arrays with their depth, their place, and whether they are data, not schemas.
    todo: list[tuple[Any, int, _Place | None, bool]] = [(schema, 1, None, False)]
    while todo:
        value, depth, place, is_data = todo.pop()
        if depth > MAX_DEPTH:
            raise _refused(_path(where, place), f"nested deeper than {MAX_DEPTH}")
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            budget.size -= sum(map(len, value))
            items = value.items()
            if not is_data and isinstance(value.get("$ref"), str):
                references.append((value, place))
        elif isinstance(value, list):
            items = enumerate(value)
        budget.nodes -= 1
        for key, item in items:
            if isinstance(item, dict | list):
                todo.append((item, depth + 1, (place, str(key)), is_data or key in DATA))
                continue
            budget.nodes -= 1
            if isinstance(item, str):
                budget.size -= len(item)
            elif isinstance(item, int | float) and not -_LARGEST < item < _LARGEST:
                raise _refused(_path(where, (place, str(key))), "a number beyond what JSON is for")
            if budget.nodes < 0 or budget.size < 0:
                _spend(budget, _path(where, (place, str(key))))
        if budget.nodes < 0 or budget.size < 0:
            _spend(budget, _path(where, place))
    return references


def _check_references(
    root: Any, references: list[tuple[_Schema, _Place | None]], where: str
) -> None:
    targets: dict[int, Any] = {}
    for schema, place in references:
        target = targets[id(schema)] = _target(root, schema["$ref"])
        if target is None:
            raise _refused(
                _path(where, place), f"$ref: nothing is at {_short(repr(schema['$ref']))}"
            )
    ended: set[int] = set()
    for schema, place in references:
        if id(schema) not in ended and _circles(schema, targets, ended):
            raise _refused(
                _path(where, place), "$ref: leads back to itself without reaching a value"
            )


def _target(root: Any, reference: str) -> Any:
    """The schema that a reference names, which must lie in the same one; None where none does."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    found = root
    for part in unquote(reference[2:]).split("/"):
        if isinstance(found, dict):
            found = found.get(part.replace("~1", "/").replace("~0", "~") if "~" in part else part)
        elif isinstance(found, list) and part.isascii() and part.isdigit() and len(part) < 6:
            found = found[int(part)] if int(part) < len(found) else None
        else:
            return None
    return found if isinstance(found, dict | bool) else None


def _circles(start: _Schema, targets: dict[int, Any], ended: set[int]) -> bool:
    """Whether the schemas that apply to the same value as `start` come back to one on the way.
    `ended` collects those that are known not to, by identity."""
    path = [(id(start), _applied(start, targets))]
    on_path = {id(start)}
    while path:
        identity, following = path[-1]
        if not following:
            path.pop()
            on_path.discard(identity)
            ended.add(identity)
            continue
        schema = following.pop()
        if id(schema) in on_path:
            return True
        if id(schema) not in ended:
            path.append((id(schema), _applied(schema, targets)))
            on_path.add(id(schema))
    return False


def _applied(schema: _Schema, targets: dict[int, Any]) -> list[_Schema]:
    found = [targets.get(id(schema))]
    for keyword in schema.keys() & _SAME_VALUE:
        value = schema[keyword]
        found += value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, dict)]


def _spend(budget: Budget, where: str, size: int = 0) -> None:
    budget.size -= size
    if budget.nodes < 0:
        raise _refused(where, f"here the schemas of the request exceed {MAX_NODES} values")
    if budget.size < 0:
        raise _refused(where, f"here the schemas of the request exceed {MAX_SIZE >> 10} KiB")


def _path(where: str, place: _Place | None) -> str:
    keys: list[str] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return _short(".".join([where, *reversed(keys)]))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _refused(where: str, message: str) -> RequestRefused:
    return RequestRefused(f"{where}: {message}", where)

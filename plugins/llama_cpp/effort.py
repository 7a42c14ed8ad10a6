"""What in a JSON schema makes llguidance work almost without end; it has no limit of its own there.

Protects: time and memory of a compilation, together with the bounds on the size and the depth of
schemas, which are the worker's. Pure; never looks at what a schema means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

# An automaton has a state per remainder: 100,003 takes seconds, 10⁹ all the memory there is.
MAX_REMAINDERS = 10_000
# Each pair is compared.
MAX_PATTERN_PAIRS = 10_000
# Patterns that hold for one text are intersected: 2¹⁶ states take a third of a second.
MAX_INTERSECTED = 16
_DATA = frozenset({"enum", "const", "default", "example", "examples"})
# What may stand beside a reference without narrowing what it refers to.
_NOTES = frozenset({"$ref", "title", "description", "deprecated", "$comment"}) | _DATA
_EMBEDDED = "%json "


def check(schema: Any) -> None:
    """Raises `ValueError` in words for who wrote `schema`, which must be decoded and bounded."""
    together = pairs = patterns = 0
    multiple, composed = 1, False
    for node in _nodes(schema):
        given = node.get("multipleOf")
        if isinstance(given, int | float) and not isinstance(given, bool):
            remainders = _remainders(given)
            together += remainders
            multiple = math.lcm(multiple, remainders)
        if isinstance(node.get("patternProperties"), dict):
            pairs += len(node["patternProperties"]) ** 2
        patterns += "pattern" in node
        composed |= "allOf" in node or ("$ref" in node and not node.keys() <= _NOTES)
        if max(together, multiple) > MAX_REMAINDERS:
            raise ValueError(
                "multipleOf: the least common multiple and the sum of all that there are, without "
                f"powers of ten, must be at most {MAX_REMAINDERS}"
            )
    if pairs > MAX_PATTERN_PAIRS:
        raise ValueError("patternProperties: too many patterns")
    if composed and patterns > MAX_INTERSECTED:
        raise ValueError(f"pattern: more than {MAX_INTERSECTED}, with allOf or a narrowed $ref")


def embedded(lark: str) -> Iterator[Any]:
    """The schemas inside of a Lark grammar."""
    decoder = json.JSONDecoder()
    at = lark.find(_EMBEDDED)
    while at >= 0:
        try:
            schema, at = decoder.raw_decode(lark, at + len(_EMBEDDED))
            yield schema
        except ValueError:
            at += len(_EMBEDDED)
        at = lark.find(_EMBEDDED, at)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield value
            todo += [item for key, item in value.items() if key not in _DATA]
        elif isinstance(value, list):
            todo += value


def _remainders(multiple: float) -> int:
    """Powers of ten cost nothing: they are digits."""
    digits = Decimal(repr(multiple)).normalize().as_tuple().digits
    return int("".join(map(str, digits))) or 1

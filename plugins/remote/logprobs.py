"""Logprobs of a server's tokens, from either of the two forms that completions have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import zip_longest

from hxd.wire import Logprob

from .shape import Logprobs

UNKNOWN = -1  # servers tell the spelling of a token and not its id
_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


def read(given: Logprobs | None) -> list[Logprob]:
    if given is None:
        return []
    if given.content is not None:
        return [
            Logprob(
                UNKNOWN,
                _piece(one.token, one.bytes),
                one.logprob,
                _best(
                    (_piece(other.token, other.bytes), other.logprob)
                    for other in one.top_logprobs or ()
                ),
            )
            for one in given.content
        ]
    tokens = given.tokens or []
    values = (given.token_logprobs or [])[: len(tokens)]
    tops = (given.top_logprobs or [])[: len(tokens)]
    return [
        Logprob(
            UNKNOWN,
            _piece(token),
            value,
            _best((_piece(other), lp) for other, lp in (top or {}).items()),
        )
        for token, value, top in zip_longest(tokens, values, tops)
    ]


def _piece(token: str, given: list[int] | None = None) -> bytes:
    if given and all(0 <= byte < 256 for byte in given):
        return bytes(given)
    if match := _ESCAPED.fullmatch(token):
        return bytes.fromhex(match[1].replace("\\x", ""))
    return token.encode("utf-8", "replace")


def _best(pairs: Iterable[tuple[bytes, float]]) -> list[tuple[int, bytes, float]]:
    return sorted(((UNKNOWN, piece, value) for piece, value in pairs), key=lambda one: -one[2])

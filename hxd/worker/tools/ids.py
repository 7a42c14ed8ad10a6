"""Ids of tool calls: deterministic, so that a worker that takes over gives the same ones."""

from __future__ import annotations

import hashlib
import re
import string

_ALPHABET = string.digits + string.ascii_letters
# Mistral's templates refuse ids of any other form.
_SHORT = re.compile(r"[A-Za-z0-9]{9}", re.ASCII)


def call_id(seed: int, index: int, *, short: bool = False) -> str:
    """The id of an answer's call at `index`: 9 characters if `short`, else `call_` and 24."""
    source = f"{seed}:{index}"
    return _characters(source, 9) if short else "call_" + _characters(source, 24)


def shortened(id: str) -> str:
    """`id` if it is 9 alphanumerics, else 9 that stand for it."""
    return id if _SHORT.fullmatch(id) else _characters(id, 9)


def _characters(source: str, count: int) -> str:
    number = int.from_bytes(hashlib.sha256(source.encode("utf-8", "replace")).digest(), "big")
    found = ""
    for _ in range(count):
        number, digit = divmod(number, len(_ALPHABET))
        found += _ALPHABET[digit]
    return found

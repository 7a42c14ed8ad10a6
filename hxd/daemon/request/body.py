"""A request's bytes as a typed object, or what is wrong with them in words for its sender."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from hxd.errors import CallerError

R = TypeVar("R")
_WORDS = {
    "str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean",
    "object": "an object", "array": "an array", "null": "null",
}  # fmt: skip


def decode(decoder: msgspec.json.Decoder[R], body: bytes) -> R:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise CallerError("the body is nested too deeply") from None


def _explain(message: str) -> CallerError:
    """msgspec's words, path first: "temperature: expected a number, got a string"."""
    what, _, path = message.partition(" - at ")
    path = path.strip("`").removeprefix("key in ").strip("`").removeprefix("$").removeprefix(".")
    path = path.removesuffix("[...]")  # somewhere inside of what has no fields
    if match := re.search(r"missing required field `(\w+)`", what):
        param = f"{path}.{match[1]}".lstrip(".")
        return CallerError(f"{param}: this field is required", param=param)
    what = re.sub(
        r"`([^`]*)`",
        lambda m: " or ".join(_WORDS.get(word.strip(), word.strip()) for word in m[1].split("|")),
        what,
    )
    what = what[:1].lower() + what[1:]
    return CallerError(f"{path}: {what}" if path else what, param=path or None)

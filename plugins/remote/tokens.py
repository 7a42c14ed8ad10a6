"""`/tokenize` and `/detokenize`, which llama.cpp's server, vLLM and hxd have, each its own. Pure.

All of them skip fields that they don't know, so one body asks them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hxd import wire

from .shape import ShapeError

TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
PART = 20_000  # tokens of a frame
PIECE_LIMIT = 1 << 10  # bytes; no vocabulary has longer tokens


class Token(msgspec.Struct):
    """llama.cpp's, when asked for pieces; a piece that is no text comes as its bytes."""

    id: int
    piece: str | list[int] = ""


class Tokenized(msgspec.Struct):
    tokens: list[int | Token]


class Detokenized(msgspec.Struct):
    """`content` is llama.cpp's name, `prompt` vLLM's, `text` others'."""

    content: str | None = None
    prompt: str | None = None
    text: str | None = None


_tokenized = msgspec.json.Decoder(Tokenized)
_detokenized = msgspec.json.Decoder(Detokenized)


def ask_tokenize(request: wire.Tokenize, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "content": request.text,
        "prompt": request.text,
        "add_special": request.add_special,
        "add_special_tokens": request.add_special,
        "parse_special": request.parse_special,
        "with_pieces": True,
    }


def ask_detokenize(request: wire.Detokenize, model: str) -> dict[str, Any]:
    return {"model": model, "tokens": request.tokens}


def tokenized(body: bytes) -> tuple[list[int], list[bytes]]:
    """Ids, and the bytes of each: empty where the server does not tell them. Raises
    `ShapeError`."""
    try:
        given = _tokenized.decode(body).tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ShapeError(str(error)[:200]) from None
    ids = [one.id if isinstance(one, Token) else one for one in given]
    if not all(0 <= id < 1 << 31 for id in ids):
        raise ShapeError("a token id that is none")
    return ids, [_bytes(one.piece) if isinstance(one, Token) else b"" for one in given]


def _bytes(piece: str | list[int]) -> bytes:
    if isinstance(piece, str):
        data = piece.encode("utf-8", "replace")
    elif all(0 <= byte < 256 for byte in piece):
        data = bytes(piece)
    else:
        raise ShapeError("a piece whose bytes are none")
    if len(data) > PIECE_LIMIT:
        raise ShapeError(f"a token of {len(data)} bytes")
    return data


def detokenized(body: bytes) -> str:
    """Raises `ShapeError`."""
    try:
        given = _detokenized.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ShapeError(str(error)[:200]) from None
    for text in (given.content, given.prompt, given.text):
        if text is not None:
            return text
    raise ShapeError("no text in it")


def frames(id: int, tokens: list[int], pieces: list[bytes]) -> Iterator[wire.Tokens]:
    """The tokens in frames, one at least. Long pieces make the parts shorter."""
    longest = max(map(len, pieces), default=0)
    part = max(1, min(PART, (wire.TO_DAEMON_LIMIT // 2) // (longest + 16)))
    for at in range(0, max(1, len(tokens)), part):
        yield wire.Tokens(id, tokens[at : at + part], pieces[at : at + part])

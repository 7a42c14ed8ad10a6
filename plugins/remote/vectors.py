"""Embeddings and rankings: what to ask, and vectors out of the answer. Pure."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from hxd import wire

from .dialect import Dialect
from .shape import ShapeError

EMBED = "/embeddings"
RANK = "/rerank"
MAX_DIMENSION = 1 << 16
FLOAT = 4  # bytes
_HEAD = 1 << 10  # bytes of a frame besides its data, generously
D = TypeVar("D")


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None

    @property
    def count(self) -> int:
        return max(0, self.prompt_tokens or self.total_tokens or 0)


class Row(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class Embeddings(msgspec.Struct):
    data: list[Row]
    usage: Usage | None = None


class Score(msgspec.Struct):
    """Jina and Cohere call it `relevance_score`, others `score`."""

    index: int
    relevance_score: float | None = None
    score: float | None = None


class Ranking(msgspec.Struct):
    """`results`, or `data` as Voyage has it."""

    results: list[Score] | None = None
    data: list[Score] | None = None
    usage: Usage | None = None


_embeddings = msgspec.json.Decoder(Embeddings)
_ranking = msgspec.json.Decoder(Ranking)


def ask_embed(request: wire.Embed, model: str, dialect: Dialect) -> dict[str, Any]:
    asked = {"model": model, "input": request.inputs, "encoding_format": "base64"}
    return dialect.spoken(asked)


def ask_rank(request: wire.Rank, model: str, dialect: Dialect) -> dict[str, Any]:
    asked = {
        "model": model,
        "query": request.query,
        "documents": request.documents,
        "top_n": len(request.documents),
        "return_documents": False,
    }
    return dialect.spoken(asked)


def embeddings(body: bytes, count: int) -> tuple[list[bytes], int]:
    """`count` vectors as little-endian float32, in the order of the inputs, and the tokens of the
    prompt. Raises `ShapeError`."""
    answer = _decode(_embeddings, body)
    rows: list[bytes | None] = [None] * count
    if len(answer.data) != count:
        raise ShapeError(f"{len(answer.data)} vectors for {count} inputs")
    for at, row in enumerate(answer.data):
        index = at if row.index is None else row.index
        if not 0 <= index < count or rows[index] is not None:
            raise ShapeError(f"a vector for input {index}, which is none of the {count} or had one")
        rows[index] = _vector(row.embedding)
    vectors = [row for row in rows if row is not None]
    if len({len(vector) for vector in vectors}) > 1:
        raise ShapeError("vectors of different dimensions")
    return vectors, answer.usage.count if answer.usage else 0


def _vector(given: list[float] | str) -> bytes:
    values = array("f", given) if isinstance(given, list) else _unpacked(given)
    if not 1 <= len(values) <= MAX_DIMENSION:
        raise ShapeError(f"a vector of dimension {len(values)}")
    return _packed(values)


def _unpacked(text: str) -> array[float]:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ShapeError("a vector that is not base64") from None
    if len(data) % FLOAT:
        raise ShapeError(f"a vector of {len(data)} bytes")
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _packed(values: array[float]) -> bytes:
    """As little-endian bytes. A number too large for a float32 has become infinite by now."""
    if not all(map(math.isfinite, values)):
        raise ShapeError("numbers that are not finite")
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def ranking(body: bytes, count: int) -> tuple[list[bytes], int]:
    """One score per document as little-endian float32, in the order of the documents, and the
    tokens of the prompt. Raises `ShapeError`."""
    answer = _decode(_ranking, body)
    scores: list[float | None] = [None] * count
    for one in answer.results or answer.data or ():
        value = one.score if one.relevance_score is None else one.relevance_score
        if not 0 <= one.index < count or scores[one.index] is not None:
            raise ShapeError(f"a score for document {one.index}, which is none or had one")
        if value is None:
            raise ShapeError("a result without a score")
        scores[one.index] = value
    known = [score for score in scores if score is not None]
    if len(known) != count:
        raise ShapeError(f"{len(known)} scores for {count} documents")
    return [
        _packed(array("f", [score])) for score in known
    ], answer.usage.count if answer.usage else 0


def _decode(decoder: msgspec.json.Decoder[D], body: bytes) -> D:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ShapeError(str(error)[:200]) from None


def frames(id: int, vectors: list[bytes]) -> Iterator[wire.Vectors]:
    """As many vectors in each frame as fit. All have one size, of 1 to `MAX_DIMENSION` floats."""
    if not vectors:
        return
    size = len(vectors[0])
    rows = (wire.TO_DAEMON_LIMIT - _HEAD) // size
    for start in range(0, len(vectors), rows):
        data = b"".join(vectors[start : start + rows])
        yield wire.Vectors(id, start, size // FLOAT, data)

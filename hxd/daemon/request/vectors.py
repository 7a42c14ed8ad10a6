"""Vectors as they come from a worker and as clients read them. Knows no HTTP.

A float32 is written in JSON as the float64 of the same value, as NumPy's `tolist` gives it.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Callable, Iterator

import msgspec

from hxd import wire
from hxd.errors import BackendError, CallerError

FLOAT = 4  # bytes
_encode = msgspec.json.Encoder().encode


class Vectors:
    """Takes `count` vectors, or scores, in order. `dimensions`: how many numbers of each the
    client wants."""

    def __init__(self, count: int, dimensions: int | None = None) -> None:
        self._count = count
        self._wanted = dimensions
        self._frames: list[bytes] = []
        self._next = 0
        self.dimension = 0

    def add(self, frame: wire.Delta | wire.Vectors | wire.Tokens) -> None:
        """Raises `BackendError` for what does not fit, and `CallerError` when the client wants
        more than there is."""
        if not isinstance(frame, wire.Vectors):
            raise BackendError(f"the worker answered with {type(frame).__name__}")
        if not self._next:
            self.dimension = frame.dimension
        count, rest = divmod(len(frame.data), max(1, frame.dimension) * FLOAT)
        fits = frame.dimension == self.dimension > 0 and frame.start == self._next
        if rest or not count or not fits or self._next + count > self._count:
            raise BackendError("the worker's vectors do not fit the request")
        if self._wanted is not None and self._wanted > self.dimension:
            raise CallerError(
                f"dimensions: {self._wanted} is more than the {self.dimension} of this model",
                param="dimensions",
            )
        self._frames.append(frame.data)
        self._next += count

    def check(self) -> None:
        """Raises `BackendError` unless all have come."""
        if self._next != self._count:
            raise BackendError(f"the worker gave {self._next} vectors of {self._count}")

    @property
    def floats(self) -> int:
        """How many the client gets."""
        return self._count * (self._wanted or self.dimension)

    def rows(self) -> Iterator[bytes]:
        """Each as little-endian float32, cut to what the client wants and of length 1 again."""
        size = self.dimension * FLOAT
        for data in self._frames:
            for start in range(0, len(data), size):
                row = data[start : start + size]
                yield row if self._wanted is None else _shortened(row, self._wanted)

    def scores(self) -> list[float]:
        """The first number of each."""
        return [struct.unpack_from("<f", row)[0] for row in self.rows()]


def _shortened(row: bytes, dimensions: int) -> bytes:
    """Matryoshka models put what matters most first."""
    form = f"<{dimensions}f"
    kept = struct.unpack_from(form, row)
    length = math.hypot(*kept) or 1.0
    return struct.pack(form, *(x / length for x in kept))


def as_floats(row: bytes) -> bytes:
    return _encode(struct.unpack(f"<{len(row) // FLOAT}f", row))


def as_base64(row: bytes) -> bytes:
    return b'"' + binascii.b2a_base64(row, newline=False) + b'"'


Render = Callable[[bytes], bytes]
FORMATS: dict[str, Render] = {"float": as_floats, "base64": as_base64}


def parts(vectors: Vectors, render: Render, model: str, tokens: int) -> Iterator[bytes]:
    """OpenAI's object in parts, of one vector each."""
    before = b'{"object":"list","data":['
    for index, row in enumerate(vectors.rows()):
        yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (before, index, render(row))
        before = b","
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    yield b'],"model":%b,"usage":%b}' % (_encode(model), _encode(usage))

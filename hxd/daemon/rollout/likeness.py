"""Whether the vectors of two releases can stand beside each other in one index. Pure.

Vectors of another model, or of a badly quantized one, have the right shape and mean nothing beside
those that a client has stored: nothing fails, and every search gets worse.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Sequence

from hxd.daemon.request.vectors import FLOAT

# The mean cosine of the same texts. Quantized once more, MiniLM in q8_0 keeps 0.97 of itself as
# q4_0 and 0.96 as q2_k; with the words of its vocabulary confused it is at 0.01.
LIKE = 0.9

TEXTS = (
    "The harbour had two clocks.",
    "One winter the council decided.",
    "It ran slow.",
    "How do I change the oil of a tractor?",
    "Quarterly revenue grew by four percent, less than had been expected.",
    "for index in range(10): print(index)",
    "Der Zug nach Basel hat zwanzig Minuten Verspätung.",
    "Patients were given either the drug or a placebo for twelve weeks.",
)

Vector = tuple[float, ...]


def unpacked(rows: Iterable[bytes]) -> list[Vector]:
    """From little-endian float32."""
    return [struct.unpack(f"<{len(row) // FLOAT}f", row) for row in rows]


def finite(vectors: Iterable[Vector]) -> bool:
    """Whether all that they hold is numbers."""
    return all(math.isfinite(number) for vector in vectors for number in vector)


def sound(vectors: Sequence[Vector]) -> bool:
    """Whether they are `finite`, and none is of length 0."""
    return finite(vectors) and all(any(vector) for vector in vectors)


def likeness(ours: Sequence[Vector], theirs: Sequence[Vector]) -> float:
    """The mean cosine of `sound` vectors of the same texts, -1 to 1; 0 where their dimensions
    differ."""
    if not ours or len(ours) != len(theirs) or len(ours[0]) != len(theirs[0]):
        return 0.0
    return sum(map(_cosine, ours, theirs)) / len(ours)


def _cosine(one: Vector, other: Vector) -> float:
    return math.fsum(map(operator.mul, one, other)) / (math.hypot(*one) * math.hypot(*other))

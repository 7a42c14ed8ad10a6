"""Writes GGUF files, version 3 (ggml's `gguf.md` is the source of the layout).

Knows bytes and alignment; what the tensors and keys mean is the caller's affair.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 32
F32, Q4_0 = 0, 2
# Elements and bytes of one block of Q4_0: a scale in f16, and 32 numbers of four bits.
Q4_0_BLOCK = (32, 18)

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Tensor:
    """`shape` is in GGUF's order, the contiguous dimension first; `data()` makes the bytes when
    their turn comes, so that a file may be larger than the memory."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: Callable[[], bytes | np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of the data, without padding."""
        elements = int(np.prod(self.shape))
        return elements // Q4_0_BLOCK[0] * Q4_0_BLOCK[1] if self.kind == Q4_0 else 4 * elements


def write(path: Path, metadata: dict[str, Any], tensors: list[Tensor]) -> None:
    """Values may be bool, int (as u32), float (f32), str or bytes (text), or a list of one of
    these; a list of int becomes i32, which is what token types are."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        offset = 0
        for tensor in tensors:
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            file.write(_text(tensor.name) + shape + struct.pack("<IQ", tensor.kind, offset))
            offset += _padded(tensor.size)
        file.write(bytes(-file.tell() % ALIGNMENT))
        for tensor in tensors:
            written = file.write(tensor.data())
            if written != tensor.size:
                raise ValueError(f"{tensor.name}: {written} bytes, not {tensor.size}")
            file.write(bytes(_padded(written) - written))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if not isinstance(value, list):
        kind, raw = _scalar(value)
        return struct.pack("<I", kind) + raw
    kind = _INT32 if isinstance(value[0], int) else _scalar(value[0])[0]
    if kind == _INT32:
        raw = struct.pack(f"<{len(value)}i", *value)
    else:
        raw = b"".join(_scalar(item)[1] for item in value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + raw


def _scalar(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int():
            return _UINT32, struct.pack("<I", value)
        case float():
            return _FLOAT32, struct.pack("<f", value)
        case str() | bytes():
            return _STRING, _text(value)
    raise TypeError(f"no GGUF type for {value!r}")

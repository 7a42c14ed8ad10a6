"""What the tests of embeddings share: the real MiniLM, a reranker made from it, and references that
do not come from hxd."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import ROOT

MINILM = ROOT.parent / "shared/models/all-minilm-l6-v2-q8_0.gguf"
WIDTH = 384
CONTEXT = 512
needs_minilm = pytest.mark.skipif(
    not MINILM.exists(), reason=f"no {MINILM.name} in a folder shared/models beside the repository"
)

TEXTS = [
    "hello world",
    "The cat sits on the mat.",
    "A feline rests on a rug.",
    "Stock markets fell sharply on Tuesday after the central bank raised interest rates.",
    "Ärzte fanden 3 Öfen — naïve café, 東京 and a 🤗.",
    "x",
    "def add(a, b):\n    return a + b",
    "The quick brown fox jumps over the lazy dog. " * 20,
]

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_RANK = 4
_ALIGNMENT = 32


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def reference(texts: Sequence[str], *, pooling: int = -1) -> NDArray[np.float32]:
    """Vectors by llama-cpp-python's own class, not normalised, float32 [texts, width]."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(MINILM), embedding=True, pooling_type=pooling, n_ctx=CONTEXT, verbose=False
    )
    # Its embed leaves the spelling of control tokens as text.
    model.tokenize = partial(model.tokenize, special=True)
    try:
        return np.array([model.embed(text, normalize=False) for text in texts], dtype=np.float32)
    finally:
        model.close()


class Head:
    """A classification head with made-up weights, as BERT cross-encoders have one."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.dense = rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)
        self.dense_bias = rng.normal(0, 0.1, WIDTH).astype(np.float32)
        self.out = rng.normal(0, 0.3, (1, WIDTH)).astype(np.float32)
        self.out_bias = np.array([0.25], dtype=np.float32)

    def score(self, first_token: NDArray[np.float32]) -> float:
        hidden = np.tanh(self.dense @ first_token + self.dense_bias)
        return float((self.out @ hidden + self.out_bias)[0])

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {
            "cls.weight": self.dense,
            "cls.bias": self.dense_bias,
            "cls.output.weight": self.out,
            "cls.output.bias": self.out_bias,
        }


def write_reranker(target: Path, head: Head) -> None:
    """MiniLM with `head` on its first token, as a GGUF file that says it ranks."""
    data = MINILM.read_bytes()
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    at = start = 24
    metadata = bytearray()
    for _ in range(pairs):
        start = at
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode()
        at = _after_value(data, at + 8 + length)
        one = data[start:at]
        metadata += one[:-4] + struct.pack("<I", _RANK) if key == "bert.pooling_type" else one
    start = at
    for _ in range(tensors):
        (length,) = struct.unpack_from("<Q", data, at)
        (dimensions,) = struct.unpack_from("<I", data, at + 8 + length)
        at += 8 + length + 4 + 8 * dimensions + 4 + 8
    infos = bytearray(data[start:at])
    weights = bytearray(data[_aligned(at) :])
    added = head.tensors()
    for name, tensor in added.items():
        weights += bytes(_aligned(len(weights)) - len(weights))
        infos += struct.pack("<Q", len(name)) + name.encode()
        infos += struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        infos += struct.pack("<IQ", 0, len(weights))  # f32
        weights += tensor.tobytes()
    weights += bytes(_aligned(len(weights)) - len(weights))
    head_bytes = b"GGUF" + struct.pack("<IQQ", version, tensors + len(added), pairs)
    start_bytes = head_bytes + metadata + infos
    padding = bytes(_aligned(len(start_bytes)) - len(start_bytes))
    target.write_bytes(start_bytes + padding + weights)


def write_confused(target: Path) -> None:
    """MiniLM that takes each word for another: as whole as the real one, and of no use."""
    data = bytearray(MINILM.read_bytes())
    _, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    at, words = 24, None
    for _ in range(pairs):
        (length,) = struct.unpack_from("<Q", data, at)
        at = _after_value(data, at + 8 + length)
    for _ in range(tensors):
        (length,) = struct.unpack_from("<Q", data, at)
        name = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        (dimensions,) = struct.unpack_from("<I", data, at)
        shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)
        (offset,) = struct.unpack_from("<Q", data, at + 4 + 8 * dimensions + 4)
        at += 4 + 8 * dimensions + 4 + 8
        if name == "token_embd.weight":
            words = offset, shape[1]
    assert words is not None
    row = WIDTH // 32 * 34  # q8_0: 32 weights in 34 bytes
    start, size = _aligned(at) + words[0], words[1] * row
    embedding = data[start : start + size]
    data[start : start + size] = embedding[1000 * row :] + embedding[: 1000 * row]
    target.write_bytes(data)


def write_renamed(target: Path) -> None:
    """MiniLM with another byte in its name, and the same vectors."""
    data = MINILM.read_bytes()
    key = b"general.name" + struct.pack("<I", _STRING)
    at = data.index(key) + len(key) + 8
    target.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT


def _after_value(data: bytes | bytearray, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at)
    at += 4
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return int(at + 8 + length)
    if kind != _ARRAY:
        return at + _SIZES[kind]
    element, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if element != _STRING:
        return int(at + count * _SIZES[element])
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
    return at

"""Tiny model files in the formats from before GGUF, with random weights that never change.

Which tensors a family has is taken from `hxd.ggml.layouts`; that those are right is shown by the
library, which loads the files.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hxd.ggml.layouts import Layout, layout_of, sizes_of, tensors_of

MAGIC = {"llama": b"tjgg", "falcon": b"ccgg"}
VERSION = {"llama": 3, "falcon": 10}
COMMON = [b"the", b" the", b" and", b"ing", b" of", b"er", b" to", b"hello", b" world", b"  "]
END = b"<|endoftext|>"
SPECIAL = {
    "dolly-v2": [b"### End", b"### Instruction:", b"### Response:\n"],
    "starcoder": [b"<fim-prefix>", b"<fim-middle>", b"<fim-suffix>", b"<|end|>"],
    "mpt": [b"<|im_start|>", b"<|im_end|>"],
}
SIZES = {
    "context": 128, "width": 64, "heads": 4, "layers": 2, "rotated": 8, "parallel": 1,
    "multiple": 32, "kv_heads": 1, "kind": 7, "ftype": 0, "alibi": 8, "clip": 0,
}  # fmt: skip


def vocabulary(family: str) -> list[bytes]:
    """Every byte is a word, and some longer ones are."""
    single = [bytes([byte]) for byte in range(256)]
    if family == "llama":
        return [b"\xe2\x81\x87", b"", b"", *single, *COMMON]
    if family == "falcon":
        names = [b">>%d<<" % number for number in range(11)]
        return [*names, END, *single, *COMMON]
    if family == "replit":
        spaced = [word.replace(b" ", "▁".encode()) for word in COMMON]
        return [b"<unk>", END, *(byte for byte in single if byte != b" "), "▁".encode(), *spaced]
    return [END, *single, *COMMON, *SPECIAL.get(family, [])]


def write(path: Path, family: str, *, seed: int = 1, **sizes: int) -> Path:
    """A file of `family`; `sizes` replace those of `SIZES`. Weights are f32, f16 with `ftype=1`,
    or q8_0 with `ftype=2007` (7 for Llama and Falcon)."""
    path.write_bytes(content(family, seed=seed, **sizes))
    return path


def content(family: str, *, seed: int = 1, **sizes: int) -> bytes:
    layout = layout_of(family)
    words = vocabulary(family)
    hyper = SIZES | {"vocab": len(words), "merges": 0} | sizes
    if family != "falcon":
        del hyper["kind"], hyper["kv_heads"]
    if family == "llama":
        hyper["rotated"] = sizes.get("rotated", hyper["width"] // hyper["heads"])
    parts = [MAGIC.get(family, b"lmgg")]
    if family in VERSION:
        parts.append(number(VERSION[family]))
    parts += [
        struct.pack("<f", hyper[name]) if name in layout.floats else number(hyper[name])
        for name in layout.fields
    ]
    if layout.counted:
        parts.append(number(hyper["vocab"]))
    for id, word in enumerate(words):
        spelled = word.decode("latin-1").encode() if family == "mpt" else word
        parts.append(number(len(spelled)) + spelled)
        if layout.scored:
            parts.append(struct.pack("<f", -float(id)))
    if layout.merges:
        parts.append(merges())
    data = b"".join(parts)
    random = np.random.default_rng(seed)
    for name, shape in shapes(layout, hyper).items():
        data += tensor(name, weights(random, name, shape), hyper["ftype"], len(data), layout)
    return data


def shapes(layout: Layout, hyper: dict[str, int]) -> dict[str, list[int]]:
    """Every tensor with its dimensions, the one of rows' elements first."""
    sizes = sizes_of(layout, hyper)
    inner = 8 * hyper["width"] // 3
    multiple = hyper["multiple"]
    sizes.setdefault("F", -(-inner // multiple) * multiple)
    sizes.setdefault("K", hyper["width"])
    found = {}
    for name, letters in tensors_of(layout, hyper).items():
        for layer in range(hyper["layers"] if "*" in name else 1):
            found[name.replace("*", str(layer))] = [sizes[letter] for letter in letters]
    return found


def merges() -> bytes:
    """Pairs that make ` the` and `hello`, in the spelling of byte-level BPE."""
    pairs = ["t h", "th e", "Ġ the", "l l", "h e", "he ll", "hell o"]
    spelled = [[word.encode() for word in pair.split()] for pair in pairs]
    return number(len(pairs)) + b"".join(
        number(len(word)) + word for pair in spelled for word in pair
    )


def weights(random: np.random.Generator, name: str, shape: list[int]) -> NDArray[np.float32]:
    """Of a scale at which the next token depends on all that came before."""
    if len(shape) == 1:
        scale = 1.0 if name.endswith(("weight", "/g")) else 0.0
        return np.asarray(scale + 0.1 * random.standard_normal(shape), dtype=np.float32)
    rows, columns = shape[1], shape[0]
    spread = 1.0 if "te" in name or "pe" in name else 2.0 / np.sqrt(columns)
    return np.asarray(spread * random.standard_normal((rows, columns)), dtype=np.float32)


def tensor(name: str, values: NDArray[np.float32], ftype: int, at: int, layout: Layout) -> bytes:
    whole = values.ndim == 1 or name in layout.full
    kind, data = STORED[0 if whole else ftype % 1000](values)
    shape = values.shape[::-1]
    head = struct.pack(f"<iii{len(shape)}i", len(shape), len(name), kind, *shape) + name.encode()
    padding = b"\0" * (-(at + len(head)) % 32) if layout.aligned else b""
    return head + padding + data


def q8_0(values: NDArray[np.float32]) -> bytes:
    """Blocks of 32 values: their scale as float16, and each as a signed byte."""
    blocks = values.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    steps = np.rint(blocks / scales).astype(np.int8)
    return np.hstack([scales.astype(np.float16).view(np.int8), steps]).tobytes()


# By ftype: the type id that stands at the tensor, and its data.
STORED = {
    0: lambda values: (0, values.tobytes()),
    1: lambda values: (1, values.astype(np.float16).tobytes()),
    7: lambda values: (8, q8_0(values)),
}


def number(value: int) -> bytes:
    return struct.pack("<i", value)

"""Reads one older file in one layout, with every number checked before it is used.

What the library does not check and must hold all the same is checked here: it divides by what the
header says, multiplies in 32 bits, and keeps two dimensions on its stack.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from hxd.ggml.layouts import (
    FALCON,
    FALCON_LAYERS,
    MAGICS,
    VERSIONS,
    Layout,
    sizes_of,
    tensors_of,
)
from hxd.gguf import BLOCKS, Cursor, ModelFileError

BLOCK = 1 << 16
MAX_WORD = 1 << 12
MAX_MERGES = 1 << 18
MAX_NAME = 1 << 8
MAX_ELEMENTS = (1 << 31) - 1
# With one head the library reads beyond its tensors.
LIMITS = {
    "vocab": (1, 1 << 17), "context": (1, 1 << 20), "layers": (1, 1 << 8), "width": (1, 1 << 20),
    "heads": (2, 1 << 14), "kv_heads": (1, 1 << 14), "rotated": (1, 1 << 14),
    "multiple": (1, 1 << 20),
}  # fmt: skip
# The library has fixed ids for control tokens of these families: so many words there must be.
LEAST_WORDS = {"llama": 3, "falcon": 12}

_I32 = struct.Struct("<i")
_F32 = struct.Struct("<f")
# A layer's number in the name of a tensor.
_LAYER = re.compile(r"(?<=/h)(?:0|[1-9]\d{0,3})(?=/)|(?<=\.)(?:0|[1-9]\d{0,3})(?=\.)", re.ASCII)

# ggml.h's ftype to the variant's name and the type id of its weights.
_FILE_TYPES = {
    0: ("f32", 0), 1: ("f16", 1), 2: ("q4_0", 2), 3: ("q4_1", 3), 7: ("q8_0", 8), 8: ("q5_0", 6),
    9: ("q5_1", 7), 10: ("q2_k", 10), 11: ("q3_k", 11), 12: ("q4_k", 12), 13: ("q5_k", 13),
    14: ("q6_k", 14),
}  # fmt: skip
# llama.h's, whose numbers differ from 11 on: there are mixtures. Type ids stand at the tensors.
_MIXED_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k",
}  # fmt: skip
_TYPES = frozenset(kind for _, kind in _FILE_TYPES.values())
# Thousands of ftype: how the weights are quantized. ggml raised it with its pull requests 1405
# and 1508, and reads no weights from before.
_QUANTIZATION = 2


class Reader:
    """One file from its beginning: call `start`, `words`, `merges` and `tensors`, in this order.
    Each raises `ModelFileError`; `at` says how many bytes were understood."""

    def __init__(self, file: io.BufferedReader, layout: Layout) -> None:
        self._cursor = Cursor(file)
        self._layout = layout
        self.hyper: dict[str, int] = {}

    @property
    def at(self) -> int:
        return self._cursor.at

    @property
    def size(self) -> int:
        return self._cursor.size

    def start(self) -> None:
        """Everything before the first word."""
        magic = self._cursor.read(4)
        version = self._number() if magic in VERSIONS else 0
        if magic in VERSIONS and version not in VERSIONS[magic]:
            raise ModelFileError(f"{MAGICS[magic]} of version {version} is not known")
        # GGMF came before GGJT's version 1; both have versions of their own.
        self.version = version if magic != b"fmgg" else 0
        for name in self._layout.fields:
            if name in self._layout.floats:
                self._cursor.skip(_F32.size)
            else:
                self.hyper[name] = self._number()
        _check(self._layout, self.hyper)
        self.file_type, self._kind = self._file_type()
        if self._layout.counted and (again := self._number()) != self.hyper["vocab"]:
            raise ModelFileError(f"the header says {self.hyper['vocab']} words and then {again}")

    def words(self) -> Iterator[tuple[bytes, float]]:
        """Words with their scores, by id."""
        if self._layout.scored:
            for word, score in self._strings(self.hyper["vocab"], _F32.size):
                yield word, _F32.unpack(score)[0]
        else:
            for word, _ in self._strings(self.hyper["vocab"], 0):
                yield word, 0.0

    def merges(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of words, by rank."""
        if not self._layout.merges:
            return
        count = self._number()
        if not 0 <= count <= MAX_MERGES:
            raise ModelFileError(f"{count} merges in the header; the limit is {MAX_MERGES}")
        strings = self._strings(2 * count, 0)
        for (left, _), (right, _) in zip(strings, strings, strict=True):
            yield left, right

    def tensors(self) -> tuple[int, dict[str, int]]:
        """How many there are, and what the letters of their dimensions stand for."""
        expected = tensors_of(self._layout, self.hyper)
        sizes = sizes_of(self._layout, self.hyper)
        seen: set[str] = set()
        while self.at < self.size:
            dimensions, length, kind = self._number(), self._number(), self._number()
            if not 1 <= dimensions <= 2:
                raise ModelFileError(f"a tensor of {dimensions} dimensions; 1 and 2 are known")
            if not 1 <= length <= MAX_NAME:
                raise ModelFileError(f"a tensor's name of {length} bytes; the limit is {MAX_NAME}")
            shape = [self._number() for _ in range(dimensions)]
            name = self._cursor.read(length).decode("utf-8", "replace")
            if name in seen:
                raise ModelFileError(f"the tensor {name!r} is there twice")
            seen.add(name)
            self._check_shape(name, shape, expected, sizes)
            self._skip_data(name, shape, kind)
        for name in _names(expected, self.hyper["layers"]):
            if name not in seen and name not in self._layout.optional:
                raise ModelFileError(f"the tensor {name!r} is missing")
        return len(seen), sizes

    def _number(self) -> int:
        value: int = self._cursor.take(_I32)
        return value

    def _strings(self, count: int, tail: int) -> Iterator[tuple[bytes, bytes]]:
        """Strings, each with the `tail` bytes behind it. By blocks: there are a hundred thousand,
        and a read for each would take most of the time."""
        block, at = b"", 0
        try:
            for _ in range(count):
                if len(block) - at < _I32.size:
                    block, at = self._more(block[at:], _I32.size), 0
                (length,) = _I32.unpack_from(block, at)
                if not 0 <= length <= MAX_WORD:
                    raise ModelFileError(f"a word of {length} bytes; the limit is {MAX_WORD}")
                whole = _I32.size + length + tail
                if len(block) - at < whole:
                    block, at = self._more(block[at:], whole), 0
                end = at + whole
                yield block[at + _I32.size : end - tail], block[end - tail : end]
                at = end
        finally:
            self._cursor.skip(at - len(block))

    def _more(self, rest: bytes, wanted: int) -> bytes:
        """`rest` and the next block of the file, `wanted` bytes at least."""
        return rest + self._cursor.read(max(wanted - len(rest), min(BLOCK, self.size - self.at)))

    def _file_type(self) -> tuple[str, int | None]:
        """Name of the variant, and the type id of its weights where all have the same."""
        ftype = self.hyper["ftype"]
        if not self._layout.uniform:
            old = ftype > 1 if self.version < 2 else self.version < 3 and ftype in (2, 3, 7)
            if old and "llama" in self._layout.families:
                raise ModelFileError("quantized in a format that is no longer read")
            return _MIXED_FILE_TYPES.get(ftype, "unknown"), None
        quantization, ftype = divmod(ftype, 1000)
        if ftype not in _FILE_TYPES:
            raise ModelFileError(f"weights of the unknown type {ftype}")
        name, kind = _FILE_TYPES[ftype]
        if kind > 1 and quantization != _QUANTIZATION:
            raise ModelFileError(
                f"quantized in version {quantization} of the format; {_QUANTIZATION} is read"
            )
        return name, kind

    def _check_shape(
        self,
        name: str,
        shape: list[int],
        expected: dict[str, tuple[str, ...]],
        sizes: dict[str, int],
    ) -> None:
        """Completes `sizes` where a dimension is seen that the header leaves open."""
        layer = _LAYER.search(name)
        pattern = f"{name[: layer.start()]}*{name[layer.end() :]}" if layer else name
        letters = expected.get(pattern)
        if letters is None or (layer and int(layer[0]) >= self.hyper["layers"]):
            raise ModelFileError(f"{name!r} is no tensor of {' or '.join(self._layout.families)}")
        if len(letters) == len(shape) and min(shape) > 0:
            for letter, extent in zip(letters, shape, strict=True):
                sizes.setdefault(letter, extent)
        if shape != [sizes.get(letter) for letter in letters]:
            raise ModelFileError(f"the tensor {name!r} is {shape}, not {' x '.join(letters)}")

    def _skip_data(self, name: str, shape: list[int], kind: int) -> None:
        whole = len(shape) == 1 or name in self._layout.full
        wanted = 0 if whole else kind if self._kind is None else self._kind
        if kind not in _TYPES or kind != wanted:
            raise ModelFileError(f"the tensor {name!r} has the type {kind}")
        per_block, block_bytes = BLOCKS[kind]
        if shape[0] % per_block:
            raise ModelFileError(f"the tensor {name!r} has rows of {shape[0]}, not whole blocks")
        if self._layout.aligned and self.version:
            self._cursor.skip(-self.at % 32)
        elements = shape[0] * shape[-1] if len(shape) == 2 else shape[0]
        data = elements // per_block * block_bytes
        if data > self.size - self.at:
            missing = data - (self.size - self.at)
            raise ModelFileError(
                f"truncated: the tensor {name!r} ends {missing} bytes past the end of the file"
            )
        self._cursor.skip(data)


def _names(expected: dict[str, tuple[str, ...]], layers: int) -> Iterator[str]:
    for pattern in expected:
        if "*" in pattern:
            yield from (pattern.replace("*", str(layer)) for layer in range(layers))
        else:
            yield pattern


def _check(layout: Layout, hyper: dict[str, int]) -> None:
    for name, (low, high) in LIMITS.items():
        if name in hyper and not low <= hyper[name] <= high:
            raise ModelFileError(f"{name} is {hyper[name]} in the header; {low} to {high} can be")
    vocab, width, heads, layers = (hyper[n] for n in ("vocab", "width", "heads", "layers"))
    if width % heads:
        raise ModelFileError(f"a width of {width} can't be divided among {heads} heads")
    if heads % hyper.get("kv_heads", heads):
        raise ModelFileError(f"{heads} heads can't share {hyper['kv_heads']}")
    head = width // heads
    # Falcon's header does not say it: whole heads are rotated, and halves of them together.
    rotated = hyper.get("rotated", head if "kind" in hyper else 0)
    if rotated % 2 or rotated > head or ("llama" in layout.families and rotated != head):
        raise ModelFileError(f"{rotated} of the {head} values of a head are said to be rotated")
    if max(vocab, 4 * width, hyper.get("context", 1) * layers) * width > MAX_ELEMENTS:
        raise ModelFileError("the dimensions in the header give products that overflow")
    least = max(LEAST_WORDS.get(family, 1) for family in layout.families)
    if vocab < least:
        raise ModelFileError(f"{vocab} words in the header; {least} are control tokens already")
    if "kind" in hyper:
        kind = hyper["kind"]
        if kind not in FALCON or FALCON_LAYERS.get(layers, kind) != kind:
            raise ModelFileError(f"no Falcon is of kind {kind} with {layers} layers")

"""Tensors in safetensors files: where each lies, checked, and their values a few rows at a time.

A file is 8 bytes of length, a JSON header of that length, and the tensors one after the other
without gaps: https://huggingface.co/docs/safetensors. The header is hostile until checked.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import NotConvertible

from .folder import Folder, parse

MAX_HEADER = 100_000_000  # bytes; what the reference implementation allows
MAX_INDEX = 64 << 20
MAX_SHARDS = 1000
MAX_TENSORS = 1_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes per value, of types whose sizes can be checked.
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """`start` and `bytes` are of the file behind `descriptor`; `type` as safetensors has it."""

    name: str
    file: str
    descriptor: int
    type: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    def raw(self, first: int, count: int) -> NDArray[Any]:
        """`count` rows from `first` as they are stored, BF16 as its bits; of a vector, values."""
        stored = STORED[self.type]
        width = math.prod(self.shape[1:])
        length = count * width * stored.itemsize
        data = bytearray(length)
        view, at = memoryview(data), self.start + first * width * stored.itemsize
        while view:
            got = os.preadv(self.descriptor, [view], at)
            if got == 0:
                raise NotConvertible(f"{self.file} became shorter while it was read")
            view, at = view[got:], at + got
        return np.frombuffer(data, stored).reshape(count, width)


class Tensors:
    """All of a model's, by name. Holds its files open until `close`."""

    def __init__(self, folder: Folder) -> None:
        self._open: list[int] = []
        self._all: dict[str, Tensor] = {}
        try:
            places = _places(folder)
            for file, expected in places.items():
                self._add(folder, file, expected)
        except BaseException:
            self.close()
            raise

    def _add(self, folder: Folder, file: str, expected: set[str] | None) -> None:
        try:
            descriptor = folder.open(file)
        except FileNotFoundError:
            raise NotConvertible(f"{file} is missing; download it again") from None
        self._open.append(descriptor)
        found = read_header(descriptor, file)
        for name in sorted((expected or set()) - set(found)):
            raise NotConvertible(f"{file} has no tensor {name!r}, which {INDEX} promises")
        for name, tensor in found.items():
            if name in self._all:
                raise NotConvertible(
                    f"the tensor {name!r} is in {self._all[name].file} and in {file}"
                )
            self._all[name] = tensor
        if len(self._all) > MAX_TENSORS:
            raise NotConvertible(f"over {MAX_TENSORS} tensors")

    def get(self, name: str) -> Tensor | None:
        return self._all.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())


def _places(folder: Folder) -> dict[str, set[str] | None]:
    """Which files there are, and the tensors that an index says are in each."""
    if folder.has(INDEX):
        found = folder.json(INDEX, MAX_INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise NotConvertible(f"{INDEX} has no weight_map")
        places: dict[str, set[str] | None] = {}
        for tensor, file in found.items():
            if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
                raise NotConvertible(f"{INDEX}: {str(file)[:200]!r} is not a safetensors file here")
            there = places.setdefault(file, set())
            assert there is not None
            there.add(tensor)
        if len(places) > MAX_SHARDS:
            raise NotConvertible(f"{INDEX} names {len(places)} files; {MAX_SHARDS} are possible")
        return dict(sorted(places.items()))
    if folder.has(SINGLE):
        return {SINGLE: None}
    files = [name for name in folder.names() if name.endswith(".safetensors")]
    if len(files) != 1:
        raise NotConvertible(f"{len(files)} safetensors files and no {INDEX} that says how they go "
                             "together; download the folder whole")  # fmt: skip
    return {files[0]: None}


def read_header(descriptor: int, file: str) -> dict[str, Tensor]:
    """Every tensor of one file; raises `NotConvertible`."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or not 2 <= length <= MAX_HEADER:
        raise NotConvertible(
            f"{file} is no safetensors file: it announces {length} bytes of header"
        )
    if 8 + length > size:
        raise NotConvertible(f"{file} is truncated: its header ends {8 + length - size} bytes past "
                             "the end of the file; download it again")  # fmt: skip
    header = parse(os.pread(descriptor, length, 8), f"the header of {file}")
    header.pop("__metadata__", None)
    base = 8 + length
    found = {
        name: _tensor(name, entry, file, descriptor, base, size) for name, entry in header.items()
    }
    at = base
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != at:
            how = "overlaps the one before it" if tensor.start < at else "leaves a gap before it"
            raise NotConvertible(f"{file}: the tensor {tensor.name!r} {how}")
        at += tensor.bytes
    if at != size:
        raise NotConvertible(f"{file}: {size - at} bytes after the last tensor")
    return found


def _tensor(name: str, entry: Any, file: str, descriptor: int, base: int, size: int) -> Tensor:
    where = f"{file}: the tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise NotConvertible(f"{where} is not described")
    type, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_numbers(shape) and len(shape) <= 8 and _numbers(offsets) and len(offsets) == 2):
        raise NotConvertible(f"{where} has no valid shape and data_offsets")
    if not isinstance(type, str):
        raise NotConvertible(f"{where} has no dtype")
    start, end = offsets
    if start > end:
        raise NotConvertible(f"{where} ends before it begins")
    if base + end > size:
        raise NotConvertible(
            f"{file} is truncated: the tensor {name!r} ends {base + end - size} bytes past the end "
            "of the file; download it again"
        )
    if type in _SIZES and math.prod(shape) * _SIZES[type] != end - start:
        raise NotConvertible(f"{where} has {end - start} bytes, which {type} {shape} has not")
    return Tensor(name, file, descriptor, type, tuple(shape), base + start, end - start)


def _numbers(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 62 for one in found
    )

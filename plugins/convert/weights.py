"""The tensors of a model: those that it must have, found in the source, and their bytes as they are
written, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import NotConvertible

from .tensors import STORED, Tensor, Tensors

CHUNK = 8 << 20  # bytes as float32
TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# Bits of the exponent, all of which stand for what is no finite number.
_NOT_FINITE = {"F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Entry:
    """A tensor that a model must have: its `name` in the file and in the source. `heads`: rows are
    permuted inside each of that many. `exact`: float32 in any case. `hint` goes on after "is
    missing"."""

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0
    exact: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Part:
    """An entry with what was found for it, and the type that it is written as."""

    name: str
    source: Tensor
    shape: tuple[int, ...]
    type: str
    heads: int = 0

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * (4 if self.type == "f32" else 2)


def choose(tensors: Tensors) -> str:
    """The type that loses nothing, where there is one of half the size of float32; else f16."""
    types = {found.type for name in tensors if (found := tensors.get(name)) is not None}
    return "bf16" if "BF16" in types else "f16"


def plan(
    entries: Iterable[Entry], spare: Callable[[str], bool], tensors: Tensors, weights: str
) -> list[Part]:
    """Every tensor of the file in its order; `spare` are those that may be left out. Raises
    `NotConvertible` where one is missing, has another shape or type than the configuration says,
    or is left over."""
    parts = []
    used = set()
    for entry in entries:
        source = tensors.get(entry.source)
        if source is None:
            raise NotConvertible(f"the tensor {entry.source!r} is missing{entry.hint}")
        if source.shape != entry.shape:
            raise NotConvertible(
                f"the tensor {entry.source!r} is {list(source.shape)}; by config.json it is "
                f"{list(entry.shape)}"
            )
        if source.type not in STORED:
            raise NotConvertible(
                f"the tensor {entry.source!r} is {source.type}; F32, F16 and BF16 are converted. A "
                "quantized model can't be: take the one that it was made from"
            )
        used.add(entry.source)
        # Vectors are few, and llama.cpp computes with them as float32.
        exact = entry.exact or len(entry.shape) == 1
        type = "f32" if exact else weights
        parts.append(Part(entry.name, source, entry.shape, type, entry.heads))
    left = sorted(name for name in tensors if name not in used and not spare(name))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise NotConvertible(
            f"the tensor {left[0][:200]!r}{more} has no place in this architecture; the model is "
            "not what config.json says, or more than that"
        )
    return parts


def written(part: Part) -> Iterator[NDArray[Any]]:
    """The tensor's values as they stand in the file, in order. Raises `NotConvertible` for values
    that are no numbers, or that the type can't hold."""
    rows = part.shape[0]
    width = int(np.prod(part.shape[1:]))
    block = rows // part.heads if part.heads else 1
    # Whole heads at a time, since rows change places inside them.
    step = max(1, CHUNK // (4 * width * block)) * block
    for first in range(0, rows, step):
        count = min(step, rows - first)
        values = part.source.raw(first, count)
        if part.heads:
            values = _in_pairs(values, block)
        yield _as(values, part)


def _in_pairs(values: NDArray[Any], head: int) -> NDArray[Any]:
    """From two halves of a head that turn together to neighbours that do."""
    halves = values.reshape(-1, 2, head // 2, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _as(values: NDArray[Any], part: Part) -> NDArray[Any]:
    stored = part.source.type
    _check(values, stored, part)
    if TYPES[stored] == part.type:
        return values
    floats = (values.astype("<u4") << 16).view("<f4") if stored == "BF16" else values.astype("<f4")
    if part.type == "f32":
        return floats
    if part.type == "f16":
        with np.errstate(over="ignore", under="ignore"):
            made = floats.astype("<f2")
        if not np.isfinite(made).all():
            raise _too_large(part)
        return made
    bits = floats.view("<u4")
    # To the nearest, and of two to the even one.
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    if ((rounded & _NOT_FINITE["BF16"]) == _NOT_FINITE["BF16"]).any():
        raise _too_large(part)
    return rounded


def _check(values: NDArray[Any], stored: str, part: Part) -> None:
    if stored == "F32":
        bad = not np.isfinite(values).all()
    else:
        mask = _NOT_FINITE[stored]
        bad = bool(((values.view("<u2") & mask) == mask).any())
    if bad:
        raise NotConvertible(
            f"the tensor {part.source.name!r} in {part.source.file} has values that are no finite "
            "numbers: the file is damaged, or the model is"
        )


def _too_large(part: Part) -> NotConvertible:
    other = "bf16" if part.type == "f16" else "f32"
    return NotConvertible(
        f"the tensor {part.source.name!r} has values that {part.type} can't hold; take --as {other}"
    )

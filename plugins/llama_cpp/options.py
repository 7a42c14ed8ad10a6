"""What an operator may set in `[models.NAME.options]` for this plugin, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# ggml's type ids of KV caches, from ggml.h.
KV_TYPES = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2,
    "iq4_nl": 20,
}  # fmt: skip
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
SPECULATION = ("ngram", "off")
POOLING = ("none", "mean", "cls", "last", "rank")


@dataclass(frozen=True)
class Options:
    """`batch`: tokens in one step at most; `ubatch`: of those computed at once. `kv_cache`: auto,
    split or unified; `cells`: KV cells for all sequences together, 0 for slots times context.
    `cached_prompts`: room for prompts kept for others to share, besides that of the slots; None is
    as many as fit the kind of cache, 0 switches sharing off. `lora`: adapter files with their
    scales."""

    batch: int = 512
    ubatch: int = 512
    gpu_layers: int = -1
    kv_cache: str = "auto"
    cells: int = 0
    cached_prompts: int | None = None
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: str = "auto"
    speculate: str = "ngram"
    lora: tuple[tuple[Path, float], ...] = ()
    pooling: str | None = None

    def cache_type(self, name: str) -> int:
        return KV_TYPES[name]


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"option {name}: {value!r} is not an integer from {low} to {high}")
        return value

    return check


def _one_of(*names: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in names:
            raise ValueError(f"option {name}: {value!r} is not one of {', '.join(names)}")
        return str(value)

    return check


def _adapters(name: str, value: Any) -> tuple[tuple[Path, float], ...]:
    """A file, or a list of files and of `{ path = ..., scale = ... }`."""
    adapters = []
    for item in value if isinstance(value, list) else [value]:
        given = {"path": item} if isinstance(item, str) else item
        if not isinstance(given, dict) or not given.keys() <= {"path", "scale"}:
            raise ValueError(f"option {name}: {item!r} is not a file or {{ path, scale }}")
        path, scale = given.get("path"), given.get("scale", 1.0)
        if not isinstance(path, str) or not path:
            raise ValueError(f"option {name}: {item!r} names no file")
        if type(scale) not in (int, float) or not -100 <= scale <= 100:
            raise ValueError(f"option {name}: scale {scale!r} is not a number from -100 to 100")
        if not Path(path).is_file():
            raise ValueError(f"option {name}: no such file: {path}")
        adapters.append((Path(path), float(scale)))
    return tuple(adapters)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "batch": _integer(32, 8192),
    "ubatch": _integer(32, 8192),
    "gpu_layers": _integer(-1, 10000),
    "kv_cache": _one_of("auto", "split", "unified"),
    "cells": _integer(0, 1 << 26),
    "cached_prompts": _integer(0, 192),
    "kv_type_k": _one_of(*KV_TYPES),
    "kv_type_v": _one_of(*KV_TYPES),
    "flash_attention": _one_of(*FLASH_ATTENTION),
    "speculate": _one_of(*SPECULATION),
    "lora": _adapters,
    "pooling": _one_of(*POOLING),
}


def read(table: dict[str, Any]) -> Options:
    """Raises `ValueError` that names the option."""
    known = {field.name for field in fields(Options)}
    for name in table:
        if name not in known:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(sorted(known))}")
    options = Options(**{name: _CHECKS[name](name, value) for name, value in table.items()})
    quantized = options.kv_type_v not in ("f32", "f16", "bf16")
    if options.cells and options.kv_cache == "split":
        raise ValueError("option cells: only a unified kv_cache has a number of cells of its own")
    if quantized and options.flash_attention == "off":
        raise ValueError("option kv_type_v: a quantized V cache needs flash attention")
    return options

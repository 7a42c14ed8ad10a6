"""Rotary position embeddings: the base, and how a model was stretched to longer texts.

Older folders have `rope_theta` and `rope_scaling`, newer ones `rope_parameters` with both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hxd.hookspecs import NotConvertible

from .settings import FILE, Settings

BASE = 10_000.0  # what a folder means that names none


@dataclass(frozen=True)
class Rope:
    """`scaling` is as llama.cpp calls it; `factors` divide the frequencies one by one, where they
    are not empty. `original` is the context in tokens before the stretching."""

    base: float
    scaling: str | None = None
    factor: float = 1.0
    original: int = 0
    factors: tuple[float, ...] = ()


def rope(settings: Settings, head: int, context: int) -> Rope:
    """Raises `NotConvertible` for a way of stretching that llama.cpp has not, or that nobody has
    compared with the original."""
    new, old = settings.below("rope_parameters"), settings.below("rope_scaling")
    if new.found and old.found and new.found != old.found:
        raise NotConvertible(f"{FILE} has rope_parameters and another rope_scaling")
    scaling = new if new.found else old
    base = settings.number("rope_theta", scaling.number("rope_theta", BASE))
    for where in (settings, scaling):
        where.only("partial_rotary_factor", None, 1, 1.0)
    kind = scaling.found.get("rope_type", scaling.found.get("type", "default"))
    if kind == "default":
        return Rope(base)
    factor = scaling.number("factor")
    if kind == "linear":
        return Rope(base, "linear", factor)
    if kind == "llama3":
        return Rope(base, factors=_llama3(scaling, base, head, factor))
    if kind == "yarn":
        # Other values change numbers that the file can't carry.
        scaling.only("attention_factor", None)
        scaling.only("beta_fast", None, 32)
        scaling.only("beta_slow", None, 1)
        scaling.only("truncate", None, True)
        for key in ("mscale", "mscale_all_dim"):
            scaling.only(key, None, 0)
        original = scaling.count("original_max_position_embeddings", 1 << 31, context)
        return Rope(base, "yarn", factor, original)
    raise NotConvertible(
        f"{FILE}: rope scaling {str(kind)[:100]!r} is not converted; there are default, linear, "
        "llama3, yarn"
    )


def _llama3(scaling: Settings, base: float, head: int, factor: float) -> tuple[float, ...]:
    """Low frequencies are stretched by `factor`, high ones not, and those between in between: from
    the code that Meta published with Llama 3.1."""
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    original = scaling.count("original_max_position_embeddings", 1 << 31)
    if low >= high:
        raise scaling.wrong("low_freq_factor", "less than high_freq_factor")
    factors = []
    for pair in range(head // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / head)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            share = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - share) / factor + share))
    return tuple(factors)

"""Other quantizations of a GGUF file, through llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from . import native

# Variants by the names that they have in hxd; llama.h's llama_ftype has them in upper case.
VARIANTS = (
    "f16", "bf16", "q8_0", "q6_k", "q5_0", "q5_1", "q5_k_m", "q5_k_s", "q4_0", "q4_1", "q4_k_m",
    "q4_k_s", "iq4_xs", "iq4_nl", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip


def quantize(
    source: Path,
    target: Path,
    variant: str,
    threads: int,
    progress: Callable[[float, str], None],
) -> None:
    """Write `source` as `variant` to `target`; raises `RuntimeError` or `ValueError`."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    native.start()
    progress(0.0, f"quantizing {source.name} to {variant}")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{variant.upper()}")
    parameters.nthread = threads
    status = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    if status != 0:
        raise RuntimeError(f"llama.cpp can't quantize {source.name}: {native.last_words()}")

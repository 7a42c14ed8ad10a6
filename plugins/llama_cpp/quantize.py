"""Other quantizations of a GGUF file, through llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from . import native

# llama_ftype of llama.h, by the names that variants have in hxd.
VARIANTS = {
    name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    for name in (
        "f16", "bf16", "q8_0", "q6_k", "q5_0", "q5_1", "q5_k_m", "q4_0", "q4_1", "iq4_xs", "iq4_nl",
        "q3_k_m", "q2_k",
    )
    if hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
}  # fmt: skip
VARIANTS |= {
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q4_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "q5_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S,
    "q3_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_S,
    "q3_k_l": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_L,
}


def quantize(
    source: Path,
    target: Path,
    variant: str,
    threads: int,
    progress: Callable[[float, str], None],
) -> None:
    """Write `source` as `variant` to `target`; raises `RuntimeError` or `ValueError`."""
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(sorted(VARIANTS))}")
    native.start()
    progress(0.0, f"quantizing {source.name} to {variant}")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = VARIANTS[variant]
    parameters.nthread = threads
    status = llama_cpp.llama_model_quantize(
        bytes(source), bytes(target), ctypes.byref(parameters)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp can't quantize {source.name}: {native.last_words()}")

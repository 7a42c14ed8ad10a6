"""Other quantizations of a GGUF file, through llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from hxd import gguf

from . import native
from .quantize_log import QuantizeLog

# Variants by the names that they have in hxd; llama.h's llama_ftype has them in upper case.
VARIANTS = (
    "f16", "bf16", "q8_0", "q6_k", "q5_0", "q5_1", "q5_k_m", "q5_k_s", "q4_0", "q4_1", "q4_k_m",
    "q4_k_s", "iq4_xs", "iq4_nl", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip

# Of what is quantized already, which would lose more than its name says.
_REQUANTIZING = "requantizing"


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
    note = f"quantizing {source.name} to {variant}"
    progress(0.0, note)
    header = gguf.read_header(source)
    # Of a split model this is one file of several.
    log = QuantizeLog(
        header.size - header.start if header.metadata.get("split.count", 1) < 2 else 0
    )

    def listen(text: str) -> None:
        if (share := log.heard(text)) is not None:
            progress(share, note)

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{variant.upper()}")
    parameters.nthread = threads
    files = bytes(source), bytes(target)
    with native.heard(listen):
        status = llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters))
    if status != 0:
        words = native.last_words()
        if _REQUANTIZING in words:
            words += ". Quantize a version of the model with f16, bf16 or f32 weights"
        raise RuntimeError(f"llama.cpp can't quantize {source.name}: {words}")

"""GGUF models through llama.cpp: the hooks. Nothing here imports the library before it is needed.

`[models.NAME.options]`:

    batch            tokens in one decode step at most, prompts included; default 512
    ubatch           of those, tokens computed at once; default 512
    gpu_layers       layers to offload where llama.cpp was built for a GPU; -1 (default) is all
    cells            KV cells for all sequences together; 0 (default) is slots times context
    cached_prompts   prompts that stay in the KV cache for others to share; default 32, 0 is none
    kv_type_k, kv_type_v   f16 (default), f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl
    flash_attention  auto (default), on or off
    speculate        ngram (default): guess tokens that repeat the text, where it pays; or off
    lora             an adapter file, or a list of files and of { path = FILE, scale = 0.5 }
    pooling          serve as an embedding model: none, mean, cls, last or rank; default: as the
                     file says
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hxd.hookspecs import Backend, Description, hookimpl


@hookimpl
def hxd_describe() -> Description:
    return Description(
        formats=frozenset({"gguf"}), capabilities=frozenset({"generate", "quantize"})
    )


@hookimpl
def hxd_backend(options: dict[str, Any], path: Path | None) -> Backend:
    from .options import read

    checked = read(options)

    from .backend import LlamaCpp

    return LlamaCpp(checked)


@hookimpl
def hxd_quantize(
    source: Path,
    target: Path,
    variant: str,
    threads: int,
    progress: Callable[[float, str], None],
) -> bool:
    from .quantize import quantize

    quantize(source, target, variant, threads, progress)
    return True

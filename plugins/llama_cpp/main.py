"""GGUF models through llama.cpp: the hooks. Nothing here imports the library before it is needed.

`[models.NAME.options]`:

    batch            tokens in one decode step at most, prompts included; default 512, and 63 for
                     an embedding model on a CPU
    ubatch           of those, tokens computed at once; default 512
    gpu_layers       layers to offload where llama.cpp was built for a GPU; -1 (default) is all
    kv_cache         split: each sequence has cells of its own, which is faster for many long
                     sequences; unified: all share one lot, which saves memory where they have the
                     same beginning; auto (default) is split, or unified where cells is set
    cells            KV cells for all sequences together; 0 (default) is slots times context
    cached_prompts   prompts that stay in the KV cache besides those of idle slots, for others to
                     share; default 32 if unified, else 2; 0 switches sharing off
    kv_type_k, kv_type_v   f16 (default), f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl
    flash_attention  auto (default): as llama.cpp decides; or on, or off
    speculate        ngram (default): guess tokens that repeat the text, where it pays; or off
    lora             an adapter file, or a list of files and of { path = FILE, scale = 0.5 }
    pooling          serve as an embedding model: mean, cls, last, or rank for a reranker; default:
                     as the file says
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hxd import gguf
from hxd.hookspecs import Backend, Description, Embedder, hookimpl
from hxd.pooling import embeds

# Read by libgomp when it is loaded: how often a thread looks for the others before it sleeps. Left
# to itself it spins for milliseconds, and wherever something else needs a core, all threads burn
# theirs until the one that lost it is back: a tenth of the speed, seen with one busy process beside
# two threads on two cores. This many cost a few percent on an idle machine.
SPIN = "20000"
# A batch of embeddings is over in milliseconds: on a busy machine a text took 80 to 2,000 ms with
# the default, 25 with this, and no longer on an idle one (MiniLM, 2 threads on 2 cores).
SPIN_EMBEDDING = "1000"


@hookimpl
def hxd_describe() -> Description:
    return Description(
        formats=frozenset({"gguf"}), capabilities=frozenset({"generate", "embed", "quantize"})
    )


@hookimpl
def hxd_prepare() -> None:
    # Not llama_cpp itself: what it loads reads the spin count, which depends on the model.
    from hxd.kit import draw  # noqa: F401

    from . import constrain, slots, speculate  # noqa: F401


@hookimpl
def hxd_backend(options: dict[str, Any], path: Path | None) -> Backend | Embedder:
    from .options import read

    checked = read(options)
    if checked.pooling is not None or (path is not None and embeds(gguf.read_header(path))):
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_EMBEDDING)

        from .embedding import LlamaCppEmbedder

        return LlamaCppEmbedder(checked)

    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)

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

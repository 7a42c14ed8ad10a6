"""Whether a GGUF file holds a model that embeds or ranks, by its header alone.

The daemon asks in order to size a model and to admit calls to it, the llama_cpp plugin in order to
choose what serves it.
"""

from __future__ import annotations

from hxd.gguf import Header

# llama.cpp's names of architectures that only ever embed, without a key in the header to say so.
EMBEDDERS = frozenset({"gemma-embedding", "t5encoder"})


def embeds(header: Header) -> bool:
    """True for encoders, and for decoders whose header says how to pool (Qwen3-Embedding)."""
    meta, architecture = header.metadata, header.architecture
    pooling = meta.get(f"{architecture}.pooling_type")
    return (
        architecture in EMBEDDERS
        or meta.get(f"{architecture}.attention.causal") is False
        or (isinstance(pooling, int) and pooling > 0)
    )

"""GGUF models through llama.cpp: the hooks. Nothing here imports the library before it is needed.

`[models.NAME.options]`:

    batch        tokens in one decode step at most, prompts included; default 512
    gpu_layers   layers to offload where llama.cpp was built for a GPU; default: all
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hxd.hookspecs import Backend, Description, hookimpl

OPTIONS = {"batch": (32, 8192), "gpu_layers": (-1, 10000)}


@hookimpl
def hxd_describe() -> Description:
    return Description(
        formats=frozenset({"gguf"}), capabilities=frozenset({"generate", "quantize"})
    )


@hookimpl
def hxd_backend(options: dict[str, Any]) -> Backend:
    for name, value in options.items():
        if name not in OPTIONS:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(OPTIONS)}")
        low, high = OPTIONS[name]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"option {name}: {value!r} is not an integer from {low} to {high}")

    from .backend import LlamaCpp

    return LlamaCpp(**options)


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

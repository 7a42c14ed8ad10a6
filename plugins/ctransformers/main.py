"""Models from before GGUF, and Llama in GGUF, through ctransformers: the hooks. Nothing here
imports the library before it is needed.

`[models.NAME.options]`:

    family   what the model is, where its file does not say: dolly-v2, falcon, gpt2, gptj,
             gptneox, llama, mpt, replit or starcoder
    batch    tokens of a prompt in one step at most; default 64
"""

from __future__ import annotations

from typing import Any

from hxd.hookspecs import Backend, Description, hookimpl

BATCH = (1, 512)
OPTIONS = ("batch", "family")


@hookimpl
def hxd_describe() -> Description:
    return Description(formats=frozenset({"ggml", "gguf"}))


@hookimpl
def hxd_prepare() -> None:
    from . import backend  # noqa: F401


@hookimpl
def hxd_backend(options: dict[str, Any]) -> Backend:
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"unknown option {name!r}; there are {', '.join(OPTIONS)}")
    batch = options.get("batch", 64)
    if type(batch) is not int or not BATCH[0] <= batch <= BATCH[1]:
        raise ValueError(f"option batch: {batch!r} is not an integer from {BATCH[0]} to {BATCH[1]}")

    from .backend import CTransformers

    return CTransformers(options.get("family"), batch)

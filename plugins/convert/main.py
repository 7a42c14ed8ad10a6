"""Models as the Hugging Face Hub has them, in safetensors, become GGUF: the hooks.

Nothing of a model is run: no code that a folder brings, and no tensor is computed with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hxd.hookspecs import Description, hookimpl


@hookimpl
def hxd_describe() -> Description:
    return Description(formats=frozenset({"safetensors"}), capabilities=frozenset({"convert"}))


@hookimpl
def hxd_prepare() -> None:
    from . import convert  # noqa: F401


@hookimpl
def hxd_convert(
    source: Path,
    target: Path,
    name: str,
    weights: str | None,
    progress: Callable[[float, str], None],
) -> list[str]:
    from .convert import convert

    return convert(source, target, name, weights, progress)

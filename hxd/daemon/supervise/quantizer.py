"""Makes a quantized file of another one, in a worker that does nothing else and then ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hxd import wire
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.supervise import errand
from hxd.daemon.supervise.errand import ErrandError
from hxd.daemon.supervise.workers import PrepareError

# Private memory beyond the tensors that are at work: the library, and buffers of its threads.
_BESIDES = 1 << 30


async def quantize(
    plugin: Plugin,
    source: Path,
    target: Path,
    variant: str,
    told: Callable[[float, str], None],
    memory_limit: int | None = None,
    *,
    aside: bool = False,
) -> None:
    """As `errand.run`; raises `PrepareError`."""
    threads = len(os.sched_getaffinity(0))
    order = wire.Quantize(str(source), str(target), variant, threads)
    try:
        await errand.run(plugin, order, told, memory_limit, aside=aside)
    except ErrandError as error:
        raise PrepareError(f"can't make the variant {variant}: {error}") from None


def memory_for(size: int) -> int:
    """A bound in bytes for a model of `size` bytes. llama.cpp maps its source and holds a few
    tensors as float32 at a time, which is less than twice the file unless it is tiny."""
    return 2 * size + _BESIDES

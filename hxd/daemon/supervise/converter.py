"""Makes GGUF of a model in another format, in a worker that does nothing else and then ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hxd import wire
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.supervise import errand

# The plugin that converts; one of this name in [plugins] folders takes its place.
PLUGIN = "convert"
# Private memory in bytes: a vocabulary of 262,144 tokens and its merges take half a GiB as Python
# objects, and a tensor is at work a few MiB at a time.
MEMORY = 3 << 30
# Seconds: 400 GB on a disk that writes 20 MB/s.
DEADLINE = 20_000.0


async def convert(
    plugin: Plugin,
    source: Path,
    target: Path,
    name: str,
    weights: str | None,
    told: Callable[[float, str], None],
) -> list[str]:
    """Where the file differs from its source. As `errand.run`; raises `ErrandError`."""
    order = wire.Convert(str(source), str(target), str(name), weights)
    return await errand.run(plugin, order, told, MEMORY, aside=True, deadline=DEADLINE)

"""What a rollout leads to: sources compared, counted and named. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hxd.daemon.store.plugins import AUTO
from hxd.daemon.store.sources import Choice, Source


def same(one: Source, other: Source) -> bool:
    """Whether the workers of one could stand for those of the other."""
    return (
        one.version == other.version
        and one.variant == other.variant
        and one.file == other.file
        and one.plugin.digest == other.plugin.digest
        and one.context == other.context
        and _for_workers(one) == _for_workers(other)
    )


def akin(one: Source, other: Source) -> bool:
    """Whether both come of the same file, as it lies in the store, and so should answer alike. A
    file outside may have become another one."""
    return (
        one.held is not None
        and other.held is not None
        and (one.held.name, one.held.number) == (other.held.name, other.held.number)
    )


def _for_workers(source: Source) -> tuple[Any, ...]:
    settings = source.settings
    return (
        settings.slots, settings.threads, settings.memory_limit, settings.environment,
        settings.options,
    )  # fmt: skip


def identity(source: Source) -> tuple[str, int, str, str]:
    """Of a version and variant with its plugin, however often it is brought up."""
    return source.name, source.version, source.variant, source.plugin.digest


def pinned(choice: Choice, source: Source) -> Choice:
    """The choice that leads to just this source, wherever labels point later and whatever is
    installed. `choice` is what led to it, unless something else serves in its place."""
    plugin = source.plugin
    if (
        choice.version not in (None, source.version)
        or choice.variant not in (None, source.variant)
        or choice.plugin not in (None, AUTO, plugin.manifest.name, plugin.reference)
    ):
        choice = Choice(None, source.variant, source.settings.plugin)
    return Choice(
        choice.version if source.held is None else source.version,
        choice.variant,
        plugin.reference if plugin.source == "installed" else choice.plugin,
    )


def sized(source: Source, replicas: int) -> Source:
    return replace(source, settings=replace(source.settings, replicas=replicas))


def part(source: Source, share: float) -> int:
    """Workers for that share of the traffic, one at least."""
    return max(1, math.ceil(source.settings.replicas * share - 1e-9))


def named(source: Source) -> str:
    plugin = source.plugin.manifest
    return f"{source.reference} ({plugin.name} {plugin.version})"


def no_room(need: int, left: int) -> str:
    return (
        f"about {need / 1e6:.0f} MB are needed and {max(0, left) / 1e6:.0f} MB of the memory "
        "budget are left; use fewer slots, a smaller variant, or raise memory.budget"
    )

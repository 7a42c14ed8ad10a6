"""What the tests of rollouts share: releases without workers, swaps asked over HTTP and by hxctl,
clients that ask all the while and check every answer, and plugin versions that turn out bad."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hxd.config import ModelSettings
from hxd.daemon.request.deployment import Served
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.sources import Source
from hxd.pluginfile import PluginFile


@dataclass
class FakeGate:
    """As much of a gate as a catalog asks."""

    ready: bool = True
    hopeless: bool = False

    def able(self) -> bool:
        return self.ready


def a_source(name: str, **differs: Any) -> Source:
    """Of no file; `differs` are fields of `Source`."""
    manifest = PluginFile("fake", "1.0", 1, "main", formats=("none",), files={})
    plugin = Plugin(Path("fake"), manifest, "0" * 64)
    source = Source(name, ModelSettings(), plugin, None, 1, "f16", "f16", 2048, 100)
    return replace(source, **differs)


def a_release(name: str, *, ready: bool = True, **differs: Any) -> Served:
    gate: Any = FakeGate(ready)
    return Served(a_source(name, **differs), gate)

"""Looks whether the plugins in use are still what they were when their workers started: those go
on, but a new one would be refused, and the operator should know before one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hxd.clock import Clock
from hxd.daemon.events import Events
from hxd.daemon.store.plugins import Plugin
from hxd.pluginfile import PluginError

INTERVAL = 30.0


class PluginWatch:
    """`recheck` blocks, and raises `PluginError`; `problems` has what it said, by NAME@VERSION. It
    belongs to the event loop; `run` never ends by itself."""

    def __init__(
        self,
        in_use: Callable[[], Iterable[Plugin]],
        recheck: Callable[[Plugin], None],
        problems: dict[str, str],
        events: Events,
        clock: Clock,
    ) -> None:
        self._in_use = in_use
        self._recheck = recheck
        self._problems = problems
        self._events = events
        self._clock = clock
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        async with self._looking:
            plugins = {plugin.folder: plugin for plugin in self._in_use()}
            found = await asyncio.to_thread(self._found, list(plugins.values()))
            for reference, why in found.items():
                if self._problems.get(reference) != why:
                    self._events.record("plugin", reference, "changed", reason=why)
            for reference in self._problems.keys() - found.keys():
                self._events.record("plugin", reference, "well_again")
            self._problems.clear()
            self._problems.update(found)

    def _found(self, plugins: Iterable[Plugin]) -> dict[str, str]:
        found = {}
        for plugin in plugins:
            try:
                self._recheck(plugin)
            except PluginError as error:
                found[plugin.reference] = str(error)
        return found

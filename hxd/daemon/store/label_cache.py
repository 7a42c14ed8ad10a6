"""The store's labels as requests may ask for them: read from the disk when something has happened,
and never on a request's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.library import Library
from hxd.errors import HxdError

log = logging.getLogger("hxd.store")


class LabelCache:
    """`names` gives each served model and its name in the store. `run` reads anew after each
    `touch` and never ends by itself."""

    def __init__(self, library: Library, names: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._library = library
        self._names = names
        self._labels: dict[str, dict[str, int]] = {}
        self._touched = asyncio.Event()
        self._touched.set()

    def of(self, model: str) -> Mapping[str, int]:
        return self._labels.get(model, {})

    def touch(self) -> None:
        self._touched.set()

    async def run(self) -> None:
        while True:
            await self._touched.wait()
            self._touched.clear()
            names = list(self._names())
            self._labels = await asyncio.to_thread(self._read, names)

    def _read(self, names: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
        found = {}
        for model, name in names:
            try:
                found[model] = self._library.labels(name)
            except (StoreError, HxdError) as error:
                log.debug("no labels of %s: %s", name, error)
        return found

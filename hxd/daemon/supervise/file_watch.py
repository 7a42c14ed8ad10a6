"""Looks whether the files that workers have mapped are still what was checked before they were
loaded.

A version's file may be a hard link, and who edits the other name in place changes what workers
compute with, at that moment and without a word. Only that is looked for: a file that was replaced
or removed is another one than the mapped one, which nobody can touch any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from hxd.clock import Clock
from hxd.daemon.store import findings
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.library import Library
from hxd.daemon.store.sources import Source
from hxd.daemon.store.work import Work

log = logging.getLogger("hxd.supervise")

# Seconds. A look costs a few system calls for each file that did not change.
INTERVAL = 5.0


class FileWatch:
    """`in_use` gives what workers have loaded; `changed` is told once of each whose bytes are not
    what they were, and what about them, and `problems` has that by the sources' keys. It belongs to
    the event loop; `run` never ends by itself."""

    def __init__(
        self,
        in_use: Callable[[], Iterable[Source]],
        library: Library,
        changed: Callable[[Source, str], Awaitable[None]],
        problems: dict[str, str],
        clock: Clock,
    ) -> None:
        self._in_use = in_use
        self._library = library
        self._changed = changed
        self._clock = clock
        self._mapped: dict[str, dict[Path, tuple[int, int]]] = {}
        self._problems = problems

    async def run(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        sources = {
            source.key: source
            for source in self._in_use()
            if source.held is not None and source.variant == source.stored
        }
        self._mapped = {key: files for key, files in self._mapped.items() if key in sources}
        for key in self._problems.keys() - sources.keys():
            del self._problems[key]
        for key, source in sources.items():
            work = Work()
            mapped = self._mapped.setdefault(key, {})
            try:
                why = await asyncio.to_thread(self._wrong, source, mapped, work)
            except asyncio.CancelledError:
                work.stop()  # A large file may be in the middle of being hashed.
                raise
            known = self._problems.pop(key, None)
            if why is not None:
                self._problems[key] = why
                if known is None:
                    await self._changed(source, why)

    def _wrong(self, source: Source, mapped: dict[Path, tuple[int, int]], work: Work) -> str | None:
        """Of the first file that differs. What can't be read now may be read by who has it."""
        library, version = self._library, source.held
        assert version is not None
        try:
            _, manifest = version.part(source.stored)
            for file in version.files(source.stored):
                found = file.stat(follow_symlinks=False)
                same = found.st_dev, found.st_ino
                if mapped.setdefault(file, same) != same:
                    continue
                entry = manifest.files[file.name]
                why = findings.differs(library.tree, library.digests, file, entry, work)
                if why is not None and os.path.lexists(file):
                    return f"{file} {why}: it was changed in place while workers had it loaded"
        except (OSError, StoreError) as error:
            log.debug("%s can't be looked at: %s", version, error)
        return None

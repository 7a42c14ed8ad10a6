"""One pull from its start to its end: find, check for room, transfer, verify, publish."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hxd.clock import Clock, SystemClock
from hxd.daemon.store import disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict, Corrupt, SourceFailed, StoreBroken
from hxd.daemon.store.pull import source, verify
from hxd.daemon.store.pull.limits import LIMITS, Limits
from hxd.daemon.store.pull.medium import Medium, size_text
from hxd.daemon.store.pull.part import Part
from hxd.daemon.store.pull.proxy import DIRECT, Proxies
from hxd.daemon.store.pull.reference import Wanted
from hxd.daemon.store.pull.source import Source
from hxd.daemon.store.pull.together import in_thread, while_watched
from hxd.daemon.store.pull.transfer import Changed, Transfer
from hxd.daemon.store.pull.tries import Again, Tries
from hxd.daemon.store.pull.web import Web, open_web
from hxd.daemon.store.reference import Digest
from hxd.daemon.store.work import Work

T = TypeVar("T")


@dataclass(frozen=True)
class Fetched:
    """`url` is without secrets and, where it is the hub's, with the commit. `etag` is the hub's
    own where there is one."""

    path: Path
    url: str
    sha256: Digest
    size: int
    etag: str | None


def fetch(
    wanted: Wanted,
    folder: Path,
    work: Work,
    *,
    proxies: Proxies = DIRECT,
    limits: Limits = LIMITS,
    clock: Clock | None = None,
    medium: Medium | None = None,
) -> list[Fetched]:
    """All files of `wanted`, whole and verified, in `folder`; in the order of its names.

    `folder` is kept between calls, even after a kill: what arrived is not asked for again. Blocks,
    and runs an event loop of its own, so it is called from a thread without one. Steps that `work`
    is told: `download` (0 of 0 while it looks for the files) and `verify`, in bytes.
    Raises `SourceFailed`, `Corrupt`, `StoreBroken`, `Cancelled`, and `Conflict` while another call
    works in `folder`.
    """
    with guarded(f"make {folder}"):
        disk.make_folder(folder)
    with _alone(folder):
        pull = _Pull(
            wanted, folder, work, proxies, limits, clock or SystemClock(), medium or Medium()
        )
        # Not asyncio.run: it waits for every thread, and one may be stuck looking up a name for
        # half a minute after the pull was stopped. No thread that writes is left by then.
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(pull.run())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The kernel lets go of it when the process dies."""
    with guarded(f"open {folder}"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("this is being pulled already; wait until that is done") from None
        yield
    finally:
        os.close(descriptor)


class _Pull:
    """`_sources`, `_have` and `_part` belong to the one task that runs it."""

    def __init__(
        self,
        wanted: Wanted,
        folder: Path,
        work: Work,
        proxies: Proxies,
        limits: Limits,
        clock: Clock,
        medium: Medium,
    ) -> None:
        self._wanted = wanted
        self._folder = folder
        self._work = work
        self._proxies = proxies
        self._limits = limits
        self._clock = clock
        self._medium = medium
        self._sources: list[Source] = []
        self._have: list[int] = []
        self._part: Part | None = None
        self._at = 0

    async def run(self) -> list[Fetched]:
        try:
            async with open_web(self._wanted, self._limits, self._clock, self._proxies) as web:
                await self._watched(self._find(web))
                for index in range(len(self._sources)):
                    self._have.append((await self._open(index)).covered)
                return [await self._file(web, index) for index in range(len(self._sources))]
        finally:
            await in_thread(self._close)

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        async def watch() -> None:
            while True:
                self._tell()
                await asyncio.sleep(self._limits.tick)

        return await while_watched(work, watch())

    def _tell(self) -> None:
        """Progress over all files; no total as long as a size is not known."""
        sizes = [found.facts.size for found in self._sources]
        total = 0 if None in sizes or not self._have else sum(size or 0 for size in sizes)
        if self._part is not None and self._at < len(self._have):
            self._have[self._at] = self._part.covered
        self._work.told("download", sum(self._have), total)

    async def _find(self, web: Web) -> None:
        for _ in self._wanted.files:
            self._sources.append(await self._look(web, len(self._sources)))

    async def _look(self, web: Web, index: int) -> Source:
        """Shards all come from the commit at which the first one was found."""
        commit = self._sources[0].facts.commit if index else None
        file = self._wanted.files[index]
        return await source.find(web, self._wanted, file, commit, self._limits, self._clock)

    async def _open(self, index: int) -> Part:
        """One at a time: there may be more shards than file descriptors."""

        def swap() -> Part:
            self._close()
            self._at = index
            self._part = Part(
                self._folder, found.file.name, found.facts, self._limits, self._medium
            )
            return self._part

        found = self._sources[index]
        return await in_thread(swap)

    def _close(self) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            part.close()

    async def _file(self, web: Web, index: int) -> Fetched:
        try:
            return await self._once(web, index)
        except verify.Mismatch:
            # What an earlier run left may be at fault: once more, from nothing.
            return await self._once(web, index)

    async def _once(self, web: Web, index: int) -> Fetched:
        part = await self._watched(self._arrived(web, index))
        found = self._sources[index]
        self._tell()
        try:
            digest = await in_thread(
                verify.check, part, found.facts.sha256, self._announced(found), self._work
            )
        except Corrupt:
            await in_thread(part.discard)
            raise
        path = await in_thread(part.publish)
        facts = found.facts
        return Fetched(path, facts.url, digest, part.size or 0, facts.linked or facts.etag)

    def _announced(self, found: Source) -> int | None:
        # A shard may well hold no tensors, so its header can't be judged alone.
        return found.facts.size if len(self._sources) == 1 else 0

    async def _arrived(self, web: Web, index: int) -> Part:
        """The part, whole. A file that changes on the server is begun anew once."""
        anew = False
        tries = Tries(self._limits)
        while True:
            found = self._sources[index]
            part = await self._open(index)
            self._have[index] = part.covered
            self._check_room(index)
            try:
                await Transfer(web, found, part, self._limits, self._clock).run()
                return part
            except Changed as changed:
                self._sources[index] = newer = await self._look(web, index)
                if newer.facts.same_file(found.facts):
                    # Its servers do not agree, or an old one answered once.
                    again = Again(f"{found.facts.url}: {changed}")
                    await self._clock.sleep(tries.failed(again, part.covered))
                elif anew:
                    raise SourceFailed(
                        f"{found.facts.url} changes while it is downloaded: {changed}"
                    ) from None
                else:
                    anew = True

    def _check_room(self, index: int) -> None:
        """For this file and those after it."""
        sizes = [found.facts.size or 0 for found in self._sources[index:]]
        needed = sum(sizes) - sum(self._have[index:])
        with guarded(f"find out how much room is left in {self._folder}"):
            room = self._medium.room(self._folder)
            kept = disk.reserve(self._folder, self._limits.reserve)
        if needed > 0 and needed + kept > room:
            raise StoreBroken(
                f"{self._wanted.shown} needs {size_text(needed)} more and there are "
                f"{size_text(room)} free in {self._folder}, of which "
                f"{size_text(kept)} are kept; make room and pull again"
            )

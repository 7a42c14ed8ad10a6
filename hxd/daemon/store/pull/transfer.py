"""The bytes of one file, from the server into its part: in pieces over several connections where
the server gives ranges, else in one stream. Whatever fails half-way is asked for from there."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from hxd.clock import Clock
from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull import beginning
from hxd.daemon.store.pull.address import shown
from hxd.daemon.store.pull.facts import content_range, number
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.part import Part
from hxd.daemon.store.pull.source import Source
from hxd.daemon.store.pull.together import in_thread, together
from hxd.daemon.store.pull.tries import Again, Tries
from hxd.daemon.store.pull.web import Answer, Web


class Changed(Exception):
    """The server has another version of the file now."""


class NoRanges(Exception):
    """It sends the whole file whatever range is asked."""


class Transfer:
    """After `run` has returned, raised or was cancelled, no write is on its way any more."""

    def __init__(self, web: Web, source: Source, part: Part, limits: Limits, clock: Clock) -> None:
        self._web = web
        self._source = source
        self._part = part
        self._limits = limits
        self._clock = clock
        self._shown = shown(source.url)
        self._link = source.link

    async def run(self) -> None:
        """Until the part is whole. Raises `Changed`, `SourceFailed` and `StoreBroken`."""
        size = self._source.facts.size
        if self._source.ranged and size is not None:
            with contextlib.suppress(NoRanges):
                await self._pieces(size)
        await self._until(lambda: self._part.whole, self._whole)

    async def _pieces(self, size: int) -> None:
        step = self._limits.piece
        todo = deque((at, min(at + step, size)) for at in range(0, size, step))

        async def connection() -> None:
            while todo:
                await self._piece(*todo.popleft())

        await together(connection() for _ in range(min(self._limits.connections, len(todo))))

    async def _piece(self, start: int, end: int) -> None:
        await self._until(
            lambda: not self._part.missing(start, end),
            lambda: self._range(*self._part.missing(start, end)[0]),
        )

    async def _until(
        self, there: Callable[[], bool], step: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        tries = Tries(self._limits)
        while not there():
            try:
                await step()
            except Again as again:
                await self._clock.sleep(tries.failed(again, self._part.covered))

    async def _range(self, start: int, end: int) -> None:
        async with self._ask(start, end) as answer:
            if answer.status == 200:
                await self._same_file(answer)
                raise NoRanges
            self._same_range(answer, start, end)
            await self._take(answer, start, end - start)

    async def _whole(self) -> None:
        """The first gap if the server will, else everything from the start."""
        size = self._source.facts.size
        gaps = self._part.missing(0, size) if self._source.ranged and size is not None else []
        start, end = gaps[0] if gaps else (0, size)
        async with self._ask(start, end if (start, end) != (0, size) else None) as answer:
            if answer.status == 200:
                await self._same_file(answer)
                start, end = 0, size
            elif end is not None:
                self._same_range(answer, start, end)
            else:
                raise Again(f"{self._shown}: asked for the whole file, the server sent a part")
            at = await self._take(answer, start, None if end is None else end - start)
        if size is None:
            await in_thread(self._part.ended, at)

    @contextlib.asynccontextmanager
    async def _ask(self, start: int, end: int | None) -> AsyncIterator[Answer]:
        """`end` None: the whole file."""
        headers = {}
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
            condition = self._source.facts.condition()
            if condition is not None:
                headers["If-Range"] = condition
        link = self._link
        try:
            async with self._web.ask(
                link or self._source.url, headers, link=link is not None
            ) as answer:
                # Asking the hub for every piece would soon meet its limit on requests.
                self._link = answer.url if answer.url != self._source.url else None
                yield answer
        except Again:
            # From the beginning: the link may have expired, or that server may be down.
            self._link = None
            raise

    async def _same_file(self, answer: Answer) -> None:
        """For an answer with the whole of it."""
        try:
            self._same_version(answer, number(answer.headers.get("Content-Length")))
        except Changed:
            # Into a web page, perhaps: a session that has ended, or a hotel's network.
            self._check_beginning(await beginning.read(answer.body), answer)
            raise

    def _same_version(self, answer: Answer, size: int | None) -> None:
        """Raises `Changed` unless it goes with the bytes that are there."""
        known = self._source.facts.size
        if known is not None and size is not None and size != known:
            raise Changed(f"it had {known} bytes and has {size}")
        why = self._source.facts.contradicts(answer.headers)
        if why is not None:
            raise Changed(why)

    def _same_range(self, answer: Answer, start: int, end: int) -> None:
        if answer.status == 416:
            raise Changed(f"it has no bytes from {start} to {end - 1} any more")
        found = content_range(answer.headers)
        self._same_version(answer, found[2] if found else None)
        if found is None or found[:2] != (start, end):
            sent = f"{found[0]}-{found[1] - 1}" if found else "something without a Content-Range"
            raise Again(f"{self._shown}: asked for bytes {start}-{end - 1}, the server sent {sent}")

    async def _take(self, answer: Answer, at: int, length: int | None) -> int:
        """Write what comes, up to `length` bytes from `at` on; returns where it ended. What came
        before a failure stays."""
        if length is not None and (number(answer.headers.get("Content-Length")) or 0) > length:
            raise self._too_long(length)
        end = None if length is None else at + length
        unchecked = at == 0
        kept = bytearray()
        wrote = self._clock.now()
        try:
            while chunk := await answer.body.readany():
                if end is not None and at + len(kept) + len(chunk) > end:
                    raise self._too_long(length or 0)
                kept += chunk
                if unchecked and len(kept) >= beginning.LENGTH:
                    self._check_beginning(kept, answer)
                    unchecked = False
                late = self._clock.now() - wrote >= self._limits.save_seconds
                if len(kept) >= self._limits.write or (late and not unchecked):
                    data, kept = bytes(kept), bytearray()
                    await in_thread(self._part.write, at, data)
                    at, wrote = at + len(data), self._clock.now()
            if unchecked:
                self._check_beginning(kept, answer)
                unchecked = False
        finally:
            if kept and not unchecked:
                await in_thread(self._part.write, at, bytes(kept))
                at += len(kept)
        if end is not None and at < end:
            raise Again(f"{self._shown}: the server ended {end - at} bytes too early")
        return at

    def _check_beginning(self, start: bytes | bytearray, answer: Answer) -> None:
        kind = answer.headers.get("Content-Type", "")
        beginning.refuse(self._source.file.name, self._shown, bytes(start), kind)

    def _too_long(self, length: int) -> SourceFailed:
        return SourceFailed(
            f"{self._shown}: the server sends more than the {length} bytes that it announced"
        )

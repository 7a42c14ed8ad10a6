"""What the daemon that makes an apply keeps for the next one, as far as it has come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from hxd.conditions import Condition
from hxd.config.live import Live
from hxd.config.unfinished import Place, Unfinished
from hxd.daemon.config_change import Change
from hxd.daemon.config_files import ConfigFiles

log = logging.getLogger("hxd.config")


class OnRecord:
    """`entry` is None while nothing is on record: a reload never is."""

    def __init__(self, live: Live, files: ConfigFiles) -> None:
        self._live = live
        self._files = files
        self.entry: Unfinished | None = None

    async def begin(
        self, change: Change, former: int, seconds: float, conditions: Sequence[Condition]
    ) -> None:
        """`former` is the revision to go back to, `seconds` how long the box is to be watched,
        `conditions` what is wrong with it already. Raises `CannotInstall`."""
        assert change.revision is not None
        entry = Unfinished(
            revision=change.revision,
            former=former,
            why=change.why,
            who=change.who,
            began=change.began,
            seconds=seconds,
            runtime=str(self._live.config.paths.runtime.absolute()),
            before=tuple(conditions),
        )
        await asyncio.to_thread(self._place.begin, entry)
        self.entry = entry

    async def watching(self, since: float) -> None:
        """Since when, in Unix seconds; a former daemon may have begun before."""
        if self.entry is not None and self.entry.watching is None:
            await self._write(msgspec.structs.replace(self.entry, watching=since))

    async def going_back(self, reason: str) -> None:
        if self.entry is not None:
            await self._write(msgspec.structs.replace(self.entry, reason=reason))

    async def clear(self) -> None:
        """It is over."""
        if self.entry is not None:
            self.entry = None
            await asyncio.to_thread(self._place.clear)

    async def hand_over(self) -> None:
        """To the next daemon. Nothing has failed: this one does not count among those that died of
        it."""
        if (entry := self.entry) is not None:
            await self._write(msgspec.structs.replace(entry, attempts=entry.attempts - 1))
            self.entry = None

    async def _write(self, entry: Unfinished) -> None:
        self.entry = entry
        try:
            await asyncio.to_thread(self._place.write, entry)
        except OSError as error:
            log.error("how far the change is can't be kept: %s", error.strerror)

    @property
    def _place(self) -> Place:
        return Place(self._files.origin, self._files.state.absolute())

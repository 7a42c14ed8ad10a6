"""The files of the configuration: those that lie on the disk, those that were applied, and those of
before."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from hxd.config.files import snapshot
from hxd.config.history import DamagedRevision, History, Outcome, Revision, Why, digests
from hxd.config.install import install
from hxd.config.live import Live
from hxd.daemon.config_change import BadConfig, Files
from hxd.errors import CallerError, ConfigError, HxdError

log = logging.getLogger("hxd.config")

# Below the state folder.
HISTORY = "config-history"


class ConfigFiles:
    def __init__(self, live: Live, history: History) -> None:
        self._live = live
        self._history = history

    @property
    def origin(self) -> Path:
        return self._live.config.origin

    @property
    def state(self) -> Path:
        """The folder of the history; what is half applied has its parts there."""
        return self._live.config.paths.state / HISTORY

    async def on_disk(self) -> Files:
        """Raises `BadConfig`."""
        try:
            return await asyncio.to_thread(snapshot, self.origin)
        except ConfigError as error:
            raise BadConfig(str(error)) from None

    async def holding(self) -> tuple[Revision | None, Files]:
        """The newest revision that was applied, and its files; else what lies on the disk."""
        good = await asyncio.to_thread(self._history.last_good)
        last = await asyncio.to_thread(self._history.last_applied)
        if good is None or (last is not None and last.number != good.number):
            # What is kept of the last one is damaged; where it lies it may still be whole.
            present = await self.on_disk()
            if good is None or (last is not None and last.sha256 == digests(present)):
                return last, present
        return good, await asyncio.to_thread(self._history.read, good.number)

    async def before(self, number: int | None) -> Files:
        """The files of a revision; those of the last good one that differs from what holds, if
        none is named. Raises `CallerError`."""
        if number is not None:
            return await asyncio.to_thread(self._history.read, number)
        holds, _ = await self.holding()
        found = holds
        while holds is not None and found is not None:
            found = await asyncio.to_thread(self._history.last_good, found.number)
            if found is not None and found.sha256 != holds.sha256:
                return await asyncio.to_thread(self._history.read, found.number)
        raise CallerError(
            "there is no earlier configuration to go back to; hxctl config history has those that "
            "are kept",
            status=409,
            code="no_such_revision",
        )

    async def way_back(self, now: float) -> tuple[int, Files]:
        """The revision to go back to, and its files. `now` is in Unix seconds."""
        good, former = await self.holding()
        try:
            if good is not None:
                await asyncio.to_thread(self._history.read, good.number)
        except DamagedRevision:
            good = None
        if good is None:
            # The disk was full at the start, perhaps.
            good = await asyncio.to_thread(self._history.record, former, Why.START, "start", now)
            await asyncio.to_thread(self._history.settle, good.number, Outcome.APPLIED)
        return good.number, former

    async def put(self, files: Files) -> None:
        """All of them, or none. Raises `CannotInstall`."""
        await asyncio.to_thread(install, self.origin, files, self.state)

    async def restore(self, former: Files, ours: Files) -> bool:
        """The files of before, unless somebody has changed them in the meantime. False when the
        next start must try again."""
        try:
            if await self.on_disk() == ours:
                await self.put(former)
            elif await self.on_disk() != former:
                log.error("the files of %s changed meanwhile, and stay as they are", self.origin)
        except HxdError as error:
            log.error("the files of %s can't be put back: %s", self.origin, error)
            return False
        return True

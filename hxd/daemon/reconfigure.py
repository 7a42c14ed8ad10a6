"""Who may change the configuration of the daemon that runs: changes are begun and resumed here, one
at a time. The way of each is a `Course`, and belongs to the daemon: who has asked for it may leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

from hxd.config.history import Why
from hxd.daemon.config_change import Candidate, Change, Phase, Proposal
from hxd.daemon.config_course import Course, Means, told
from hxd.daemon.config_record import OnRecord
from hxd.daemon.config_start import Leftover
from hxd.daemon.config_steps import Worse
from hxd.errors import CallerError, HxdError, Unavailable

log = logging.getLogger("hxd.config")

RETRY_AFTER = 2.0  # seconds
PAST = 20  # changes that can still be asked for


class Reconfiguration:
    """`change` is the one that runs, or the last one. `settled` is set by the run loop once the
    rollouts of a former daemon go on."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.change: Change | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Task[Proposal] | None = None
        # The daemon ends: what would begin now, nobody would end.
        self._closing = False
        self.settled = asyncio.Event()
        self._past: deque[Change] = deque(maxlen=PAST)
        self._record = OnRecord(means.live, means.files)

    @property
    def busy(self) -> bool:
        return self.change is not None and not self.change.over.is_set()

    # Looking

    def shown(self, began: float | None = None) -> dict[str, Any] | None:
        """The change that runs, or the last one; or the one that began then (Unix seconds), for
        whoever follows it while others come after."""
        found = self.change
        if began is not None:
            found = next((one for one in self._past if one.began == began), None)
        return None if found is None else found.body()

    # Changing

    async def reload(self, who: str = "SIGHUP") -> Proposal:
        """What the files say, when all that was asked for before is done. Several that wait are
        one. Raises `BadConfig`, and `Worse` when it was taken back."""
        if self._next is None:
            self._next = asyncio.create_task(self._reload_in_turn(who), name="reload-waiting")
        return await asyncio.shield(self._next)

    async def _reload_in_turn(self, who: str) -> Proposal:
        try:
            while self.busy and self.change is not None:
                await self.change.over.wait()
        finally:
            # From here on the files are read: who comes now has seen them later.
            self._next = None
        change = await self.begin(Why.RELOAD, who)
        await change.over.wait()
        if change.error is not None:
            raise change.error
        assert change.proposal is not None
        return change.proposal

    async def begin(
        self,
        why: Why,
        who: str,
        candidate: Candidate | None = None,
        *,
        seconds: float = 0.0,
    ) -> Change:
        """Begin a change, once it is known to be valid. With `RELOAD` the files are the operator's,
        and stay whatever comes of it; else they are put in place, the box is watched for `seconds`,
        and the files of before come back when it gets worse.

        Raises `CallerError`, of which `BadConfig` is one, or `Unavailable` where the daemon ends;
        then nothing has changed.
        """
        if self._closing:
            raise Unavailable(
                "the daemon is shutting down; ask the next one", code="draining", retry_after=1.0
            )
        if self.busy:
            raise CallerError(
                "the configuration is being changed already; try again when that is done "
                "(hxctl events)",
                status=409,
                code="config_busy",
                retry_after=RETRY_AFTER,
            )
        accepted = asyncio.get_running_loop().create_future()
        change = self.change = Change(why, who, self._means.clock.wall(), accepted)
        self._past.append(change)
        self._task = asyncio.create_task(
            self._live(change, self._course(change).make(candidate or Candidate(), seconds)),
            name="reconfigure",
        )
        await asyncio.shield(accepted)
        return change

    def resume(self, leftover: Leftover) -> None:
        """Take up what a former daemon left unfinished, or tell what became of it."""
        if leftover.record is None and leftover.reason is None:
            return
        change = self.change = Change(
            leftover.why, leftover.who, leftover.began, asyncio.get_running_loop().create_future(),
            revision=leftover.revision,
        )  # fmt: skip
        self._past.append(change)
        if leftover.record is None:
            told(self._means.events, change, "rolled_back", reason=leftover.reason)
            change.end(Phase.ROLLED_BACK, Worse(f"the change was taken back: {leftover.reason}"))
            return
        self._record.entry = leftover.record
        finishing = self._live(change, self._course(change).finish(leftover.record))
        self._task = asyncio.create_task(finishing, name="reconfigure")

    async def aclose(self) -> None:
        """What is half-way stays so. The next daemon goes on with an apply, and takes the files of
        a reload."""
        self._closing = True
        tasks = [task for task in (self._task, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._record.hand_over()

    def _course(self, change: Change) -> Course:
        return Course(change, self._means, self._record, self.settled)

    async def _live(self, change: Change, doing: Coroutine[Any, Any, None]) -> None:
        try:
            await doing
        except HxdError as error:
            told(self._means.events, change, "refused", reason=str(error))
            change.end(Phase.REFUSED, error)
        except Exception as error:  # the boundary of a change, as of a request
            log.exception("a change of the configuration failed inside hxd")
            change.end(Phase.REFUSED, HxdError(f"something broke inside hxd: {error}"))
        finally:
            self._means.listener.release()
            # Cancelled: the daemon ends.
            if not change.over.is_set():
                change.end(Phase.REFUSED, HxdError("the daemon is shutting down"))

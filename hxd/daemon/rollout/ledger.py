"""Keeps the record of what is in service: one change at a time, each on the disk before it is
acted on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from hxd.clock import Clock
from hxd.daemon.rollout.record import Ask, Before, Deployed, Record
from hxd.daemon.store.sources import AS_CONFIGURED, Choice

log = logging.getLogger("hxd.rollout")

# Seconds until a write that the disk refused is tried again.
RETRY_EVERY = 10.0


class Ledger:
    """`configured` is what the configuration says of a model in the words of
    `record.fingerprint`."""

    def __init__(self, record: Record, configured: Callable[[str], str], clock: Clock) -> None:
        self._record = record
        self._configured = configured
        self._clock = clock
        self._saving = asyncio.Lock()
        # Why what holds is not on the disk, if it is not.
        self.unsaved: str | None = None

    async def run(self) -> None:
        """Writes what the disk did not take, once it does; never ends by itself."""
        while True:
            await self._clock.sleep(RETRY_EVERY)
            async with self._saving:
                if self.unsaved is not None and await self._saved(self._record.models):
                    log.warning("what is in service is on record again")

    def of(self, model: str) -> Deployed:
        configured = self._configured(model)
        return self._record.found(model, configured) or Deployed(configured, AS_CONFIGURED)

    async def write(
        self,
        model: str,
        *,
        pending: Ask | None = None,
        choice: Choice | None = None,
        former: tuple[Choice, ...] | None = None,
        forget: bool = False,
    ) -> None:
        def written(now: Deployed) -> Deployed | None:
            if forget:
                return None
            return Deployed(
                now.configured,
                now.choice if choice is None else choice,
                now.former if former is None else former,
                pending,
                now.before,
            )

        await self._change(model, written)

    async def spare(self, model: str, id: str) -> None:
        """This daemon ends in order: it does not count among those that ended in that rollout, if
        it is not over by now."""

        def spared(now: Deployed) -> Deployed:
            ask = now.pending
            if ask is None or ask.id != id:
                return now
            ask = msgspec.structs.replace(ask, attempts=max(0, ask.attempts - 1))
            return msgspec.structs.replace(now, pending=ask)

        await self._change(model, spared)

    async def lend(self, model: str, before: Before) -> None:
        """The next daemon starts from `before`, should this one end before `give_back`. Raises
        `OSError`, and then nothing has changed."""
        await self._change(
            model, lambda now: msgspec.structs.replace(now, before=before), strict=True
        )

    async def give_back(self, model: str, *, as_before: bool) -> None:
        """The drill is over. `as_before`: what was in service is so again, and the record says of
        it what it said."""

        def given_back(now: Deployed) -> Deployed:
            if now.before is None:
                return now
            return now.restored() if as_before else msgspec.structs.replace(now, before=None)

        await self._change(model, given_back)

    async def _change(
        self, model: str, change: Callable[[Deployed], Deployed | None], *, strict: bool = False
    ) -> None:
        """Goes to its end though who has asked for it is cancelled: a write can't be called back,
        and the next one must not meet it."""
        await asyncio.shield(self._changed(model, change, strict=strict))

    async def _changed(
        self, model: str, change: Callable[[Deployed], Deployed | None], *, strict: bool
    ) -> None:
        async with self._saving:
            models, now = dict(self._record.models), self.of(model)
            if (new := change(now)) is now:
                return
            if new is None:
                models.pop(model, None)
            else:
                models[model] = new
            await self._saved(models, strict=strict)

    async def _saved(self, models: dict[str, Deployed], *, strict: bool = False) -> bool:
        try:
            await asyncio.to_thread(self._record.save, models)
        except OSError as error:
            if strict:
                raise
            # It serves all the same; a daemon that starts before it is written will not know.
            log.error("what is in service can't be recorded: %s", error)
            self._record.models, self.unsaved = models, error.strerror or str(error)
            return False
        self.unsaved = None
        return True

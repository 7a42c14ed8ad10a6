"""Keeps the record of what is in service: one change at a time, each on the disk before it is
acted on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from hxd.daemon.rollout.record import Ask, Before, Deployed, Record
from hxd.daemon.store.sources import AS_CONFIGURED, Choice

log = logging.getLogger("hxd.rollout")


class Ledger:
    """`configured` is what the configuration says of a model in the words of
    `record.fingerprint`."""

    def __init__(self, record: Record, configured: Callable[[str], str]) -> None:
        self._record = record
        self._configured = configured
        self._saving = asyncio.Lock()

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
        async with self._saving:
            models = dict(self._record.models)
            if forget:
                models.pop(model, None)
            else:
                now = self.of(model)
                models[model] = Deployed(
                    now.configured,
                    now.choice if choice is None else choice,
                    now.former if former is None else former,
                    pending,
                    now.before,
                )
            await self._save(models)

    async def lend(self, model: str, before: Before) -> None:
        """The next daemon starts from `before`, should this one end before `give_back`. Raises
        `OSError`, and then nothing has changed."""
        async with self._saving:
            now = msgspec.structs.replace(self.of(model), before=before)
            await asyncio.to_thread(self._record.save, {**self._record.models, model: now})

    async def give_back(self, model: str, *, as_before: bool) -> None:
        """The drill is over. `as_before`: what was in service is so again, and the record says of
        it what it said."""
        async with self._saving:
            now = self.of(model)
            if now.before is None:
                return
            now = now.restored() if as_before else msgspec.structs.replace(now, before=None)
            await self._save({**self._record.models, model: now})

    async def _save(self, models: dict[str, Deployed]) -> None:
        try:
            await asyncio.to_thread(self._record.save, models)
        except OSError as error:
            # It serves all the same; the next daemon will not know.
            log.error("what is in service can't be recorded: %s", error)
            self._record.models = models

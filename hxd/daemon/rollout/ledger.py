"""Keeps the record of what is in service: one change at a time, each on the disk before it is
acted on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hxd.daemon.rollout.record import Ask, Deployed, Record
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
        record = self._record
        async with self._saving:
            models = dict(record.models)
            if forget:
                models.pop(model, None)
            else:
                now = self.of(model)
                models[model] = Deployed(
                    now.configured,
                    now.choice if choice is None else choice,
                    now.former if former is None else former,
                    pending,
                )
            try:
                await asyncio.to_thread(record.save, models)
            except OSError as error:
                # It serves all the same; the next daemon will not know.
                log.error("what is in service can't be recorded: %s", error)
                record.models = models

"""What rollouts ask of the stores and of the configuration; away from the event loop where it
blocks."""

from __future__ import annotations

import asyncio

from hxd.config.live import Live
from hxd.daemon.rollout.golden import Golden, GoldenError, parse
from hxd.daemon.rollout.record import fingerprint
from hxd.daemon.store import quarantine
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.sources import Choice, Source, stored_name
from hxd.daemon.store.stores import Stores
from hxd.daemon.store.version import Version
from hxd.errors import CallerError


class Stock:
    """Its methods are what `Means` wants of the stores."""

    def __init__(self, live: Live, stores: Stores) -> None:
        self._live = live
        self._stores = stores

    def configured(self, model: str) -> str:
        settings = self._live.config.models.get(model)
        return "" if settings is None else fingerprint(settings)

    def shelf(self, model: str) -> str | None:
        return stored_name(model, self._live.config)

    async def resolve(self, model: str, choice: Choice) -> Source:
        return await asyncio.to_thread(
            lambda: self._stores.resolver(self._live.config).one(model, choice)
        )

    async def others(self, model: str) -> list[Choice]:
        return await asyncio.to_thread(
            lambda: list(self._stores.resolver(self._live.config).others(model))
        )

    async def golden(self, source: Source) -> Golden | None:
        data = await asyncio.to_thread(self._stores.golden, source)
        try:
            return None if data is None else parse(data)
        except GoldenError as error:
            raise CallerError(f"the golden prompts of {source.name!r}: {error}") from None

    async def label(self, source: Source, label: str) -> None:
        held = source.held
        if held is not None:
            library = self._stores.models
            await asyncio.to_thread(library.set_label, held.name, label, held.number)

    async def condemn(self, source: Source, why: str) -> None:
        if source.held is not None:
            await asyncio.to_thread(self._condemn, source.held, source.stored, why)

    def _condemn(self, held: Version, variant: str, why: str) -> None:
        """In quarantine for what it did; or for its bytes, where mending them is enough."""
        library = self._stores.models
        try:
            ensure(library, held, variant)
        except Corrupt as error:
            quarantine.impose(library, held.name, held.number, str(error), cause="bytes")
        except StoreError:
            pass  # It is there already.
        else:
            quarantine.impose(library, held.name, held.number, why)

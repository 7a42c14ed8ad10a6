"""Keeps the release that was in service before warm for a while, and goes back to it when the new
one turns out bad."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.rollout.effects import Effects
from hxd.daemon.rollout.ledger import Ledger
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.rollout import Rollout, describe
from hxd.daemon.rollout.watch import Watch
from hxd.errors import HxdError

log = logging.getLogger("hxd.rollout")

AGAIN = 30.0  # seconds until a way back that could not be taken is tried again


class Ways(Protocol):
    """What it asks of `Rollouts`."""

    def of(self, model: str) -> Rollout | None: ...

    def running(self, model: str) -> Rollout | None: ...

    async def roll_back(self, model: str, why: str, *, blame: bool = False) -> Rollout: ...


class Grace:
    """One former release is kept per model, at most."""

    def __init__(self, means: Means, effects: Effects, ledger: Ledger, ways: Ways) -> None:
        self._means = means
        self._effects = effects
        self._ledger = ledger
        self._ways = ways
        self._watches: dict[str, Watch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def left(self, model: str) -> float | None:
        """Seconds that the former release is still kept; None when there is none."""
        watch = self._watches.get(model)
        return None if watch is None else watch.left

    def keep(self, deployment: Deployment, former: Served, current: Served, *, fresh: bool) -> None:
        """From here on `former` may come back at once, if there is room for it. `fresh`: what is
        new is the configuration."""
        if self._means.room.left < 0:
            self._effects.retire(deployment, former)
            return
        deployment.warm = former
        seconds = current.source.settings.grace
        watch = Watch(deployment, former, current, self._means.clock, seconds, fresh)
        self._watches[deployment.name] = watch
        current.heard = watch.heard
        watch.task = self._effects.spawn(self._watch(watch), f"warm-{deployment.name}")

    def end(self, model: str) -> None:
        """Nobody looks any more; the former release is the caller's."""
        watch = self._watches.pop(model, None)
        if watch is not None:
            watch.end()

    async def _watch(self, watch: Watch) -> None:
        """Until the grace period is over; a version that fails in it is taken back."""
        deployment, effects = watch.deployment, self._effects
        deaths, again_at = effects.excess(watch.current, watch.former), -math.inf
        while (left := watch.left) > 0:
            await watch.nap(min(left, 1.0))
            why = watch.trouble(effects.excess(watch.current, watch.former) - deaths)
            now = self._means.clock.now()
            if why is None or now < again_at or self._ways.running(deployment.name) is not None:
                continue
            # Not from here: where the way back begins, this ends. Until then the former release is
            # needed, though its time be over.
            back = effects.spawn(self._give_up_on(watch, why), f"rollback-{deployment.name}")
            await asyncio.wait({back})
            again_at = self._means.clock.now() + AGAIN
        if self._watches.get(deployment.name) is watch:
            self.end(deployment.name)
            effects.retire(deployment, watch.former)
            self._means.events.record(
                "rollout", deployment.name, "grace_over", released=describe(watch.former)
            )

    async def _give_up_on(self, watch: Watch, why: str) -> None:
        """What is bad is condemned once something else serves; until then it is all there is."""
        model, source = watch.deployment.name, watch.current.source
        if self._watches.get(model) is not watch or self._ways.running(model) is not None:
            # Another rollout has begun, or taken the former release, since trouble was seen.
            return
        if watch.fresh or not self._ledger.of(model).former:
            self._revert(watch, why)
            return
        try:
            rollout = await self._ways.roll_back(model, f"by itself: {why}", blame=True)
        except HxdError as error:
            log.error("model=%s can't be rolled back: %s", model, error)
            return
        await rollout.over.wait()
        if rollout.phase is Phase.DONE:
            await self._effects.condemn(source, why, watch.former.source)

    def _revert(self, watch: Watch, why: str) -> None:
        """It is not the version that is bad, but what the configuration has made of it, or there is
        no way back: what served under the last one is still there."""
        deployment, model = watch.deployment, watch.deployment.name
        self.end(model)
        deployment.shift(watch.former)
        self._effects.retire(deployment, watch.current)
        self._means.events.record(
            "rollout", model, "taken_back", to=describe(watch.former), reason=why
        )
        if (last := self._ways.of(model)) is not None:
            last.reason = why

"""What rollouts do to the releases of a model: open, arrange, end, label, condemn; and what they
hear of their workers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.targets import sized
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.errors import HxdError

log = logging.getLogger("hxd.rollout")


class Effects:
    """`changed` is told the model of each worker that has changed its state."""

    def __init__(self, means: Means, changed: Callable[[str], None]) -> None:
        self._means = means
        self._tell = changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: set[asyncio.Future[None]] = set()
        self._numbers: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        means.supervisor.listeners.append(self._changed)

    # Releases

    def open(self, deployment: Deployment, source: Source, replicas: int) -> Served:
        """A release with its first workers, which gets no requests yet."""
        served = self.line(deployment.name, sized(source, replicas))
        deployment.adopt(served)
        return served

    def line(self, model: str, source: Source) -> Served:
        """Workers and a line for `source`, under a name of their own."""
        self._numbers[model] += 1
        source = replace(source, release=str(self._numbers[model] + 1))
        self._means.supervisor.add(source)
        return self._means.releases.open(source)

    def arrange(self, served: Served, source: Source) -> None:
        """Workers and line as these settings say; `source` loads what is loaded there."""
        arranged = replace(source, release=served.source.release)
        self._means.supervisor.resize(arranged)
        self._means.releases.arrange(served, arranged)

    def retire(self, deployment: Deployment, served: Served) -> None:
        """Its workers finish what they have, in the bounds of a drain, and end."""
        key = served.source.key
        served.heard = None
        deployment.forget(served)
        self._means.supervisor.retire(key)
        self.spawn(self._gone(served), f"retire-{key}")

    async def _gone(self, served: Served) -> None:
        while served.source.key in self._means.supervisor.replicas:
            await self.turn()
        self._means.releases.close(served)
        self.deaths.pop(served.source.key, None)

    def able(self, served: Served) -> bool:
        return bool(self._means.supervisor.ready(served.source.key))

    def rests(self, served: Served) -> bool:
        """Whether none of its workers is there any more; held, it may begin again."""
        replicas = self._means.supervisor.replicas.get(served.source.key, ())
        return all(replica.state is State.STOPPED for replica in replicas)

    # The store

    async def label(self, source: Source) -> str | None:
        """Point the label that the model follows at what it serves; why that can't be done."""
        if source.held is None or source.follows is None:
            return None
        try:
            await self._means.label(source, source.follows)
        except (StoreError, HxdError) as error:
            log.error("model=%s label %s not moved: %s", source.name, source.follows, error)
            return f"the label {source.follows} was not moved: {error}"
        return None

    async def condemn(self, source: Source, why: str, other: Source) -> None:
        """Mark the version that died, where `other` serves in its place. It is not to blame if that
        is of the same version, or by another plugin."""
        if (
            source.held is None
            or source.version == other.version
            or source.plugin.digest != other.plugin.digest
        ):
            return
        try:
            await self._means.condemn(source, why)
            self._means.events.record(
                "store", source.name, "quarantined", version=source.version, reason=why
            )
        except (StoreError, HxdError) as error:
            log.error("model=%s@%d not quarantined: %s", source.name, source.version, error)

    # What is heard of workers

    def excess(self, served: Served, other: Served) -> int:
        """Deaths of workers of `served` beyond those of `other`: a request that breaks both says
        nothing about the version."""
        return self.deaths[served.source.key] - self.deaths[other.source.key]

    async def turn(self) -> None:
        """Until a worker has changed its state, or a second is over."""
        turned = asyncio.get_running_loop().create_future()
        self._turns.add(turned)
        try:
            async with asyncio.timeout(1.0):
                await turned
        except TimeoutError:
            pass
        finally:
            self._turns.discard(turned)

    def _changed(self, replica: Replica, old: State, new: State) -> None:
        """A transition; one of the supervisor's listeners."""
        if new is State.FAILED and not replica.blameless:
            self.deaths[replica.source.key] += 1
        turns, self._turns = self._turns, set()
        for turned in turns:
            if not turned.done():
                turned.set_result(None)
        self._tell(replica.source.name)

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    @property
    def idle(self) -> bool:
        return not self._tasks

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task=%s failed", task.get_name(), exc_info=error)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

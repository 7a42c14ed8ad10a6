"""Moves a label. One that a served model follows moves when a swap has put the version that it is
to point at in service; what serves and what a label says never differ for longer than that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hxd.daemon.admin.store_asks import SetLabel
from hxd.daemon.admin.store_operations import Operations
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.faults import Conflict
from hxd.daemon.store.sources import Choice


class Relabel:
    def __init__(
        self, rollouts: Rollouts, served: Mapping[str, Deployment], operations: Operations
    ) -> None:
        self._rollouts = rollouts
        self._served = served
        self._operations = operations

    def followers(self, name: str, label: str) -> list[str]:
        """Served models whose version is the one that the label points at."""
        return [
            deployment.name
            for deployment in self._served.values()
            if (held := deployment.current.source.held) is not None
            and held.name == name
            and deployment.current.source.follows == label
        ]

    async def move(self, ask: SetLabel) -> dict[str, Any]:
        """What has happened: `moved`, or the `rollouts` at whose end it is. Raises `HxdError`."""
        number = await asyncio.to_thread(self._operations.target, ask)
        following = self.followers(ask.name, ask.label)
        if following and number is None:
            raise Conflict(
                f"{', '.join(following)} follows the label {ask.label}; change its source in the "
                "config first",
                code="in_use",
            )
        behind = [
            model for model in following if self._served[model].current.source.version != number
        ]
        if not behind:
            return await asyncio.to_thread(self._operations.label, ask)
        rollouts = []
        for model in behind:
            now = self._rollouts.choice(model)
            choice = Choice(number, now.variant, now.plugin)
            rollouts.append((await self._rollouts.begin(Ask(model=model, choice=choice))).body())
        return {
            "name": ask.name,
            "label": ask.label,
            "version": number,
            "moved": False,
            "rollouts": rollouts,
        }

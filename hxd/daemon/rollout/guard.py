"""Looks after models whose version fails for good, long after it came into service or since the
start: what served before takes its place, or another whole version."""

from __future__ import annotations

import contextlib
import logging

from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.rollout.targets import identity, same
from hxd.daemon.store.sources import Source, SourceError
from hxd.daemon.supervise.lifecycle import State
from hxd.errors import HxdError

log = logging.getLogger("hxd.rollout")


class Guard:
    """`run` never ends by itself. Each version is given up once, until it has come into service
    again."""

    def __init__(self, means: Means, rollouts: Rollouts) -> None:
        self._means = means
        self._rollouts = rollouts
        self._given_up: set[tuple[str, int, str, str]] = set()
        # By model: the key of the release that is lost, while another one is looked for.
        self._lost_keys: dict[str, str] = {}
        rollouts.arrived.append(self._came)

    async def run(self) -> None:
        """Looks for models whose version dies again and again, or may not start, long after it came
        into service or since the start; never ends by itself."""
        while True:
            await self._rollouts.effects.turn()
            for deployment in list(self._means.deployments.values()):
                if self._rollouts.running(deployment.name) is None and self._lost(
                    deployment.current
                ):
                    source = deployment.current.source
                    self._given_up.add(identity(source))
                    self._lost_keys[source.name] = source.key
                    self._means.supervisor.relieved.add(source.key)
                    self._rollouts.effects.spawn(
                        self._rescue(deployment), f"rescue-{deployment.name}"
                    )

    def _lost(self, served: Served) -> bool:
        now = self._means.clock.now()
        replicas = self._means.supervisor.replicas.get(served.source.key, [])
        return (
            identity(served.source) not in self._given_up
            and bool(replicas)
            and not any(replica.takes for replica in replicas)
            and (
                all(
                    replica.restart.crash_loop(now, None) and not replica.blameless
                    for replica in replicas
                )
                or all(replica.barred and replica.state is State.FAILED for replica in replicas)
            )
        )

    def _came(self, found: tuple[str, int, str, str]) -> None:
        """Into service. Who waits for what it stands in for need not any more: they go on with it
        as soon as the other is told to end."""
        self._given_up.discard(found)
        self._end_relief(found[0])

    def _end_relief(self, model: str) -> None:
        self._means.supervisor.relieved.discard(self._lost_keys.pop(model, ""))

    async def _rescue(self, deployment: Deployment) -> None:
        try:
            await self._relieve(deployment)
        finally:
            self._end_relief(deployment.name)

    async def could_relieve(self, source: Source) -> bool:
        """Whether something else would serve, should no worker of `source` be let in again."""
        deployment = self._means.deployments.get(source.name)
        if deployment is None or deployment.current.source.key != source.key:
            return True
        for choice in (
            *self._rollouts.ledger.of(source.name).former,
            *await self._means.others(source.name),
        ):
            with contextlib.suppress(SourceError, HxdError):
                if not same(await self._means.resolve(source.name, choice), source):
                    return True
        return False

    async def _relieve(self, deployment: Deployment) -> None:
        """Serve what served before, or another whole version. The one that is lost is condemned
        when that has succeeded: where nothing can be served, it is not the version's fault."""
        model, source = deployment.name, deployment.current.source
        problems = "; ".join(self._means.supervisor.problems(source.key)) or "it gave no reason"
        why = f"by itself: its workers die: {problems}"
        for choice in (
            *reversed(self._rollouts.ledger.of(model).former),
            *await self._means.others(model),
        ):
            try:
                other = await self._means.resolve(model, choice)
                if same(other, source):
                    continue
                rollout = await self._rollouts.begin(
                    Ask(model=model, choice=choice, mode="resource", blame=True, why=why)
                )
                await rollout.over.wait()
                if rollout.phase is Phase.DONE:
                    await self._rollouts.effects.condemn(source, why, other)
                    return
            except (SourceError, HxdError) as error:
                log.warning("model=%s can't go back to %s: %s", model, choice, error)

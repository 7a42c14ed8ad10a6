"""Drills: something is done to a serving model on purpose, under light load that the drill makes,
and what the requests noticed of it is counted."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from hxd.daemon.admin.drills.corrupt import CorruptDrill
from hxd.daemon.admin.drills.report import Fault, Report
from hxd.daemon.admin.drills.swap import SwapDrill
from hxd.daemon.admin.drills.worker import WorkerDrill
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.rollout.loan import Loan
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.library import Library
from hxd.errors import CallerError, ModelNotFound, Unavailable

log = logging.getLogger("hxd.drill")

LEFT = 2  # replicas that must be left


class Drill(Protocol):
    """`run` raises `HxdError` when it is refused, and may be cancelled; `undo` comes after it in
    every case."""

    @property
    def report(self) -> Report: ...

    async def run(self) -> None: ...

    async def undo(self) -> None: ...


class Drills:
    """One at a time. Each is a task of its own: who asked may leave, and what it has done is undone
    all the same."""

    def __init__(self, means: Means, rollouts: Rollouts, library: Library) -> None:
        self._means = means
        self._rollouts = rollouts
        self._library = library
        self._running: asyncio.Task[None] | None = None

    async def run(self, fault: Fault, model: str | None, *, force: bool) -> Report:
        """Raises `CallerError` when the drill is refused. Cancelling it ends the drill early."""
        if self._running is not None:
            raise CallerError("another drill is running", status=409, code="drill_refused")
        drill = self._drill(fault, self._choose(model), force=force)
        log.warning("drill=%s model=%s begins", fault.value, drill.report.model)
        work = asyncio.create_task(drill.run(), name="drill")
        task = self._running = asyncio.create_task(self._through(drill, work), name="drill-whole")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable(
                    "the daemon ends, and the drill with it", retry_after=1.0
                ) from None
            work.cancel()
            raise
        return drill.report

    async def _through(self, drill: Drill, work: asyncio.Task[None]) -> None:
        report = drill.report
        try:
            try:
                await work
            finally:
                await drill.undo()
        finally:
            self._running = None
            log.warning("drill=%s model=%s ended kept=%s", report.fault, report.model, report.kept)

    def _drill(self, fault: Fault, deployment: Deployment, *, force: bool) -> Drill:
        means, name = self._means, deployment.name
        ready = means.supervisor.ready(deployment.current.source.key)
        if not ready:
            raise Unavailable(f"no replica of {name!r} is ready", retry_after=1.0)
        if fault is Fault.SWAP:
            loan = Loan(self._rollouts, means, self._library, name)
            return SwapDrill(means, self._library, loan, force=force)
        if len(ready) - 1 < LEFT and not force:
            raise CallerError(
                f"{name!r} has {len(ready)} ready replicas, so {len(ready) - 1} would be left, "
                f"and a drill leaves {LEFT}; with force it is done all the same",
                status=409,
                code="drill_refused",
            )
        if fault is Fault.CORRUPT:
            loan = Loan(self._rollouts, means, self._library, name)
            return CorruptDrill(means, self._library, loan, len(ready))
        return WorkerDrill(fault, deployment, means.setting, len(ready))

    def _choose(self, model: str | None) -> Deployment:
        """The model named, or the one with the most replicas ready."""
        deployments = self._means.deployments
        if model is None:
            if not deployments:
                raise CallerError("no model is served", status=409, code="drill_refused")
            return max(
                deployments.values(),
                key=lambda one: len(self._means.supervisor.ready(one.current.source.key)),
            )
        if model not in deployments:
            raise ModelNotFound(model, deployments)
        return deployments[model]

    async def aclose(self) -> None:
        """The daemon ends. What a drill has lent to it stays written down, and the next daemon
        begins from what there was before."""
        self._rollouts.closing = True
        if (task := self._running) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

"""Handlers of `/admin/v1/store` and `/admin/v1/jobs`. What may take long is a job: 202, and its
body to look at again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

from hxd.daemon.admin import store_asks as asks
from hxd.daemon.admin.answer import answer, decoded
from hxd.daemon.admin.jobs import Job, Jobs
from hxd.daemon.admin.relabel import Relabel
from hxd.daemon.admin.store_asks import absolute
from hxd.daemon.admin.store_jobs import (
    StoreJobs,
    check_convertible_to,
    check_variant,
    default_name,
    to_its_end,
    wanted,
)
from hxd.daemon.admin.store_operations import Operations, check_incoming
from hxd.daemon.admin.store_view import How, Use
from hxd.daemon.events import Events
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store import demo, foreign
from hxd.daemon.store.reference import ModelName, Reference
from hxd.daemon.store.work import Work

A = TypeVar("A", bound=asks.Ask)


class StoreApi:
    def __init__(
        self,
        operations: Operations,
        work: StoreJobs,
        jobs: Jobs,
        relabel: Relabel,
        rollouts: Rollouts,
        served: dict[str, Deployment],
        events: Events,
    ) -> None:
        self._operations = operations
        self._work = work
        self._jobs = jobs
        self._relabel = relabel
        self._rollouts = rollouts
        self._served = served
        self._events = events

    # Looking

    async def models(self, request: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._operations.models, self.uses()))

    async def show(self, request: web.Request) -> web.Response:
        ref = request.query.get("ref", "")
        return answer(await asyncio.to_thread(self._operations.show, ref, self.uses()))

    async def snapshots(self, request: web.Request) -> web.Response:
        path = request.query.get("path", "")
        return answer(await asyncio.to_thread(self._operations.snapshots, path))

    # At once

    async def remove(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Remove)
        done = await asyncio.to_thread(self._operations.remove, ask, self.uses())
        self._events.record("store", str(Reference.parse(ask.ref).name), "removed", **done)
        return answer(done)

    async def label(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.SetLabel)
        done = await self._relabel.move(ask)
        if done["moved"]:
            self._events.record(
                "store", ask.name, "labelled", label=ask.label, version=done["version"]
            )
        return answer(done, 200 if done["moved"] else 202)

    async def golden(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.SetGolden)
        done = await asyncio.to_thread(self._operations.golden, ask)
        self._events.record("store", ask.name, "golden", prompts=done["prompts"])
        return answer(done)

    async def look(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Look)
        return answer(await asyncio.to_thread(foreign.described, absolute(ask.path)))

    # Jobs

    async def take_in(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Import)
        name = ModelName(ask.name)
        check_incoming(ask)
        if not demo.is_builtin(ask.path):
            absolute(ask.path)
        return self._begin("import", name, lambda work: self._work.take_in(ask, work))

    async def convert(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Convert)
        name = ModelName(ask.name)
        check_incoming(ask)
        if ask.variant is not None:
            check_convertible_to(ask.variant)
        found = await asyncio.to_thread(foreign.look, absolute(ask.path))
        return self._begin("convert", name, lambda work: self._work.convert(ask, found, work))

    async def pull(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Pull)
        check_incoming(ask)
        files = wanted(ask)
        name = ModelName(ask.name or default_name(files))
        return self._begin("pull", name, lambda work: self._work.pull(ask, files, work))

    async def quantize(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Quantize)
        reference = Reference.parse(ask.ref)
        check_variant(ask.variant)
        return self._begin("quantize", reference.name, lambda work: self._work.quantize(ask, work))

    async def verify(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Verify)
        name = "" if ask.ref is None else Reference.parse(ask.ref).name
        return self._begin("verify", name, _blocking(self._operations.verify, ask))

    async def backup(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Backup)
        absolute(ask.path)
        _names(ask.names)
        return self._begin("backup", "", _blocking(self._operations.backup, ask))

    async def restore(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Restore)
        absolute(ask.path)
        _names(ask.names)
        return self._begin("restore", "", _blocking(self._operations.restore, ask))

    async def doctor(self, request: web.Request) -> web.Response:
        ask = await _asked(request, asks.Doctor)
        if ask.backup is not None:
            absolute(ask.backup, "backup")
        return self._begin("doctor", "", _blocking(self._operations.doctor, ask))

    async def jobs(self, request: web.Request) -> web.Response:
        return answer([job.body() for job in self._jobs.all()])

    async def job(self, request: web.Request) -> web.Response:
        return answer(self._jobs.named(request.match_info["id"]).body())

    async def cancel(self, request: web.Request) -> web.Response:
        return answer(self._jobs.cancel(request.match_info["id"]).body(), 202)

    def _begin(
        self, kind: str, subject: str, run: Callable[[Work], Awaitable[Any]]
    ) -> web.Response:
        job: Job = self._jobs.start(kind, subject, run)
        return answer(job.body(), 202)

    # Who needs what

    def uses(self) -> list[Use]:
        """Of the store, by workers now, and by rollbacks."""
        found = []
        serving = {id(deployment.current.source) for deployment in self._served.values()}
        for source in self._rollouts.in_use():
            if (held := source.held) is not None:
                how = How.SERVES if id(source) in serving else How.WORKS
                found.append(Use(source.name, held.name, held.number, source.stored, how))
        for model in self._served:
            shelf = self._rollouts.shelf(model)
            if shelf is None:
                continue
            for choice in self._rollouts.former(model):
                if choice.version is not None:
                    found.append(Use(model, shelf, choice.version, choice.variant, How.FORMER))
        return found


async def _asked(request: web.Request, kind: type[A]) -> A:
    return decoded(await request.read(), kind)


def _blocking(call: Callable[[A, Work], Any], ask: A) -> Callable[[Work], Awaitable[Any]]:
    return lambda work: to_its_end(call, ask, work)


def _names(names: list[str] | None) -> None:
    for name in names or ():
        ModelName(name)

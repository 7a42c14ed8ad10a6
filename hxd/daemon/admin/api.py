"""Handlers of the open health routes, of `/metrics`, of `/v1/models` and of `/admin/v1`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import msgspec
from aiohttp import web

from hxd.clock import Clock
from hxd.daemon.admin.answer import answer, decoded
from hxd.daemon.admin.drills.drills import Drills
from hxd.daemon.admin.drills.report import Fault
from hxd.daemon.admin.metrics import CONTENT_TYPE, Metrics
from hxd.daemon.admin.status import Status
from hxd.daemon.request.http import Front
from hxd.daemon.request.identify import Role
from hxd.daemon.request.models import Catalog
from hxd.daemon.store.keys import KeyFileError, KeyStore, StoredKey
from hxd.errors import CallerError, HxdError

P = ParamSpec("P")
T = TypeVar("T")


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    role: Role = Role.INFERENCE


class NewDrill(msgspec.Struct, forbid_unknown_fields=True):
    """`model` None: the one with the most replicas. `force`: even if hardly any would be left, or
    what would be swapped to has no room beside what serves."""

    fault: Fault
    model: str | None = None
    force: bool = False


class AdminApi:
    def __init__(
        self,
        status: Status,
        catalog: Catalog,
        metrics: Metrics,
        keys: KeyStore,
        front: Front,
        clock: Clock,
        drills: Drills,
    ) -> None:
        self._drills = drills
        self._status = status
        self._catalog = catalog
        self._metrics = metrics
        self._keys = keys
        self._front = front
        self._clock = clock
        self._key_writes = asyncio.Lock()

    async def livez(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        missing = self._status.missing()
        body: dict[str, Any] = {"status": "unavailable" if missing else "ready"}
        if missing and self._front.may_see_detail(request):
            body["problems"] = missing
        return answer(body, 503 if missing else 200)

    async def health(self, request: web.Request) -> web.Response:
        health = self._status.health()
        return answer(health, 200 if health["ready"] else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, request: web.Request) -> web.Response:
        return answer(self._catalog.list())

    async def model(self, request: web.Request) -> web.Response:
        return answer(self._catalog.named(request.match_info["id"]))

    async def status(self, request: web.Request) -> web.Response:
        rollouts = [rollout.body() for rollout in self._status.rollouts()]
        return answer(
            self._status.health()
            | {
                "replicas": self._status.replicas(),
                "rollouts": rollouts,
                "change": self._status.change(),
            }
        )

    async def admin_models(self, request: web.Request) -> web.Response:
        return answer(self._status.models())

    async def replicas(self, request: web.Request) -> web.Response:
        return answer(self._status.replicas())

    async def conditions(self, request: web.Request) -> web.Response:
        return answer([condition.body() for condition in self._status.conditions()])

    async def drill(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), NewDrill)
        report = await self._drills.run(asked.fault, asked.model, force=asked.force)
        return answer(report.body())

    async def list_keys(self, request: web.Request) -> web.Response:
        return answer([_shown(key) for key in self._keys.all()])

    async def create_key(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), NewKey)
        if not asked.name.isprintable() or not asked.name:
            raise CallerError("name: must be printable and not empty", param="name")
        async with self._key_writes:
            key, stored = await _saved(
                self._keys.create, asked.name, asked.role, self._clock.wall()
            )
        return answer(_shown(stored) | {"key": key}, 201)

    async def revoke_key(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        async with self._key_writes:
            try:
                stored = await _saved(self._keys.revoke, id, self._clock.wall())
            except KeyError:
                raise CallerError(f"there is no key {id!r}", status=404) from None
        return answer(_shown(stored))


async def _saved(change: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What a blocking change of the key store gives; raises `HxdError` when it can't be kept."""
    try:
        return await asyncio.to_thread(change, *arguments, **named)
    except OSError as error:
        raise HxdError(f"keys can't be saved: {error.strerror}") from None
    except KeyFileError as error:
        raise HxdError(str(error)) from None


def _shown(key: StoredKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "created": key.created,
        "revoked": key.revoked,
    }

"""Handlers of `/admin/v1/plugins`: what is installed, what is trusted, what is in use.

Each change is an event, and goes on to its end though the one who asked for it has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hxd.config.live import Live
from hxd.daemon.admin.answer import answer, decoded
from hxd.daemon.admin.plugin_watch import PluginWatch
from hxd.daemon.events import Events
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.faults import Conflict
from hxd.daemon.store.plugin_store import Installed, PluginStore, split
from hxd.daemon.store.plugins import AUTO, Plugins
from hxd.daemon.store.stores import Stores, folders
from hxd.daemon.store.work import Work
from hxd.errors import CallerError
from hxd.pluginfile import PluginError

T = TypeVar("T")


class NewPlugin(msgspec.Struct, forbid_unknown_fields=True):
    """`path` is absolute, on the daemon's machine."""

    path: str
    trust: bool = False


class Reference(msgspec.Struct, forbid_unknown_fields=True):
    plugin: str


class Checked(msgspec.Struct, forbid_unknown_fields=True):
    """NAME, NAME@VERSION, or all there are."""

    plugin: str | None = None


class Confided(msgspec.Struct, forbid_unknown_fields=True):
    """A plugin's NAME@VERSION, or the name of a key; `text` is the key that is to be trusted."""

    plugin: str | None = None
    key: str | None = None
    text: str | None = None


class PluginApi:
    def __init__(
        self,
        live: Live,
        stores: Stores,
        served: Container[str],
        rollouts: Rollouts,
        watch: PluginWatch,
        events: Events,
    ) -> None:
        self._live = live
        self._served = served
        self._stores = stores
        self._rollouts = rollouts
        self._watch = watch
        self._events = events
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def _plugins(self) -> PluginStore:
        return self._stores.plugins

    async def list(self, request: web.Request) -> web.Response:
        where = folders(self._live.config)
        rows = await asyncio.to_thread(self._plugins.listing, where)
        users = await self._users()
        for row in rows:
            row["models"] = sorted(users.get(f"{row['name']}@{row['version']}", {}))
        keys = await asyncio.to_thread(self._plugins.keys)
        return answer(
            {"plugins": rows, "keys": [{"name": name, "key": key} for name, key in keys.items()]}
        )

    async def install(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), NewPlugin)
        path = Path(asked.path)
        if not path.is_absolute() or "\0" in asked.path:
            raise CallerError("path: must be absolute, on the daemon's machine", param="path")

        async def install(work: Work) -> Installed:
            done = await asyncio.to_thread(self._plugins.install, path, work, trust=asked.trust)
            self._told(done, "installed" if done.added else "installed_again")
            return done

        return answer(_shown(await self._through(install)), 201)

    async def trust(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Confided)
        if asked.plugin is not None and asked.key is None:
            name, version = split(asked.plugin)

            async def trust(work: Work) -> Installed:
                done = await asyncio.to_thread(self._plugins.trust, name, version, work)
                self._told(done, "trusted")
                return done

            return answer(_shown(await self._through(trust)))
        if asked.key is None or asked.text is None or asked.plugin is not None:
            raise CallerError("name a plugin, or a key and its text")
        named, text = asked.key, asked.text

        async def trust_key(work: Work) -> str:
            key = await asyncio.to_thread(self._plugins.trust_key, named, text)
            self._events.record("plugin", f"key {named}", "trusted", key=key)
            return key

        return answer({"key": named, "public": await self._through(trust_key)})

    async def untrust(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Confided)
        if asked.text is not None or (asked.plugin is None) == (asked.key is None):
            raise CallerError("name a plugin or a key")

        async def untrust(work: Work) -> None:
            if asked.plugin is not None:
                await asyncio.to_thread(self._plugins.untrust, *split(asked.plugin))
                self._events.record("plugin", asked.plugin, "untrusted")
            else:
                await asyncio.to_thread(self._plugins.untrust_key, asked.key or "")
                self._events.record("plugin", f"key {asked.key}", "untrusted")
            await self._watch.look()

        await self._through(untrust)
        return answer({"plugin": asked.plugin, "key": asked.key})

    async def verify(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Checked)
        name, _, version = (asked.plugin or "").partition("@")

        async def verify(work: Work) -> list[dict[str, str]]:
            problems = await asyncio.to_thread(
                self._plugins.verify,
                name or None,
                version or None,
                work,
                folders(self._live.config),
            )
            for problem in problems:
                self._events.record(
                    "plugin", problem["plugin"], "problem", reason=problem["problem"]
                )
            await self._watch.look()
            return problems

        return answer({"problems": await self._through(verify)})

    async def remove(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Reference)
        name, version = split(asked.plugin)

        async def remove(work: Work) -> None:
            users = (await self._users()).get(asked.plugin, {})
            if users:
                raise Conflict(_in_use(asked.plugin, users), code="plugin_in_use")
            await asyncio.to_thread(self._plugins.remove, name, version)
            self._events.record("plugin", asked.plugin, "removed")

        await self._through(remove)
        return answer({"plugin": asked.plugin})

    async def aclose(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _through(self, work: Callable[[Work], Coroutine[Any, Any, T]]) -> T:
        """Until it is done, whether or not the client still waits for it. Making an environment
        takes minutes, and half of one would only be made again."""
        stop = Work()
        task = asyncio.create_task(work(stop), name="plugins")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # The daemon ends: then the thread stops at its next look at the work.
        task.add_done_callback(lambda task: stop.stop() if task.cancelled() else task.exception())
        return await asyncio.shield(task)

    def _told(self, done: Installed, step: str) -> None:
        self._events.record(
            "plugin", f"{done.name}@{done.version}", step, digest=done.digest, trusted=done.trusted
        )

    async def _users(self) -> dict[str, dict[str, str]]:
        """By NAME@VERSION, the models that need it and what for."""
        catalog = await asyncio.to_thread(self._stores.catalog, self._live.config)
        users: dict[str, dict[str, str]] = {}
        for reference, model, why in self._uses(catalog):
            users.setdefault(reference, {}).setdefault(model, why)
        return users

    def _uses(self, catalog: Plugins) -> Iterator[tuple[str, str, str]]:
        for source in self._rollouts.in_use():
            yield source.plugin.reference, source.name, "has workers with it"
        for model, settings in self._live.config.models.items():
            yield _meant(settings.plugin, catalog), model, "is configured with it"
            if model not in self._served:
                continue
            for choice in (self._rollouts.choice(model), *self._rollouts.former(model)):
                if choice.plugin is not None:
                    yield _meant(choice.plugin, catalog), model, "may go back to it"


def _meant(plugin: str, catalog: Plugins) -> str:
    """NAME@VERSION of what a configuration or an operator has named."""
    if plugin == AUTO or "@" in plugin:
        return plugin
    try:
        return catalog.find(plugin).reference
    except PluginError:
        return plugin


def _in_use(plugin: str, users: dict[str, str]) -> str:
    said = "; ".join(f"the model {model!r} {why}" for model, why in sorted(users.items()))
    model = min(users)
    return (
        f"plugin {plugin} is in use: {said}. hxctl swap {model} --plugin NAME@VERSION moves a "
        "model to another one, and its former one stays for the time of its grace"
    )


def _shown(done: Installed) -> dict[str, Any]:
    return {
        "plugin": f"{done.name}@{done.version}",
        "digest": done.digest,
        "trusted": done.trusted,
        "added": done.added,
        "environment": None if done.environment is None else str(done.environment.parents[1]),
    }

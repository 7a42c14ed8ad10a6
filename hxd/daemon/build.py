"""The one wiring function: from a config to a daemon whose parts know each other. No globals.

`inspect` finds everything that is wrong with a configuration without starting anything; `build`
puts the parts together on an exit stack, which takes them apart in reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from hxd.clock import Clock
from hxd.config import Config
from hxd.config.history import History
from hxd.config.live import Live
from hxd.daemon.admin.api import AdminApi
from hxd.daemon.admin.config_api import ConfigApi
from hxd.daemon.admin.drills.drills import Drills
from hxd.daemon.admin.herald import Herald
from hxd.daemon.admin.jobs import Jobs
from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.admin.plugin_api import PluginApi
from hxd.daemon.admin.plugin_watch import PluginWatch
from hxd.daemon.admin.relabel import Relabel
from hxd.daemon.admin.rollout_api import RolloutApi
from hxd.daemon.admin.status import Status
from hxd.daemon.admin.store_api import StoreApi
from hxd.daemon.admin.store_jobs import StoreJobs
from hxd.daemon.admin.store_operations import Operations
from hxd.daemon.config_start import Leftover
from hxd.daemon.config_steps import Means as Taking
from hxd.daemon.config_steps import Steps
from hxd.daemon.events import Events
from hxd.daemon.lock import alone
from hxd.daemon.reconfigure import HISTORY, Reconfiguration
from hxd.daemon.reconfigure import Means as Changing
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.connection import ConnectionRunner, part
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.embed import Embeddings
from hxd.daemon.request.feedback import Feedback
from hxd.daemon.request.generate import Generation
from hxd.daemon.request.http import Entry, Front, Traffic, error_response, finish_headers
from hxd.daemon.request.identify import Role
from hxd.daemon.request.listener import CannotListen, Listener
from hxd.daemon.request.models import Catalog, flatten
from hxd.daemon.request.poison import Poison
from hxd.daemon.request.probe import Prober
from hxd.daemon.request.releases import Releases
from hxd.daemon.request.strand import Setting
from hxd.daemon.request.tokenize import Tokenization
from hxd.daemon.rollout.golden import Golden, GoldenError, parse
from hxd.daemon.rollout.guard import Guard
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.record import Record, fingerprint
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.rollout.validation import Means as Trying
from hxd.daemon.rollout.validation import Validation
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.keys import KeyFileError, KeyStore
from hxd.daemon.store.label_cache import LabelCache
from hxd.daemon.store.sources import Choice, Source, SourceError, stored_name
from hxd.daemon.store.stores import Stores
from hxd.daemon.store.version import Version
from hxd.daemon.supervise import variants
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.courtesy import Courtesy
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.memory import Room, automatic_budget
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.daemon.supervise.variants import Variants
from hxd.daemon.supervise.workers import Workers
from hxd.errors import CallerError, ConfigError, HxdError

ADMIN_SOCKET = "admin.sock"


Lasting = Callable[[], Coroutine[Any, Any, None]]


@contextlib.contextmanager
def claim(config: Config) -> Iterator[Stores]:
    """The folders, made, locked and cleared of what a crash left behind; the stores in them.
    Blocks. Raises `ConfigError`."""
    paths = config.paths
    for key in ("state", "runtime", "logs", "cache"):
        folder: Path = getattr(paths, key)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                [f"{config.origin}: paths.{key}: can't make {folder}: {error.strerror}"]
            ) from None
    stores = Stores.of(paths.state)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(paths.runtime, config.origin))
        (paths.runtime / ADMIN_SOCKET).unlink(missing_ok=True)
        variants.clean(paths.cache)
        try:
            stack.enter_context(stores.held())
        except HxdError as error:
            raise ConfigError([f"{config.origin}: paths.state: {error}"]) from None
        yield stores


@dataclass(frozen=True)
class Inspection:
    """What the configuration comes to: models that can be served, and why others can't. `instead`
    says of a model why it is not served as it should be, but by another version."""

    sources: Mapping[str, Source]
    refused: Mapping[str, SourceError]
    keys: KeyStore
    stores: Stores
    record: Record
    instead: Mapping[str, SourceError] = field(default_factory=dict)

    def findings(self, config: Config) -> list[str]:
        return [
            f"{config.at(f'models.{name}.{error.key}')}: {error}"
            for name, error in {**self.refused, **self.instead}.items()
        ]


def inspect(config: Config, stores: Stores | None = None) -> Inspection:
    """Blocks. Raises `ConfigError` for what no model can be blamed for."""
    stores = stores or Stores.of(config.paths.state)
    record = Record(config.paths.state)
    record.load()
    found: dict[str, Source] = {}
    refused: dict[str, SourceError] = {}
    instead: dict[str, SourceError] = {}
    resolver = stores.resolver(config)
    for name, settings in config.models.items():
        deployed = record.of(name, settings)
        try:
            found[name], wrong = resolver.first(name, (deployed.choice, *reversed(deployed.former)))
        except SourceError as error:
            refused[name] = error
            continue
        if wrong is not None:
            instead[name] = wrong
    budget = config.memory.budget or automatic_budget()
    _fit(found, refused, budget)
    keys = KeyStore(config.paths.state)
    try:
        keys.load()
    except KeyFileError as error:
        raise ConfigError([str(error)]) from None
    return Inspection(found, refused, keys, stores, record, instead)


def _fit(found: dict[str, Source], refused: dict[str, SourceError], budget: int) -> None:
    """Refuses, last first, the models that do not fit together; weights are mapped once, so
    replicas of one model share them, and counting each whole errs on the safe side."""
    total = 0
    for name, source in list(found.items()):
        need = source.estimate * source.settings.replicas
        if total + need > budget:
            del found[name]
            refused[name] = SourceError(
                "source",
                f"about {need / 1e6:.0f} MB are needed for {source.settings.replicas} replicas, "
                f"and {max(0, budget - total) / 1e6:.0f} MB of the memory budget are left; use "
                "fewer slots, a smaller context or variant, or raise memory.budget",
            )
        else:
            total += need


@dataclass
class Daemon:
    """The built parts that the run loop drives. Clients can connect by the time it is yielded. What
    is in `lasting` runs as long as the daemon does."""

    config: Config
    supervisor: Supervisor
    status: Status
    traffic: Traffic
    workers: Workers
    rollouts: Rollouts
    drills: Drills
    reconfiguration: Reconfiguration
    listener: Listener
    jobs: Jobs
    events: Events
    lasting: Sequence[Lasting]


@contextlib.asynccontextmanager
async def build(
    config: Config, inspection: Inspection, clock: Clock, leftover: Leftover | None = None
) -> AsyncIterator[Daemon]:
    """Parts in working order and listening; replicas start when `supervisor.run` does. A change of
    the configuration that is left over is the first one of this daemon.

    Raises `ConfigError` when an address or a folder can't be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        rng = random.Random()
        budget = config.memory.budget
        if budget is None:
            budget = await asyncio.to_thread(automatic_budget)

        def missed(key: str) -> bool:
            return releases.stranded(key)

        room = Room(budget)
        supervisor = Supervisor(inspection.sources, clock, rng, room.spare, missed)
        room.of(supervisor)
        stores = inspection.stores
        live = Live(config)
        prepare = Variants(config.paths.cache, stores.models, stores.plugins.recheck).file_for
        courtesy = Courtesy(supervisor.all, missed)
        supervisor.listeners.append(courtesy.changed)

        def pressed(key: str) -> None:
            courtesy.arrange()
            supervisor.hasten(key)

        cores = Cores(clock)
        workers = Workers(
            supervisor.post, prepare, clock, lambda: live.limits.drain, cores, courtesy.arrange
        )
        stack.push_async_callback(workers.aclose)
        releases = Releases(supervisor, clock, rng, cores.busy, pressed)
        served = {
            name: Deployment(name, releases.open(source))
            for name, source in inspection.sources.items()
        }
        poison = Poison(clock)
        events = Events(clock, config.paths.logs)
        stack.push_async_callback(events.flush)
        status = Status(
            live,
            supervisor,
            served,
            releases,
            dict(inspection.refused),
            dict(inspection.instead),
            poison,
            clock,
            started=clock.wall(),
        )
        metrics = Metrics(status.readings)

        def changed(replica: Replica, old: State, new: State) -> None:
            name = replica.source.name
            if old is State.FAILED and new is State.STARTING:
                metrics.restarted(name)
            if old is State.DRAINING and replica.heir is not None:
                metrics.renewed(name)
            if new is State.STOPPED:
                cores.forget(replica)
            releases.changed(replica, old, new)

        supervisor.listeners.append(changed)
        for name in served:
            metrics.serves(name)
        metrics.show(
            "hxd_requests_blocked",
            "Requests that are refused by their fingerprints now.",
            lambda: len(poison),
        )
        metrics.show(
            "hxd_workers_in_reserve",
            "Workers that wait, without a model, to replace one that dies.",
            lambda: len(workers.reserve),
        )
        labels = LabelCache(
            stores.models,
            lambda: [
                (name, held.name)
                for name, deployment in served.items()
                if (held := deployment.current.source.held) is not None
            ],
        )
        events.listeners.append(lambda event: labels.touch())
        catalog = Catalog(
            served,
            status.refused,
            int(clock.wall()),
            flatten(config.routes),
            metrics.fell_back,
            labels.of,
        )
        setting = Setting(clock, metrics, supervisor, poison, rng)
        means = Means(
            served,
            status.refused,
            releases,
            supervisor,
            room,
            setting,
            inspection.record,
            events,
            clock,
            lambda: live.limits.drain,
            *_store_means(live, stores),
        )
        rollouts = Rollouts(means)
        guard = Guard(means, rollouts)
        stack.push_async_callback(rollouts.aclose)
        status.rollouts, status.kept_for = rollouts.all, rollouts.warm_for
        events.listeners.append(lambda event: metrics.event(event.kind, event.step))
        metrics.show("hxd_events_lost", "Events that their file did not take.", lambda: events.lost)
        traffic = Traffic()
        front = Front(live, inspection.keys, metrics, clock, traffic)
        abilities = Abilities(catalog, supervisor)
        feedback = Feedback(rollouts.feedback, live)
        generation = Generation(abilities, setting, live, feedback)
        embeddings = Embeddings(abilities, setting, live)
        tokenization = Tokenization(abilities, setting, live)
        prober = Prober(releases.rosters, supervisor, clock)
        herald = Herald(status, clock)
        drills = Drills(means, rollouts, stores.models)
        # Its runner needs the table of routes, and some of those lead back here.
        connections: list[ConnectionRunner] = []
        listener = Listener(lambda port: connections[0].through(port))
        steps = Steps(
            Taking(
                live,
                rollouts,
                served,
                releases,
                supervisor,
                room,
                catalog.routes,
                status.refused,
                status.instead,
                metrics.serves,
                listener,
                clock,
            )
        )
        history = History(config.paths.state / HISTORY)
        reconfiguration = Reconfiguration(
            Changing(
                live,
                history,
                steps,
                listener,
                status.refused,
                status.instead,
                partial(_inspected, stores),
                status.conditions,
                events,
                clock,
            )
        )
        stack.push_async_callback(reconfiguration.aclose)
        status.change = reconfiguration.shown
        if leftover is not None:
            # Before anybody can ask for another one.
            reconfiguration.resume(leftover)
        admin = AdminApi(status, catalog, metrics, inspection.keys, front, clock, drills)
        rollout_api = RolloutApi(rollouts, events, stores)
        finished = metrics.tally(
            "hxd_store_operations", "Jobs that have ended, by how.", "kind", "outcome"
        )
        jobs = Jobs(clock, events, finished)
        stack.push_async_callback(jobs.aclose)
        metrics.show("hxd_jobs_running", "Jobs that are running.", lambda: jobs.running)
        operations = Operations(stores.models, lambda: live.config.pull)
        relabel = Relabel(rollouts, served, operations)
        validation = Validation(Trying(supervisor, releases, room, setting, clock))
        store_jobs = StoreJobs(live, stores, operations, validation, relabel)
        store_api = StoreApi(operations, store_jobs, jobs, relabel, rollouts, served, events)
        entries = routes(
            generation, embeddings, tokenization, feedback, admin, rollout_api, store_api
        )
        plugin_watch = PluginWatch(
            lambda: [source.plugin for source in rollouts.in_use()],
            stores.plugins.recheck,
            status.plugins,
            events,
            clock,
        )
        plugin_api = PluginApi(live, stores, served, rollouts, plugin_watch, events)
        stack.push_async_callback(plugin_api.aclose)
        config_api = ConfigApi(live, reconfiguration, history)
        entries += plugin_routes(plugin_api) + config_routes(config_api)
        connections.append(await _runner(live, front.application(entries), stack))
        stack.push_async_callback(listener.aclose)
        await _listen_admin(live, front.application(entries, trusted=True), stack)
        try:
            await listener.move(config.listen.http)
        except CannotListen as error:
            raise ConfigError([f"{config.at('listen.http')}: {error}"]) from None
        yield Daemon(
            config,
            supervisor,
            status,
            traffic,
            workers,
            rollouts,
            drills,
            reconfiguration,
            listener,
            jobs,
            events,
            (prober.run, herald.run, events.run, guard.run, plugin_watch.run, labels.run),
        )


def _inspected(
    stores: Stores, config: Config
) -> tuple[Mapping[str, Source], Mapping[str, SourceError]]:
    inspection = inspect(config, stores)
    return inspection.sources, {**inspection.refused, **inspection.instead}


def _store_means(live: Live, stores: Stores) -> tuple[Any, ...]:
    """What rollouts ask of the stores, away from the event loop."""

    def configured(model: str) -> str:
        settings = live.config.models.get(model)
        return "" if settings is None else fingerprint(settings)

    def shelf(model: str) -> str | None:
        return stored_name(model, live.config)

    async def resolve(model: str, choice: Choice) -> Source:
        return await asyncio.to_thread(lambda: stores.resolver(live.config).one(model, choice))

    async def others(model: str) -> list[Choice]:
        return await asyncio.to_thread(lambda: list(stores.resolver(live.config).others(model)))

    async def golden(source: Source) -> Golden | None:
        data = await asyncio.to_thread(stores.golden, source)
        try:
            return None if data is None else parse(data)
        except GoldenError as error:
            raise CallerError(f"the golden prompts of {source.name!r}: {error}") from None

    async def label(source: Source, label: str) -> None:
        held = source.held
        if held is not None:
            await asyncio.to_thread(stores.models.set_label, held.name, label, held.number)

    async def condemn(source: Source, why: str) -> None:
        if source.held is not None:
            await asyncio.to_thread(_condemn, stores, source.held, source.stored, why)

    return configured, shelf, resolve, others, golden, label, condemn


def _condemn(stores: Stores, held: Version, variant: str, why: str) -> None:
    """In quarantine for what it did; or for its bytes, where mending them is enough."""
    try:
        stores.models.ensure(held, variant)
    except Corrupt as error:
        stores.models.quarantine(held.name, held.number, str(error), cause="bytes")
    except StoreError:
        pass  # It is there already.
    else:
        stores.models.quarantine(held.name, held.number, why)


def routes(
    generation: Generation,
    embeddings: Embeddings,
    tokenization: Tokenization,
    feedback: Feedback,
    admin: AdminApi,
    rollout: RolloutApi,
    store: StoreApi,
) -> list[Entry]:
    """Every route, with the role that it needs. What is not here is not served."""
    user, read, operate, rule = Role.INFERENCE, Role.METRICS, Role.OPERATOR, Role.ADMIN
    return [
        Entry("POST", "/v1/chat/completions", user, generation.chat, work=True),
        Entry("POST", "/v1/completions", user, generation.complete, work=True),
        Entry("POST", "/v1/embeddings", user, embeddings.embeddings, work=True),
        Entry("POST", "/v1/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/v2/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/tokenize", user, tokenization.tokenize, work=True),
        Entry("POST", "/detokenize", user, tokenization.detokenize, work=True),
        Entry("POST", "/v1/feedback", user, feedback.say),
        Entry("GET", "/v1/models", user, admin.models),
        Entry("GET", "/v1/models/{id:.+}", user, admin.model),
        Entry("GET", "/livez", None, admin.livez),
        Entry("GET", "/readyz", None, admin.readyz),
        Entry("GET", "/health", read, admin.health),
        Entry("GET", "/metrics", read, admin.metrics),
        Entry("GET", "/admin/v1/status", operate, admin.status),
        Entry("GET", "/admin/v1/models", operate, admin.admin_models),
        Entry("GET", "/admin/v1/replicas", operate, admin.replicas),
        Entry("GET", "/admin/v1/conditions", operate, admin.conditions),
        Entry("POST", "/admin/v1/drill", operate, admin.drill, work=True),
        Entry("GET", "/admin/v1/events", operate, rollout.events),
        Entry("GET", "/admin/v1/rollouts", operate, rollout.list),
        Entry("POST", "/admin/v1/rollouts", operate, rollout.begin),
        Entry("POST", "/admin/v1/rollback", operate, rollout.roll_back),
        Entry("POST", "/admin/v1/promote", operate, rollout.promote),
        Entry("GET", "/admin/v1/store", operate, store.models),
        Entry("GET", "/admin/v1/store/show", operate, store.show),
        Entry("GET", "/admin/v1/store/snapshots", operate, store.snapshots),
        Entry("POST", "/admin/v1/store/import", rule, store.take_in, work=True),
        Entry("POST", "/admin/v1/store/pull", rule, store.pull, work=True),
        Entry("POST", "/admin/v1/store/rm", rule, store.remove, work=True),
        Entry("POST", "/admin/v1/store/restore", rule, store.restore, work=True),
        Entry("POST", "/admin/v1/store/verify", operate, store.verify, work=True),
        Entry("POST", "/admin/v1/store/quantize", operate, store.quantize, work=True),
        Entry("POST", "/admin/v1/store/look", operate, store.look, work=True),
        Entry("POST", "/admin/v1/store/convert", rule, store.convert, work=True),
        Entry("POST", "/admin/v1/store/backup", operate, store.backup, work=True),
        Entry("POST", "/admin/v1/store/doctor", operate, store.doctor, work=True),
        Entry("POST", "/admin/v1/store/label", operate, store.label, work=True),
        Entry("POST", "/admin/v1/store/golden", operate, store.golden, work=True),
        Entry("GET", "/admin/v1/jobs", operate, store.jobs),
        Entry("GET", "/admin/v1/jobs/{id}", operate, store.job),
        Entry("DELETE", "/admin/v1/jobs/{id}", operate, store.cancel),
        Entry("GET", "/admin/v1/keys", rule, admin.list_keys),
        Entry("POST", "/admin/v1/keys", rule, admin.create_key),
        Entry("DELETE", "/admin/v1/keys/{id}", rule, admin.revoke_key),
    ]


def plugin_routes(plugins: PluginApi) -> list[Entry]:
    return [
        Entry("GET", "/admin/v1/plugins", Role.OPERATOR, plugins.list),
        Entry("POST", "/admin/v1/plugins/install", Role.ADMIN, plugins.install),
        Entry("POST", "/admin/v1/plugins/trust", Role.ADMIN, plugins.trust),
        Entry("POST", "/admin/v1/plugins/untrust", Role.ADMIN, plugins.untrust),
        Entry("POST", "/admin/v1/plugins/verify", Role.OPERATOR, plugins.verify),
        Entry("POST", "/admin/v1/plugins/rm", Role.ADMIN, plugins.remove),
    ]


def config_routes(config: ConfigApi) -> list[Entry]:
    """A candidate names files for the daemon to look at, so that checking one is for admins too."""
    return [
        Entry("POST", "/admin/v1/reload", Role.ADMIN, config.reload),
        Entry("POST", "/admin/v1/config/check", Role.ADMIN, config.check),
        Entry("POST", "/admin/v1/config/diff", Role.ADMIN, config.diff),
        Entry("POST", "/admin/v1/config/apply", Role.ADMIN, config.apply),
        Entry("POST", "/admin/v1/config/rollback", Role.ADMIN, config.roll_back),
        Entry("GET", "/admin/v1/config/change", Role.OPERATOR, config.change),
        Entry("GET", "/admin/v1/config/history", Role.OPERATOR, config.revisions),
        Entry(
            "GET", "/admin/v1/config/history/{number:[0-9]{1,15}}", Role.OPERATOR, config.revision
        ),
    ]


async def _listen_admin(live: Live, app: web.Application, stack: contextlib.AsyncExitStack) -> None:
    config = live.config
    path = config.paths.runtime / ADMIN_SOCKET
    runner = await _runner(live, app, stack)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Linux gives the file the socket's own mode; a umask would hold for other threads too.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        await web.SockSite(runner, listener).start()
    except OSError as error:
        raise ConfigError(
            [f"{config.origin}: paths.runtime: can't listen on {path}: {error.strerror or error}"]
        ) from None
    stack.callback(path.unlink, missing_ok=True)


async def _runner(
    live: Live, app: web.Application, stack: contextlib.AsyncExitStack
) -> ConnectionRunner:
    app.on_response_prepare.append(finish_headers)
    app.on_response_prepare.append(part)
    runner = ConnectionRunner(
        app,
        live=live,
        render=error_response,
        handle_signals=False,
        # A client that goes away must free its slot within a step.
        handler_cancellation=True,
        # aiohttp's own wait for connections would come on top of ours; the run loop has drained.
        shutdown_timeout=1.0,
        access_log=None,
        auto_decompress=False,
        max_line_size=32 << 10,
        max_field_size=32 << 10,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner

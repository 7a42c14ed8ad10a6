"""The one wiring function: from a config to a daemon whose parts know each other, on an exit stack
that takes them apart in reverse order. No globals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from hxd.daemon.config_check import Proposer
from hxd.daemon.config_course import Means as Changing
from hxd.daemon.config_files import HISTORY, ConfigFiles
from hxd.daemon.config_start import Leftover
from hxd.daemon.config_steps import Means as Taking
from hxd.daemon.config_steps import Steps
from hxd.daemon.events import Events
from hxd.daemon.inspection import Inspection, inspect
from hxd.daemon.lock import ADMIN_SOCKET
from hxd.daemon.reconfigure import Reconfiguration
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.connection import ConnectionRunner, part
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.embed import Embeddings
from hxd.daemon.request.feedback import Feedback
from hxd.daemon.request.generate import Generation
from hxd.daemon.request.http import Front, Traffic, error_response, finish_headers
from hxd.daemon.request.listener import CannotListen, Listener
from hxd.daemon.request.models import Catalog, flatten
from hxd.daemon.request.poison import Poison
from hxd.daemon.request.probe import Prober
from hxd.daemon.request.releases import Releases
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.tokenize import Tokenization
from hxd.daemon.rollout.guard import Guard
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.rollout.stock import Stock
from hxd.daemon.rollout.validation import Means as Trying
from hxd.daemon.rollout.validation import Validation
from hxd.daemon.routes import config_routes, plugin_routes, routes
from hxd.daemon.store.label_cache import LabelCache
from hxd.daemon.store.sources import Source, SourceError
from hxd.daemon.store.stores import Stores
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.courtesy import Courtesy
from hxd.daemon.supervise.file_watch import FileWatch
from hxd.daemon.supervise.lifecycle import ALIVE, Event, State
from hxd.daemon.supervise.memory import Room, automatic_budget
from hxd.daemon.supervise.news import Message
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.daemon.supervise.variants import Variants
from hxd.daemon.supervise.workers import Workers
from hxd.errors import ConfigError

Lasting = Callable[[], Coroutine[Any, Any, None]]


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
        stock = Stock(live, stores)
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
            stock.configured,
            stock.shelf,
            stock.resolve,
            stock.others,
            stock.golden,
            stock.label,
            stock.condemn,
        )
        rollouts = Rollouts(means)

        def arrived(found: tuple[str, int, str, str]) -> None:
            """What serves now is what should, unless a drill has the model and brings it back."""
            if found[0] not in rollouts.lent:
                status.instead.pop(found[0], None)

        rollouts.arrived.append(arrived)
        guard = Guard(means, rollouts)
        stack.push_async_callback(rollouts.aclose)
        status.rollouts, status.kept_for = rollouts.all, rollouts.warm_for
        status.unrecorded = lambda: rollouts.ledger.unsaved
        status.kept_is_before = rollouts.warm_is_before
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
        files = ConfigFiles(live, history)
        proposer = Proposer(
            live,
            files,
            steps,
            listener,
            status.refused,
            status.instead,
            partial(_inspected, stores),
        )
        reconfiguration = Reconfiguration(
            Changing(
                live,
                history,
                files,
                proposer,
                steps,
                listener,
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

        async def spoiled(source: Source, why: str) -> None:
            """Its workers compute with other weights by now. They end where something else can be
            served; where nothing can, they are better than nobody, and a condition says so."""
            events.record("store", source.name, "changed", version=source.version, reason=why)
            if not await guard.could_relieve(source):
                return
            for replica in supervisor.replicas.get(source.key, ()):
                if replica.state in ALIVE:
                    supervisor.post(
                        Message(
                            replica, replica.generation, Event.DIED, why, outside=True, barred=True
                        )
                    )

        file_watch = FileWatch(
            lambda: [one.source for one in supervisor.all() if one.state is State.READY],
            stores.models,
            spoiled,
            status.files,
            clock,
        )
        plugin_api = PluginApi(live, stores, served, rollouts, plugin_watch, events)
        stack.push_async_callback(plugin_api.aclose)
        config_api = ConfigApi(live, reconfiguration, history, files, proposer)
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
            (
                prober.run,
                herald.run,
                events.run,
                guard.run,
                rollouts.ledger.run,
                plugin_watch.run,
                labels.run,
                file_watch.run,
            ),
        )


def _inspected(
    stores: Stores, config: Config
) -> tuple[Mapping[str, Source], Mapping[str, SourceError]]:
    inspection = inspect(config, stores)
    return inspection.sources, {**inspection.refused, **inspection.instead}


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

"""The daemon's life: start, ready, drain, stop. A second signal ends it at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from hxd.clock import Clock, SystemClock
from hxd.config import Config, load
from hxd.config.files import snapshot
from hxd.config.history import History, Outcome, Why
from hxd.config.install import recover
from hxd.config.unfinished import Place
from hxd.daemon.build import Daemon, Lasting, build
from hxd.daemon.config_files import HISTORY
from hxd.daemon.config_start import Leftover
from hxd.daemon.inspection import Inspection, claim, inspect
from hxd.daemon.rollout import loan
from hxd.daemon.systemd import notify, watchdog_interval
from hxd.errors import ConfigError, HxdError

log = logging.getLogger("hxd")

EXIT_FORCED = 130


def serve(config_file: Path) -> None:
    """Run until told to stop. An apply of the configuration that a former daemon has left
    unfinished is taken up. Raises `ConfigError` when nothing could be served."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # aiohttp says the same of every request; our own lines are enough.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    leftover = Leftover.find(config_file)
    if leftover is not None:
        leftover.settle()
    try:
        _serve(load(config_file), leftover)
    except ConfigError as error:
        if leftover is None or not leftover.take_back(str(error)):
            raise
        _serve(load(config_file), leftover)


def _serve(config: Config, leftover: Leftover | None) -> None:
    logging.getLogger().setLevel(config.log.level.upper())
    with claim(config) as stores:
        if leftover is None or leftover.record is None:
            config = _recorded(config)
        for done in loan.recover(config.paths.state, stores.models):
            log.warning("%s", done)
        inspection = inspect(config, stores)
        findings = inspection.findings(config)
        if findings and not inspection.sources:
            raise ConfigError(findings)
        for finding in findings:
            log.error("%s; what can be served is", finding)
        uvloop.run(_live(config, inspection, SystemClock(), leftover))


def _recorded(config: Config) -> Config:
    """The configuration, with a change that was interrupted brought to its end; the history knows
    it afterwards."""
    folder = config.paths.state / HISTORY
    history = History(folder)
    try:
        history.prepare()
        for done in recover(config.origin, folder):
            log.warning("configuration: %s", done)
            config = load(config.origin)
        revision = history.record(snapshot(config.origin), Why.START, "start", time.time())
        history.settle(revision.number, Outcome.APPLIED)
        for other in history.all():
            if other.outcome is Outcome.PENDING:
                history.settle(other.number, Outcome.ROLLED_BACK, "the daemon ended before it held")
        Place(config.origin, folder).clear()
    except ConfigError:
        raise
    except HxdError as error:
        # It serves all the same; only going back is not possible.
        log.error("%s", error)
    return config


async def _live(
    config: Config, inspection: Inspection, clock: Clock, leftover: Leftover | None
) -> None:
    stop = _Signals()
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(daemon), name="reload")
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    async with build(config, inspection, clock, leftover) as daemon:
        supervising = asyncio.create_task(daemon.supervisor.run(daemon.workers), name="supervisor")
        beside = [
            asyncio.create_task(_again_and_again(run, clock), name=run.__qualname__)
            for run in (daemon.workers.watch_over, *daemon.lasting)
        ]
        watchdog = asyncio.create_task(_feed_watchdog(clock), name="watchdog")
        try:
            log.info("listening on %s", daemon.listener.url)
            notify("READY=1", f"STATUS=serving {len(inspection.sources)} models")
            stop.on_reload(reload)
            await daemon.rollouts.settle()
            await daemon.rollouts.resume()
            daemon.reconfiguration.settled.set()
            await _until(stop.asked, supervising)
            # First: one that tries a model would bring up a worker that nobody asks to end.
            await daemon.jobs.aclose()
            await daemon.reconfiguration.aclose()
            await daemon.drills.aclose()
            await daemon.rollouts.aclose()
            await _drain(daemon, clock)
            await daemon.supervisor.stop()
            await daemon.workers.gone()
        finally:
            notify("STOPPING=1")
            daemon.workers.kill_all(daemon.supervisor.all())
            tasks = (supervising, *beside, watchdog)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    log.info("stopped")


async def _until(asked: asyncio.Event, supervising: asyncio.Task[None]) -> None:
    """Until a signal comes; a supervisor that ends by itself is a bug, and ends the daemon."""
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({waiting, supervising}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if supervising.done():
        supervising.result()


async def _again_and_again(run: Lasting, clock: Clock) -> None:
    """What watches, probes and tells. It has no state that could be wrong, so a bug in it costs a
    line in the log and a second, and no request."""
    while True:
        try:
            await run()
        except Exception:  # the boundary of a part that must not take the daemon along
            log.exception("task=%s failed; it begins again", run.__qualname__)
        await clock.sleep(1.0)


async def _reload(daemon: Daemon) -> None:
    """SIGHUP: systemd waits for READY."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")
    try:
        proposal = await daemon.reconfiguration.reload()
        log.info("reloaded: %s", proposal.plan.sentence)
        said = proposal.plan.sentence
    except HxdError as error:
        log.error("reload refused: %s", error)
        said = "the last reload was refused"
    notify("READY=1", f"STATUS=serving {len(daemon.status.served)} models; {said}")


async def _drain(daemon: Daemon, clock: Clock) -> None:
    """Refuse new requests and wait, bounded, for those that run."""
    bound = daemon.status.live.limits.drain
    daemon.status.draining = True
    daemon.traffic.closing = True
    log.info("draining running=%d bound=%gs", daemon.traffic.running, bound)
    notify("STOPPING=1", f"STATUS=draining {daemon.traffic.running} requests")
    deadline = clock.now() + bound
    while daemon.traffic.running and clock.now() < deadline:
        await clock.sleep(0.02)
    if daemon.traffic.running:
        log.warning("drain bound of %g s passed running=%d", bound, daemon.traffic.running)
    # Also for what no client waits for any more but a worker has not let go of.
    message = f"the server is shutting down; it waited {bound:g} s for this request"
    daemon.workers.give_up_calls(daemon.supervisor.all(), message, "draining")


async def _feed_watchdog(clock: Clock) -> None:
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await clock.sleep(interval)


class _Signals:
    """SIGTERM and SIGINT ask once; the second one ends the process, workers included."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask, number)
        loop.add_signal_handler(signal.SIGHUP, self._too_early)

    def _ask(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            log.warning("second signal (%s): ending at once", number.name)
            # Workers die with this process (PR_SET_PDEATHSIG).
            os._exit(EXIT_FORCED)
        log.info("signal=%s: draining; once more ends at once", number.name)
        self.asked.set()

    def on_reload(self, reload: Callable[[], None]) -> None:
        """Until it is called, SIGHUP is taken note of and nothing else: it must not end hxd."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    @staticmethod
    def _too_early() -> None:
        log.warning("SIGHUP: the daemon is still starting; send it again")

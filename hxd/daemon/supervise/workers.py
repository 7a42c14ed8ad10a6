"""The supervisor's effects on the world: processes, timers, heartbeats. Decides nothing.

Every outcome goes back to the supervisor as a message that names the generation it belongs to.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.lifecycle import Event, State
from hxd.daemon.supervise.link import Heard, Loss, Lost
from hxd.daemon.supervise.news import Message, News
from hxd.daemon.supervise.process import Program, WorkerProcess, describe_exit
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.reserve import Reserve
from hxd.daemon.supervise.sentinel import Sentinel
from hxd.daemon.supervise.supervisor import HELLO_SECONDS

log = logging.getLogger("hxd.supervise")

UNLOAD_GRACE = 3.0
TERM_GRACE = 2.0
SETTLE_INTERVAL = 60.0
MOVE_GRACE = 10.0  # for calls that can't leave a replica that is to end
# An exit says more than the end of the link that comes just before it.
EXIT_WAIT = 2.0
SAID_LIMIT = 1000  # characters of a worker's own words that are kept

# Signals that come from outside: an operator, a script, the kernel.
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

Post = Callable[[News], None]
Prepare = Callable[[Replica], Awaitable[Path | None]]
WARM_ID = 0


class Workers:
    """`prepare` gives the file that a replica loads, and makes it first where it has to be made.
    `drain` is how long a replica that is to end lets its requests run before it asks them to go on
    elsewhere, in seconds. `came` is called when a new process is there."""

    def __init__(
        self,
        post: Post,
        prepare: Prepare,
        clock: Clock,
        drain: Callable[[], float],
        cores: Cores,
        came: Callable[[], None] = lambda: None,
    ) -> None:
        self._came = came
        self._settling: asyncio.Task[None] | None = None
        self.reserve = Reserve(clock)
        self._post = post
        self._prepare = prepare
        self._drain_time = drain
        self.sentinel = Sentinel(post, clock, cores)
        self._files: dict[str, Path | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lives: dict[str, asyncio.Task[None]] = {}

    def spawn(self, replica: Replica) -> None:
        self._run(self._spawn(replica, replica.generation), f"spawn-{replica.id}")

    async def _spawn(self, replica: Replica, generation: int) -> None:
        def died(why: str, *, barred: bool = False) -> None:
            self._post(Message(replica, generation, Event.DIED, why, barred=barred))

        previous = self._lives.get(replica.id)
        if previous is not None:
            await previous
        voice = _Voice(replica, generation, self._post, self.sentinel)
        spare = None
        try:
            file = await self._prepare(replica)
            program = _program(replica.source)
            spare = await self.reserve.take(program)
            worker = spare.worker if spare else await WorkerProcess.spawn(program, voice)
        except PrepareError as error:
            died(str(error), barred=isinstance(error, Barred))
            return
        except Exception as error:  # whatever it was, the replica must not stay in STARTING
            log.exception("replica=%s can't be started", replica.id)
            died(f"can't start a worker: {error}")
            return
        if replica.generation != generation:
            # Too late: the replica may have another worker by now.
            worker.kill()
            await worker.wait()
            worker.kill_group()
            return
        replica.worker = worker
        voice.worker = worker
        self.sentinel.admit(replica, generation, worker)
        self._came()
        self._files[replica.id] = file
        life = self._live(replica.id, worker, voice)
        self._lives[replica.id] = self._run(life, f"life-{replica.id}")
        if spare is not None and spare.owner.hello is not None:
            worker.link.adopt(voice)
            voice.received(spare.owner.hello)
            return
        self.later(
            HELLO_SECONDS,
            Message(
                replica,
                generation,
                Event.DIED,
                f"no word from the worker {HELLO_SECONDS:g} s after its start",
                while_in=State.STARTING,
            ),
        )

    async def _live(self, id: str, worker: WorkerProcess, voice: _Voice) -> None:
        """Until the process is gone; then nothing of its group is left either."""
        code = await worker.wait()
        worker.kill_group()
        # Whoever starts the next one has waited for the end of this.
        del self._lives[id], self._files[id]
        voice.exited(code)

    def load(self, replica: Replica) -> None:
        source, settings = replica.source, replica.source.settings
        # None of one that is gone by now, to which nothing is sent.
        file = self._files.get(replica.id)
        self._send(
            replica,
            wire.Load(
                model=source.name,
                path=None if file is None else str(file),
                context=source.context,
                slots=settings.slots,
                threads=settings.threads,
                options=settings.options,
            ),
        )

    def warm(self, replica: Replica) -> None:
        generation = replica.generation

        def answered(answer: Heard) -> None:
            match answer:
                case wire.Done():
                    self._post(Message(replica, generation, Event.WARMED))
                case wire.Failed(message=why) | Lost(why=why):
                    why = f"the first token failed: {why}"
                    self._post(Message(replica, generation, Event.DIED, why))

        if replica.worker is not None:
            can = replica.loaded.capabilities if replica.loaded is not None else []
            replica.worker.link.call(first_request(can), answered)

    def watch(self, replica: Replica) -> None:
        self.sentinel.serves(replica)
        self._settle()

    def _settle(self) -> None:
        """A worker is up: there is time for those in waiting."""
        if self._settling is None or self._settling.done():
            self._settling = self._run(self.reserve.settle(), "reserve")

    def drain(self, replica: Replica) -> None:
        self._run(self._drain(replica, replica.generation), f"drain-{replica.id}")

    async def _drain(self, replica: Replica, generation: int) -> None:
        """Until nothing runs on it: by itself, then on request, then because it must."""
        worker = replica.worker
        if worker is not None:
            link = worker.link
            for bound, then in (
                (self._drain_time(), partial(link.urge, "the replica is being replaced")),
                (MOVE_GRACE, partial(link.close, "the replica was replaced", loss=Loss.KILLED)),
            ):
                try:
                    async with asyncio.timeout(bound):
                        await link.idle()
                    break
                except TimeoutError:
                    then()
        self._post(Message(replica, generation, Event.EMPTY))

    def end(self, replica: Replica, *, gently: bool) -> None:
        worker = replica.worker
        if worker is None:
            return
        if not gently and replica.source.settings.reserve:
            self.reserve.died(_program(replica.source))
        if gently:
            self._run(self._end_gently(worker), f"end-{replica.id}")
        else:
            worker.kill()

    async def _end_gently(self, worker: WorkerProcess) -> None:
        worker.link.send(wire.Unload())
        for wait, then in ((UNLOAD_GRACE, worker.terminate), (TERM_GRACE, worker.kill)):
            try:
                await asyncio.wait_for(worker.wait(), wait)
                return
            except TimeoutError:
                then()

    def later(self, seconds: float, message: Message) -> None:
        asyncio.get_running_loop().call_later(seconds, self._post, message)

    def _send(self, replica: Replica, frame: wire.Frame) -> None:
        if replica.worker is not None:
            replica.worker.link.send(frame)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task=%s failed", task.get_name(), exc_info=error)

    async def watch_over(self) -> None:
        """Watches every worker; never ends by itself."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sentinel.run())
            group.create_task(self._settle_again_and_again())

    async def _settle_again_and_again(self) -> None:
        """Nobody waits in reserve for ever."""
        while True:
            await asyncio.sleep(SETTLE_INTERVAL)
            if self.reserve.wanted:
                self._settle()

    async def gone(self) -> None:
        """Wait until every process has been reaped."""
        while lives := [task for task in self._lives.values() if not task.done()]:
            await asyncio.wait(lives)

    def give_up_calls(self, replicas: Iterable[Replica], message: str, code: str) -> None:
        """End what is still running, with an error that the client reads."""
        for replica in replicas:
            if replica.worker is not None:
                replica.worker.link.give_up(message, code)

    def kill_all(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            if replica.worker is not None:
                replica.worker.kill()
        self.reserve.kill_all()

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.reserve.aclose()


def _program(source: Source) -> Program:
    plugin, settings = source.plugin, source.settings
    return Program(
        plugin.manifest.name,
        plugin.folder,
        plugin.digest,
        settings.memory_limit,
        settings.environment,
        plugin.python,
    )


def first_request(capabilities: Collection[str]) -> wire.Request:
    """One that takes a token or two through the whole model."""
    if "embed" in capabilities and "generate" not in capabilities:
        return wire.Embed(WARM_ID, ["Hello"])
    if "rank" in capabilities and "generate" not in capabilities:
        return wire.Rank(WARM_ID, "Hello", ["Hello"])
    return wire.Generate(
        id=WARM_ID,
        seed=0,
        text="Hello",
        sampling=wire.Sampling(temperature=0.0, ignore_eos=True),
        max_tokens=1,
    )


class PrepareError(Exception):
    """The file that a replica should load can't be made."""


class Barred(PrepareError):
    """The file or the plugin is not what it was when it was accepted."""


class _Voice:
    """Turns what one worker says, and how it ends, into messages."""

    def __init__(self, replica: Replica, generation: int, post: Post, sentinel: Sentinel) -> None:
        self._sentinel = sentinel
        self._replica = replica
        self._generation = generation
        self._post = post
        self._said: str | None = None
        self._closed: str | None = None
        self.worker: WorkerProcess | None = None

    def received(self, frame: wire.Tidings) -> None:
        match frame:
            case wire.Hello() if frame.protocol != wire.PROTOCOL:
                self._died(f"speaks protocol {frame.protocol}, not {wire.PROTOCOL}")
            case wire.Hello():
                self._tell(Event.HELLO)
            case wire.Loaded():
                self._post(Message(self._replica, self._generation, Event.LOADED, loaded=frame))
            case wire.Failed():
                self._said = frame.message[:SAID_LIMIT]
            case wire.Progress():
                self._replica.note = f"{frame.note[:SAID_LIMIT]} {frame.share:.0%}".strip()

    def verdict(self) -> tuple[Loss, str]:
        code = None if self.worker is None else self.worker.exit_code()
        if code is None:
            return Loss.CRASHED, "the worker closed its link"
        why = f"the worker {describe_exit(code)}"
        if code >= 0 or -code not in FROM_OUTSIDE:
            return Loss.CRASHED, why
        if code == -signal.SIGKILL and self._sentinel.killed_for_memory():
            return Loss.CRASHED, f"{why}: the box ran out of memory"
        return Loss.KILLED, why

    def lost(self, reason: str, *, at_fault: bool) -> None:
        if at_fault:
            self._said = reason
            if self.worker is not None:
                self.worker.kill()
        self._closed = reason
        asyncio.get_running_loop().call_later(EXIT_WAIT, self._given_up)

    def _given_up(self) -> None:
        """The link ended, but the process did not."""
        if self.worker is not None:
            self.worker.kill()
        self._died(self._said or self._closed or "the link ended")

    def exited(self, code: int) -> None:
        worker = self.worker
        why = f"the worker {describe_exit(code)}"
        if self._said:
            why = self._said
        elif worker is not None and worker.tail:
            why += f"; its last words: {worker.tail[-1]}"
        self._died(why)

    def _died(self, why: str) -> None:
        loss, _ = self.verdict()
        self._tell(Event.DIED, why, outside=loss is Loss.KILLED)

    def _tell(self, event: Event, detail: str = "", *, outside: bool = False) -> None:
        self._post(Message(self._replica, self._generation, event, detail, outside=outside))

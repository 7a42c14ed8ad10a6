"""A daemon's inner half in virtual time: the real supervisor, gates and links, and workers that
exist in this process only.

An answer's tokens follow from vocabulary, prompt, seed and position, so that every answer can be
told token by token, wherever it was made. Knows nothing of which faults there are to be, nor of
what may be expected under them.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import signal
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hxd import wire
from hxd.config import ModelSettings
from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.request.admit import Gate
from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.request.failover import BUDGET_LEAST
from hxd.daemon.request.models import Catalog
from hxd.daemon.request.poison import Poison
from hxd.daemon.request.probe import Prober
from hxd.daemon.request.roster import Roster
from hxd.daemon.request.setting import Setting
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.lifecycle import Event, State
from hxd.daemon.supervise.link import Heard, Link, Loss, Lost
from hxd.daemon.supervise.news import Doubt, Message
from hxd.daemon.supervise.process import describe_exit
from hxd.daemon.supervise.procfs import Look
from hxd.daemon.supervise.pulse import HEARTBEAT_DEADLINE, SILENCE, STOPPED
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.sentinel import Sentinel
from hxd.daemon.supervise.supervisor import HELLO_SECONDS, HOPEFUL_DEATHS, Supervisor
from hxd.daemon.supervise.workers import EXIT_WAIT, FROM_OUTSIDE, MOVE_GRACE, first_request
from hxd.errors import Fault

LATENCY = 0.0005  # of a socketpair, each way
# So many turns of the loop without a jump in time are a loop that turns for ever.
TURNS = 100_000
DRAIN = 5.0
SLOTS = 4
STALL_TIME = 8.0
QUEUE_TIME = 30.0
# Pieces whose token divides by this are held back until the next one, like half a character.
HELD = 4
POISON = "poison"


class _Jumps(selectors.SelectSelector):
    """Waits for nothing: what it should wait for is given to `jump`."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer when nothing is ready. It has no sockets."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._turns = 0
        super().__init__(_Jumps(self._wait))

    def time(self) -> float:
        return self._virtual

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """At once: a thread would take its time while this one's jumps."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # whatever it is, it is for who waits
            future.set_exception(error)
        return future

    def _wait(self, timeout: float | None) -> None:
        if timeout is None:
            raise RuntimeError(f"at {self._virtual:.3f} s everything waits for ever")
        if timeout > 0:
            self._virtual += timeout
            self._turns = 0
            return
        self._turns += 1
        if self._turns > TURNS:
            raise RuntimeError(f"at {self._virtual:.3f} s the loop turns without end")


class VirtualClock:
    """A `Clock` that reads the loop that runs. `stretch`: its sleeps are so many times as long,
    for who only looks around now and then and would cost more than all else in a quiet time."""

    def __init__(self, stretch: float = 1.0) -> None:
        self._stretch = stretch

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 1.7e9 + self.now()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(self._stretch * seconds)


def drawn(*what: object) -> int:
    """A number that follows from `what` alone."""
    return zlib.crc32(repr(what).encode())


def token(vocab: str, order: wire.Generate, position: int) -> int:
    return drawn(vocab, order.text, order.seed, position) % 50_000


def piece(token: int) -> str:
    return f"{token} "


def length(order: wire.Generate) -> int:
    """Tokens of the whole answer."""
    assert order.max_tokens is not None
    return min(order.max_tokens, 1 + drawn(order.text, order.seed, "length") % 60)


@dataclass(frozen=True)
class Twin:
    """The answer that nothing disturbs."""

    text: str
    tokens: list[int]
    finish: str

    @classmethod
    def of(cls, order: wire.Generate, vocab: str) -> Twin:
        count = length(order)
        tokens = [token(vocab, order, position) for position in range(count)]
        echo = (order.text or "") if order.echo else ""
        finish = "length" if count == order.max_tokens else "stop"
        return cls(echo + "".join(map(piece, tokens)), tokens, finish)


@dataclass
class Run:
    """One sequence in a simulated engine; `steps` in this worker. `fuse`: the steps after which it
    ends its worker."""

    order: wire.Generate
    begins: float
    fuse: int | None
    tokens: list[int]
    held: list[int] = field(default_factory=list)
    steps: int = 0

    def advance(self, vocab: str, count: int) -> tuple[wire.Delta, wire.Done | None]:
        order, whole = self.order, length(self.order)
        new = [
            token(vocab, order, position)
            for position in range(len(self.tokens), min(whole, len(self.tokens) + count))
        ]
        self.tokens += new
        self.held += new
        done = None
        if len(self.tokens) >= whole:
            finish = "length" if whole == order.max_tokens else "stop"
            done = wire.Done(order.id, finish, 1, len(self.tokens))
        shown = 0 if done is None else len(self.held)
        for at, one in enumerate(self.held, start=1):
            if one % HELD:
                shown = max(shown, at)
        out, self.held = self.held[:shown], self.held[shown:]
        delta = wire.Delta(order.id, new, "".join(map(piece, out)))
        if order.logprobs is not None:
            delta.logprobs = [wire.Logprob(one, piece(one).encode(), -1.0) for one in new]
            delta.held = len(self.held)
        return delta, done

    @classmethod
    def begin(cls, order: wire.Generate, now: float, fuse: int | None) -> Run:
        held: list[int] = []
        for one in order.resume:
            held = [] if one % HELD else [*held, one]
        words = len(order.resume) + len(order.text or "")
        return cls(order, now + 0.01 + 0.001 * words, fuse, list(order.resume), held)


class _Pipe(asyncio.Transport):
    """Both directions between a link and its worker; frames keep their order."""

    def __init__(self, worker: SimulatedWorker) -> None:
        super().__init__()
        self._worker = worker
        self._splitter = wire.Splitter(wire.TO_WORKER_LIMIT)
        self._up = bytearray()
        self.down: deque[wire.ToWorker] = deque()
        self.open = True

    def write(self, data: Any) -> None:
        for body in self._splitter.feed(bytes(data)):
            frame = wire.decode(wire.to_worker, body)
            self._worker.sent(frame)
            self.down.append(frame)
        asyncio.get_running_loop().call_later(LATENCY, self._worker.read)

    def abort(self) -> None:
        self.open = False
        asyncio.get_running_loop().call_later(LATENCY, self._worker.exit, 0)

    def say(self, data: bytes) -> None:
        if not self._up:
            asyncio.get_running_loop().call_later(LATENCY, self._deliver)
        self._up += data

    def cut(self, share: float) -> None:
        """The writer dies in the middle of what it writes."""
        del self._up[int(share * len(self._up)) :]

    def _deliver(self) -> None:
        data, self._up = bytes(self._up), bytearray()
        if self.open and data:
            self._worker.link.data_received(data)

    def end(self) -> None:
        if self.open:
            self.open = False
            self._worker.link.connection_lost(None)


class _Proc:
    """What the kernel says of a simulated worker."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker

    def look(self) -> Look | None:
        worker = self._worker
        if worker.gone.is_set():
            return None
        return Look(worker.code is not None, worker.stopped, 0)

    def private(self) -> int | None:
        return None

    def waited(self) -> float | None:
        return None


@dataclass(frozen=True)
class Death:
    """The end of a worker's service: who was in flight, and whether its model had another replica
    that served or could be hoped for."""

    at: float
    replica: str
    loss: Loss
    hope: bool
    orders: tuple[wire.Generate, ...]


class SimulatedWorker:
    """Stands for a `WorkerProcess`, and is the process too: a link's owner on one side and a small
    engine on the other. Faults are its public attributes and methods."""

    def __init__(self, world: World, replica: Replica, generation: int) -> None:
        self.world, self.replica, self.generation = world, replica, generation
        self.model = replica.source.name
        self.vocab = world.vocabs[self.model]
        self.rng = random.Random(drawn(world.seed, replica.id, generation))
        self.pid = drawn(replica.id, generation)
        self.proc = _Proc(self)
        self.link = Link(self)
        self.pipe = _Pipe(self)
        self.link.connection_made(self.pipe)
        self.gone = asyncio.Event()
        self.code: int | None = None
        self.stopped = self.silent = self.hung = False
        self.slowness, self.fails = 1.0, 0.0
        self.mourned = False
        self.orders: dict[int, wire.Generate] = {}
        self.steps = 0
        self._running: list[Run] = []
        self._waiting: deque[wire.Generate] = deque()
        self._cancelled: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loss: Loss | None = None
        self._said: str | None = None
        self._after(self.rng.uniform(0.05, 0.4), self._hello)

    # As a process

    @property
    def alive(self) -> bool:
        return self.code is None

    @property
    def frozen(self) -> bool:
        return self.stopped or self.silent

    @property
    def serving(self) -> bool:
        return (
            self.alive
            and not self.frozen
            and not self.hung
            and not self.link.closed
            and self.replica.worker is self
            and self.replica.state is State.READY
        )

    def kill(self) -> None:
        self.exit(-signal.SIGKILL)

    def exit(self, code: int) -> None:
        if self.code is not None or (self.frozen and code >= 0):
            return
        self.code = code
        self.pipe.cut(self.rng.random())
        self.world.changed(self.model)
        if self._timer is not None:
            self._timer.cancel()
        if not self.world.watched:
            self._after(self.rng.uniform(0, 0.022), self.link.bury)
        self._after(self.rng.uniform(0.003, 0.8), self._reaped)

    def crash(self, culprit: wire.Generate | None = None) -> None:
        """Ends by itself."""
        if culprit is not None and self.alive:
            kill = self.world.clock.now(), culprit.seed
            self.world.killed_by[culprit.text or ""].append(kill)
        self.exit(-signal.SIGSEGV)

    def fail_step(self) -> None:
        """The backend raises in a step: every running sequence is failed, then the worker ends."""
        if not self.alive or self.frozen:
            return
        if self._running:
            self._mourn(Loss.CRASHED)
        for sequence in self._running:
            why = "the backend failed in a decode step"
            self.say(wire.Failed(sequence.order.id, Fault.BACKEND, why, wire.WORKER_DIED))
        self._after(self.rng.uniform(0.001, 0.05), self.exit, 1)
        self._running.clear()

    @property
    def running(self) -> bool:
        return bool(self._running)

    def freeze(self, seconds: float, *, stopped: bool) -> None:
        """By a signal, or because nobody in it reads; what the sentinel would say of it follows."""
        if not self.alive or self.frozen:
            return
        self.stopped, self.silent = stopped, not stopped
        self._after(seconds, self._thaw)
        self.world.changed(self.model)
        if not self.world.watched and self.replica.state is State.READY:
            if stopped:
                self._after(STOPPED, self._judge, seconds <= STOPPED, "stopped by a signal")
            else:
                self._after(HEARTBEAT_DEADLINE, self._doubt)
                self._after(SILENCE, self._judge, seconds <= SILENCE, "no heartbeat")

    def _doubt(self) -> None:
        if self.frozen and not self.link.closed:
            self._post(Doubt(self.replica, self.generation, suspect=True))
            self.link.urge("no heartbeat")

    def _judge(self, over: bool, why: str, loss: Loss = Loss.STALLED) -> None:
        if not over and self.alive and not self.link.closed:
            self.link.close(why, loss=loss)
            self._died(why)

    def _thaw(self) -> None:
        self.stopped = self.silent = False
        if not self.alive:
            return
        if not self.pipe.open:
            self.exit(0)
            return
        if self.replica.suspect and not self.world.watched:
            self._post(Doubt(self.replica, self.generation, suspect=False))
        self.world.changed(self.model)
        self.read()
        self._go()

    def hang(self, seconds: float) -> None:
        """Goes on answering pings, and steps no more for so long."""
        if self.alive and not self.hung:
            self.hung = True
            self._after(seconds, self._unhang)
            self.world.changed(self.model)
            if not self.world.watched:
                self._after(STALL_TIME, self._hangs)

    def _hangs(self) -> None:
        if self.hung and self.replica.state is State.READY and (self._running or self._waiting):
            self._judge(False, "hangs", Loss.CRASHED)

    def _unhang(self) -> None:
        self.hung = False
        self.world.changed(self.model)
        self._go()

    def babble(self) -> None:
        """Sends what is no frame."""
        if self.alive and not self.frozen:
            self.pipe.say(b"\x00\x00\x00\x05junk!")

    def hang_up(self) -> None:
        """Closes its link and lives on."""
        if self.alive:
            self.pipe.end()

    def _reaped(self) -> None:
        self.pipe.end()
        self.gone.set()
        assert self.code is not None
        self._died(self._said or f"the worker {describe_exit(self.code)}")

    # As the owner of its link

    def received(self, frame: wire.Tidings) -> None:
        match frame:
            case wire.Hello():
                self._post(Message(self.replica, self.generation, Event.HELLO))
            case wire.Loaded():
                self._post(Message(self.replica, self.generation, Event.LOADED, loaded=frame))

    def verdict(self) -> tuple[Loss, str]:
        if self.code is None:
            return Loss.CRASHED, "the worker closed its link"
        outside = -self.code in FROM_OUTSIDE
        loss = Loss.KILLED if outside else Loss.CRASHED
        return loss, f"the worker {describe_exit(self.code)}"

    def lost(self, reason: str, *, at_fault: bool) -> None:
        outside = ("no heartbeat", "stopped by", "the replica was replaced")
        if reason.startswith(outside):
            loss = Loss.STALLED
        elif at_fault or reason.startswith("hangs") or self.verdict()[0] is Loss.CRASHED:
            loss = Loss.CRASHED
        else:
            loss = Loss.KILLED
        self._mourn(loss)
        self.world.changed(self.model)
        if at_fault:
            self._said = reason
            self.kill()
        self._after(EXIT_WAIT, self._given_up, reason)

    def _mourn(self, loss: Loss) -> None:
        if self.mourned:
            return
        self.mourned = True
        world, orders = self.world, tuple(self.orders.values())
        hope = world.hopes(self.model, besides=self.replica)
        world.deaths.append(Death(world.clock.now(), self.replica.id, loss, hope, orders))

    def _given_up(self, reason: str) -> None:
        self.kill()
        self._died(self._said or reason)

    def _died(self, why: str) -> None:
        self._post(Message(self.replica, self.generation, Event.DIED, why))

    def _post(self, news: Message | Doubt) -> None:
        self.world.supervisor.post(news)

    # As an engine

    def sent(self, frame: wire.ToWorker) -> None:
        """On its way to the worker; from here on it may die of it."""
        if isinstance(frame, wire.Generate):
            self.orders[frame.id] = frame

    def read(self) -> None:
        while self.pipe.down and self.alive and not self.frozen:
            self._receive(self.pipe.down.popleft())

    def _receive(self, frame: wire.ToWorker) -> None:
        match frame:
            case wire.Load():
                self._after(self.rng.uniform(0.3, 2.0), self._loaded)
            case wire.Generate():
                self._waiting.append(frame)
                self._go()
            case wire.Cancel():
                if frame.id in self.orders:
                    self._cancelled.add(frame.id)
                    self._go()
            case wire.Ping():
                running = len(self._running)
                self.say(wire.Pong(frame.n, self.steps, running, len(self._waiting)))
            case wire.Unload():
                self.exit(0)

    def say(self, frame: wire.Frame) -> None:
        ended = frame.ended if isinstance(frame, wire.Step) else [frame]
        for end in ended:
            match end:
                case wire.Failed(code=wire.WORKER_DIED):
                    pass  # it counts as there at the death
                case wire.Done(id=id) | wire.Failed(id=int(id)):
                    self.orders.pop(id, None)
        self.pipe.say(wire.encode(frame))

    def _hello(self) -> None:
        if self.alive:
            self.say(wire.Hello(wire.PROTOCOL, self.pid, "simulated", "1"))

    def _loaded(self) -> None:
        if not self.alive:
            return
        if self.world.dooms(self.replica, State.LOADING):
            self.crash()
            return
        self.say(wire.Loaded(2048, SLOTS, self.vocab, capabilities=["generate"]))

    def _go(self) -> None:
        if self._timer is None and (self._running or self._waiting or self._cancelled):
            pause = self.world.step_time * self.slowness * self.rng.uniform(0.8, 1.2)
            self._timer = self._after(pause, self._step)

    def _step(self) -> None:
        self._timer = None
        if not self.alive or self.frozen or self.hung:
            return
        if self.replica.state is State.WARMING and self.world.dooms(self.replica, State.WARMING):
            self.crash()
            return
        self._drop_cancelled()
        self._fill()
        now, deltas, ended = self.world.clock.now(), [], []
        for sequence in [one for one in self._running if one.begins <= now]:
            if sequence.fuse is not None and sequence.steps >= sequence.fuse:
                self.crash(sequence.order)
                return
            sequence.steps += 1
            delta, done = sequence.advance(self.vocab, self.rng.choice((1, 1, 1, 2, 3)))
            deltas.append(delta)
            if done is not None:
                ended.append(done)
                self._running.remove(sequence)
        self.steps += 1
        if deltas:
            self.say(wire.Step(deltas, ended))
        self._go()

    def _drop_cancelled(self) -> None:
        for id in self._cancelled:
            if id in self.orders:
                self._running = [one for one in self._running if one.order.id != id]
                self._waiting = deque(one for one in self._waiting if one.id != id)
                self.say(wire.Done(id, "cancelled", 1, 0))
        self._cancelled.clear()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < SLOTS:
            order = self._waiting.popleft()
            if self.rng.random() < self.fails and self.replica.state is State.READY:
                last = self.world.no_retry(self)
                self.world.failures[order.text or "", order.seed].append(last)
                self.say(wire.Failed(order.id, Fault.BACKEND, "no luck"))
                continue
            text = order.text or ""
            fuse = self.rng.randrange(8) if text.startswith(POISON) else None
            if order.echo and not order.resume:
                for part in (text[:5], text[5:]):
                    self.say(wire.Step([wire.Delta(order.id, [], part)]))
            self._running.append(Run.begin(order, self.world.clock.now(), fuse))

    def _after(self, seconds: float, act: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, act, *args)


class SimulatedWorkers:
    """An `Effects` with simulated workers, as `Workers` is with real ones."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.tasks: set[asyncio.Task[None]] = set()
        self._latest: dict[str, SimulatedWorker] = {}

    def spawn(self, replica: Replica) -> None:
        self._run(self._spawn(replica, replica.generation))

    async def _spawn(self, replica: Replica, generation: int) -> None:
        if (previous := self._latest.get(replica.id)) is not None:
            await previous.gone.wait()
        await asyncio.sleep(0.01)
        worker = SimulatedWorker(self._world, replica, generation)
        self._latest[replica.id] = worker
        if replica.generation != generation:
            worker.kill()
        replica.worker = worker  # type: ignore[assignment]
        self._world.workers = [*self._world.alive(), worker]
        if self._world.sentinel is not None:
            self._world.sentinel.admit(replica, generation, worker)  # type: ignore[arg-type]
        why = f"no word from the worker {HELLO_SECONDS:g} s after its start"
        self.later(
            HELLO_SECONDS,
            Message(replica, generation, Event.DIED, why, while_in=State.STARTING),
        )

    def load(self, replica: Replica) -> None:
        if replica.worker is not None:
            replica.worker.link.send(wire.Load(replica.source.name, None, 2048, SLOTS, 1, {}))

    def warm(self, replica: Replica) -> None:
        generation = replica.generation

        def answered(answer: Heard) -> None:
            match answer:
                case wire.Done():
                    self._post(Message(replica, generation, Event.WARMED))
                case wire.Failed(message=why) | Lost(why=why):
                    self._post(Message(replica, generation, Event.DIED, why))

        if replica.worker is not None:
            replica.worker.link.call(first_request(["generate"]), answered)

    def watch(self, replica: Replica) -> None:
        if self._world.sentinel is not None:
            self._world.sentinel.serves(replica)

    def drain(self, replica: Replica) -> None:
        self._run(self._drain(replica, replica.generation))

    async def _drain(self, replica: Replica, generation: int) -> None:
        if replica.worker is not None:
            link = replica.worker.link
            close = partial(link.close, "the replica was replaced", loss=Loss.KILLED)
            for bound, then in ((DRAIN, partial(link.urge, "replaced")), (MOVE_GRACE, close)):
                try:
                    async with asyncio.timeout(bound):
                        await link.idle()
                    break
                except TimeoutError:
                    then()
        self._post(Message(replica, generation, Event.EMPTY))

    def end(self, replica: Replica, *, gently: bool) -> None:
        if replica.worker is None:
            return
        if gently:
            replica.worker.link.send(wire.Unload())
            self._run(self._kill_later(replica.worker))  # type: ignore[arg-type]
        else:
            replica.worker.kill()

    async def _kill_later(self, worker: SimulatedWorker) -> None:
        await asyncio.sleep(3.0)
        worker.kill()

    def later(self, seconds: float, message: Message) -> None:
        asyncio.get_running_loop().call_later(seconds, self._post, message)

    def _post(self, message: Message) -> None:
        self._world.supervisor.post(message)

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class World:
    """Models with their replicas, wired as `build` wires them. `models` maps names to a vocabulary
    and a number of replicas. `watched`: by the real sentinel; else what it would say is told by the
    workers themselves, for its fifty looks a second cost more than all else in a long quiet time.
    """

    def __init__(
        self,
        seed: object,
        models: dict[str, tuple[str, int]],
        routes: dict[str, Sequence[str]],
        *,
        watched: bool,
        step_time: float = 0.05,
    ) -> None:
        self.seed, self.watched, self.step_time = seed, watched, step_time
        self.vocabs = {name: vocab for name, (vocab, _) in models.items()}
        self.clock = VirtualClock()
        self.workers: list[SimulatedWorker] = []
        self.deaths: list[Death] = []
        # By text and seed, for each time that a worker failed it: whether that was to be the last.
        self.failures: dict[tuple[str, int], list[bool]] = defaultdict(list)
        self._failed_at: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=8))
        # By the text of a poisonous request: when it ended a worker, and its seed.
        self.killed_by: dict[str, list[tuple[float, int]]] = defaultdict(list)
        # Replicas that die in a state, and how often still.
        self.doomed: dict[tuple[str, State], int] = defaultdict(int)
        # By model, when a replica began to serve and when the last one stopped.
        self.served_from: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
        sources = {name: _source(name, count) for name, (_, count) in models.items()}
        rng = random.Random(drawn(seed, "daemon"))
        self.supervisor = Supervisor(sources, self.clock, rng)
        cores = Cores(self.clock, total=2)
        self.sentinel = Sentinel(self.supervisor.post, self.clock, cores) if watched else None
        self.rosters = {
            name: Roster(source, self.supervisor, self.clock, rng)
            for name, source in sources.items()
        }
        self.served = {
            name: Served(
                source,
                Gate(
                    self.rosters[name],
                    source.settings.replicas,
                    source.at_once,
                    source.settings.queue,
                    self.supervisor,
                    cores.busy,
                ),
            )
            for name, source in sources.items()
        }
        deployments = {name: Deployment(name, served) for name, served in self.served.items()}
        self.catalog = Catalog(deployments, {}, 0, routes)
        self.supervisor.listeners.append(self._transition)
        self.poison = Poison(self.clock)
        self.setting = Setting(self.clock, Metrics(list), self.supervisor, self.poison, rng)
        self.effects = SimulatedWorkers(self)
        self.lasting: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        clock = self.clock if self.watched else VirtualClock(4.0)
        prober = Prober(self.rosters, self.supervisor, clock)
        work = [self.supervisor.run(self.effects), prober.run()]
        if self.sentinel is not None:
            work.append(self.sentinel.run())
        self.lasting = [asyncio.create_task(one) for one in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self.lasting, *self.effects.tasks):
            task.cancel()
        await asyncio.gather(*self.lasting, *self.effects.tasks, return_exceptions=True)

    def check_lasting(self) -> None:
        for task in self.lasting:
            if task.done():
                task.result()

    def _transition(self, replica: Replica, old: State, new: State) -> None:
        name = replica.source.name
        self.changed(name)
        self.rosters[name].changed(replica, old, new)
        self.served[name].gate.advance()

    def alive(self) -> Iterator[SimulatedWorker]:
        self.workers = [worker for worker in self.workers if worker.alive]
        yield from list(self.workers)

    def hopes(self, model: str, *, besides: Replica) -> bool:
        """Whether another replica serves, or comes back before those who wait lose hope."""
        return any(
            other.state is not State.FAILED
            or other.proven
            or other.restart.deaths <= HOPEFUL_DEATHS
            for other in self.supervisor.replicas.get(model, ())
            if other is not besides and other.state not in (State.STOPPED, State.DRAINING)
        )

    def no_retry(self, worker: SimulatedWorker) -> bool:
        """Whether what this worker fails can't be tried again: no other serves, or enough is being
        tried again as it is."""
        now, lately = self.clock.now(), self._failed_at[worker.model]
        lately.append(now)
        # Some are still on their way to the daemon, and take their part of the budget first.
        under_way = sum(now - at < 2 * self.step_time for at in lately) - 1
        if max(under_way, self.line(worker).budget.taken) >= BUDGET_LEAST - 1:
            return True
        return not any(w.serving and not w.replica.suspect for w in self.mates(worker))

    def line(self, worker: SimulatedWorker) -> Gate:
        """Where its requests wait."""
        return self.served[worker.model].gate

    def mates(self, worker: SimulatedWorker) -> list[SimulatedWorker]:
        """Others that its requests may go on with."""
        return [w for w in self.alive() if w.model == worker.model and w is not worker]

    def dooms(self, replica: Replica, state: State) -> bool:
        left = self.doomed[replica.id, state]
        self.doomed[replica.id, state] = max(0, left - 1)
        return left > 0

    def changed(self, model: str) -> None:
        """Note whether anything of the model serves now."""
        spans, now = self.served_from[model], self.clock.now()
        serves = self.serves(model)
        if serves and (not spans or spans[-1][1] is not None):
            spans.append((now, None))
        elif not serves and spans and spans[-1][1] is None:
            spans[-1] = spans[-1][0], now

    def serves(self, model: str) -> bool:
        return any(w.serving for w in self.workers if w.model == model)

    def served_within(self, model: str, start: float, end: float) -> float:
        """Seconds between `start` and `end` in which something of the model served."""
        total = 0.0
        for begun, ended in reversed(self.served_from[model]):
            last = end if ended is None else min(end, ended)
            if last < start:
                break
            total += max(0.0, last - max(start, begun))
        return total


def _source(name: str, replicas: int) -> Source:
    settings = ModelSettings(
        source="x", replicas=replicas, slots=SLOTS, queue_time=QUEUE_TIME, load_time=20.0,
        stall_time=STALL_TIME,
    )  # fmt: skip
    plugin: Any = None
    return Source(name, settings, plugin, Path(name), 1, "f16", "f16", 2048, 0)

"""Serves one `Relay`: its asyncio loop in the main thread, one task per request.

The reader (in `main`) hands requests in; a writer thread hands frames out, so that a daemon that
does not read never blocks the loop. A request gets exactly one last frame, whatever its task does;
what comes after that is dropped. asyncio is imported where a relay is served and nowhere else,
since all other workers are plain threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hxd import hookspecs, wire
from hxd.errors import Fault
from hxd.pluginfile import PluginError
from hxd.worker.channel import Channel

if TYPE_CHECKING:
    import asyncio

# The supervisor's first request to a worker. It is answered here: a provider would bill for it,
# and a server that is down for a moment is no reason to start this worker anew.
WARM_ID = 0
MESSAGE_LIMIT = 4000  # characters of an error; a page of HTML must still fit into a frame
STEP_WEIGHT = 1 << 16  # about the bytes at which the deltas of one turn take a frame of their own
SLOW_BYTES = 1 << 20  # frames unsent at which `drain` waits
FULL_BYTES = 16 << 20  # frames unsent at which a relay that never drains fails
CLOSE_SECONDS = 1.0  # for what still runs, and again for the relay's own close; see UNLOAD_GRACE

Announce = Callable[["Engine", hookspecs.ModelInfo, int], None]


def serve(
    channel: Channel,
    relay: hookspecs.Relay,
    request: hookspecs.LoadRequest,
    announce: Announce,
) -> None:
    """Open the relay and serve it until told to close."""
    import asyncio

    async def live() -> None:
        info = await relay.open(request)
        if not isinstance(info, hookspecs.ModelInfo):
            raise PluginError(f"open gave {type(info).__name__}, not a ModelInfo")
        announce(engine, info, request.slots)
        await engine.run()

    loop = asyncio.new_event_loop()
    engine = Engine(channel, relay, loop)
    try:
        # Not asyncio.run: it would wait for a name that the resolver's thread still looks up.
        loop.run_until_complete(live())
    finally:
        loop.close()


class Outbox:
    """Encoded frames on their way to the daemon. `put` never waits."""

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._parts: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []
        self.size = 0
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        with self._changed:
            self._parts.append(data)
            self.size += len(data)
            self._changed.notify()

    async def room(self) -> None:
        """Wait until the daemon has read enough."""
        while self.size > SLOW_BYTES:
            place = self._loop.create_future()
            self._waiting.append(place)
            await place

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._parts and not self._closed:
                    self._changed.wait()
                if not self._parts:
                    return
                data = b"".join(self._parts)
                self._parts.clear()
            try:
                self._channel.send_bytes(data)
            except OSError:
                return  # the reader sees the end of the link too, and ends the process
            with self._changed:
                self.size -= len(data)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self.size <= SLOW_BYTES:
            places, self._waiting = self._waiting, []
            for place in places:
                if not place.done():
                    place.set_result(None)

    def close(self, seconds: float) -> None:
        """Send what is left, in so much time."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)


class Emit:
    """What a relay hands the frames of one request to. A relay that passes a stream on awaits
    `drain` between its parts, so that a daemon that is slow to read slows the sender down."""

    def __init__(self, engine: Engine, id: int) -> None:
        self._engine = engine
        self._id = id

    def __call__(self, frame: wire.Frame) -> None:
        self._engine.emit(self._id, frame)

    async def drain(self) -> None:
        await self._engine.room()


class Engine:
    """The requests of one relay. `submit`, `cancel`, `close` and `pong` belong to the reader's
    thread, everything else to the loop's."""

    def __init__(
        self, channel: Channel, relay: hookspecs.Relay, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._relay = relay
        self._loop = loop
        self._outbox = Outbox(channel, loop)
        self._closing: asyncio.Future[None] = loop.create_future()
        # Ids gained in the reader, so that a loop that hangs is seen to hold them.
        self._held: set[int] = set()
        self._produced: dict[int, int] = {}
        self._tasks: dict[int, asyncio.Task[wire.Done]] = {}
        self._unfinished: set[asyncio.Task[wire.Done]] = set()
        self._deltas: list[wire.Delta] = []
        self._weight = 0
        self._beats = 0
        self._gauges: dict[str, float] = {}

    def submit(self, request: wire.Request) -> None:
        self._held.add(request.id)
        self._post(self._start, request)

    def cancel(self, id: int) -> None:
        self._post(self._cancel, id)

    def share(self, among: int) -> None:
        """The work is done elsewhere."""

    def close(self) -> None:
        self._post(self._close)

    def pong(self, n: int, *, gauges: bool = True) -> wire.Pong:
        """`steps` counts turns of the loop that a ping asked for: it stands still exactly while the
        loop does. How long a request may wait for its server is the relay's own to bound."""
        steps = self._beats
        self._post(self._beat)
        return wire.Pong(n, steps, len(self._held), 0, self._gauges if gauges else {})

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process soon will
            self._loop.call_soon_threadsafe(call, *arguments)

    def _beat(self) -> None:
        self._beats += 1
        try:
            self._gauges = self._relay.gauges()
        except Exception:  # the boundary to a plugin's code: no number is worth a request
            traceback.print_exc()

    def _start(self, request: wire.Request) -> None:
        if request.id == WARM_ID:
            self._last(request.id, wire.Done(request.id, "length", 0, 0))
            return
        self._produced[request.id] = 0
        task = self._loop.create_task(self._answer(request))
        self._tasks[request.id] = task
        self._unfinished.add(task)
        task.add_done_callback(partial(self._ended, request.id))

    async def _answer(self, request: wire.Request) -> wire.Done:
        done: object = await self._relay.relay(request, Emit(self, request.id))
        if not isinstance(done, wire.Done) or done.id != request.id:
            raise TypeError(f"relay gave {type(done).__name__}, not the Done of its request")
        return done

    def _ended(self, id: int, task: asyncio.Task[wire.Done]) -> None:
        self._unfinished.discard(task)
        if task.cancelled():
            self._last(id, wire.Done(id, "cancelled", 0, self._produced.get(id, 0)))
        elif (error := task.exception()) is not None:
            self._last(id, failed(id, error))
        else:
            self._last(id, task.result())

    def _cancel(self, id: int) -> None:
        """The slot is free at once; what the task still does is dropped."""
        if task := self._tasks.get(id):
            task.cancel()
            self._last(id, wire.Done(id, "cancelled", 0, self._produced[id]))

    def _last(self, id: int, frame: wire.Done | wire.Failed) -> None:
        if id not in self._held:
            return
        self._flush()
        self._held.discard(id)
        self._tasks.pop(id, None)
        self._produced.pop(id, None)
        self._outbox.put(wire.encode(frame))

    def emit(self, id: int, frame: wire.Frame) -> None:
        """Raises for a frame that is not the request's own or fits nowhere: the request fails."""
        if id not in self._held:
            return
        if self._outbox.size > FULL_BYTES:
            raise BufferError("the daemon does not take the answer")
        match frame:
            case wire.Step() if all(delta.id == id for delta in frame.deltas):
                self._produced[id] += len(frame.deltas)
                if not self._deltas:
                    self._loop.call_soon(self._flush)
                self._deltas += frame.deltas
                self._weight += sum(map(_weight, frame.deltas))
                if self._weight > STEP_WEIGHT:
                    self._flush()
            case wire.Vectors() | wire.Tokens() if frame.id == id:
                self._flush()
                self._outbox.put(_fitting(frame))
            case _:
                raise ValueError(f"a relay can't emit a {type(frame).__name__} here")

    async def room(self) -> None:
        await self._outbox.room()

    def _flush(self) -> None:
        """One frame for all the deltas of this turn of the loop, or as many as it takes."""
        deltas, self._deltas, self._weight = self._deltas, [], 0
        self._send(deltas)

    def _send(self, deltas: list[wire.Delta]) -> None:
        deltas = [delta for delta in deltas if delta.id in self._held]
        if not deltas:
            return
        data = wire.encode(wire.Step(deltas))
        if len(data) <= wire.TO_DAEMON_LIMIT:
            self._outbox.put(data)
        elif len(deltas) > 1:
            middle = len(deltas) // 2
            self._send(deltas[:middle])
            self._send(deltas[middle:])
        elif task := self._tasks.get(deltas[0].id):
            task.cancel()
            self._last(
                deltas[0].id,
                wire.Failed(
                    deltas[0].id, Fault.BACKEND, f"a delta of {len(data)} bytes fits into no frame"
                ),
            )

    def _close(self) -> None:
        if not self._closing.done():
            self._closing.set_result(None)

    async def run(self) -> None:
        """Until told to close; then what still runs is cancelled."""
        import asyncio

        await self._closing
        for task in self._unfinished:
            task.cancel()
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=CLOSE_SECONDS)
        try:
            await asyncio.wait_for(self._relay.close(), CLOSE_SECONDS)
        except Exception:  # the boundary to a plugin's code: the process ends all the same
            traceback.print_exc()
        self._outbox.close(CLOSE_SECONDS)


def _weight(delta: wire.Delta) -> int:
    """Roughly the bytes of a delta, for what is cheap to count."""
    said = len(delta.text) + len(delta.reasoning)
    return 64 + said + sum(len(c.arguments) for c in delta.calls) + 256 * len(delta.logprobs)


def _fitting(frame: wire.Frame) -> bytes:
    data = wire.encode(frame)
    if len(data) > wire.TO_DAEMON_LIMIT:
        raise ValueError(
            f"a {type(frame).__name__} of {len(data)} bytes; a frame holds {wire.TO_DAEMON_LIMIT}"
        )
    return data


def failed(id: int, error: BaseException) -> wire.Failed:
    """The last frame of a request whose task raised `error`."""
    # What the hookspecs declare, and what a relay's own subclass may add.
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    match error:
        case hookspecs.RequestRefused():
            return wire.Failed(id, Fault.CALLER, str(error)[:MESSAGE_LIMIT], code, param)
        case hookspecs.RelayFailed():
            known = error.fault in set(Fault)
            return wire.Failed(
                id,
                error.fault if known else Fault.BACKEND,
                str(error)[:MESSAGE_LIMIT],
                code,
                param,
                error.retry_after,
            )
        case _:
            traceback.print_exception(error)
            sys.stderr.flush()
            return wire.Failed(
                id, Fault.BACKEND, f"{type(error).__name__}: {error}"[:MESSAGE_LIMIT]
            )

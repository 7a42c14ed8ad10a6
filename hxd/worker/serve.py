"""The worker's working threads around one backend.

The prepare thread turns requests into sequences, and the compile thread their constraints into what
the backend wants, which may take seconds; the engine thread steps the backend and is the only one
that changes the set of running sequences. The reader (in `main`) hands out the work.
Each decode step sends one frame for all the sequences that it advanced.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from hxd import hookspecs, wire
from hxd.errors import Fault
from hxd.worker import tokens
from hxd.worker.channel import Channel
from hxd.worker.prepare import Prepared, Preparer, Refused

# What a delta and a logprob have besides their texts, in msgpack.
_DELTA_BYTES = 32
_LOGPROB_BYTES = 16
_DONE_BYTES = 96
_PACES = 4096
# What one step gave one sequence, and its end.
Said = tuple[wire.Delta | None, wire.Done | None]


def gauged(backend: hookspecs.Backend | hookspecs.Embedder) -> dict[str, float]:
    """What the backend says of itself; nothing if it fails to, which must not end the heartbeat."""
    try:
        return backend.gauges()
    except Exception as error:  # the boundary to a plugin's code
        sys.stderr.write(f"worker: gauges failed: {type(error).__name__}: {error}\n")
        return {}


def take_part(backend: hookspecs.Backend | hookspecs.Embedder, among: int) -> None:
    """Tells a backend that divides cores how many they are."""
    share = getattr(backend, "share", None)
    if share is not None:
        share(among)


class Engine:
    """Serves one loaded backend. `die` ends the process; it does not return."""

    def __init__(
        self,
        channel: Channel,
        backend: hookspecs.Backend,
        info: hookspecs.ModelInfo,
        slots: int,
        die: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._backend = backend
        self._slots = slots
        self._die = die
        self._preparer = Preparer(backend, info)
        self._to_prepare: queue.SimpleQueue[wire.Request] = queue.SimpleQueue()
        self._to_compile: queue.SimpleQueue[Prepared] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._waiting: deque[Prepared] = deque()
        self._running: dict[int, Prepared] = {}
        # `_live` gains ids in the reader and loses them where the last frame of an id is sent, so
        # that a late cancel finds nothing and leaves nothing behind.
        self._live: set[int] = set()
        self._cancelled: set[int] = set()
        self._closing = False
        self._sharing = self._shared = 1
        # Key and seconds of each step that advanced every sequence, since the last pong.
        self._paces: deque[tuple[int, float]] = deque(maxlen=_PACES)
        self.steps = 0

    def submit(self, request: wire.Request) -> None:
        self._live.add(request.id)
        self._to_prepare.put(request)

    def cancel(self, id: int) -> None:
        if id in self._live:
            self._cancelled.add(id)
            self._inbox.put(None)

    def share(self, among: int) -> None:
        self._sharing = among
        self._inbox.put(None)

    def close(self) -> None:
        self._closing = True
        self._inbox.put(None)

    def pong(self, n: int, *, gauges: bool = True) -> wire.Pong:
        running = len(self._running)
        pong = wire.Pong(n, self.steps, running, len(self._live) - running)
        if gauges:
            pong.gauges, pong.paces = gauged(self._backend), self._take_paces()
        return pong

    def _take_paces(self) -> dict[int, tuple[int, float]]:
        paces: dict[int, tuple[int, float]] = {}
        while self._paces:
            size, seconds = self._paces.popleft()
            count, total = paces.get(size, (0, 0.0))
            paces[size] = count + 1, total + seconds
        return paces

    def prepare_forever(self) -> None:
        threading.Thread(target=self._compile_forever, name="compile", daemon=True).start()
        while True:
            request = self._to_prepare.get()
            self._attempt(request.id, partial(self._prepare, request))

    def _compile_forever(self) -> None:
        while True:
            prepared = self._to_compile.get()
            self._attempt(prepared.sequence.id, partial(self._compile, prepared))

    def _attempt(self, id: int, step: Callable[[], None]) -> None:
        """One step on the way of a request to the engine."""
        if id in self._cancelled:
            self._finish(id, "cancelled", 0, 0)
            return
        try:
            step()
        except Refused as error:
            self._fail(id, Fault.CALLER, error.message, error.code, error.param)
        except hookspecs.RequestRefused as error:
            self._fail(id, Fault.CALLER, str(error), error.code, error.param)
        except Exception as error:  # the boundary to a plugin's code: one request fails
            self._fail(id, Fault.BACKEND, f"{type(error).__name__}: {error}")

    def _compile(self, prepared: Prepared) -> None:
        if prepared.constraint is not None:
            compiled = self._backend.compile(prepared.constraint)
            prepared.sequence = replace(prepared.sequence, constraint=compiled)
        self._inbox.put(prepared)

    def _prepare(self, request: wire.Request) -> None:
        match request:
            case wire.Generate():
                prepared = self._preparer.prepare(request)
                if prepared.constraint is None:
                    self._inbox.put(prepared)
                else:
                    self._to_compile.put(prepared)
            case wire.Tokenize() | wire.Detokenize():
                tokens.answer(self._channel, self._backend, request)
                self._forget(request.id)
            case _:
                raise hookspecs.RequestRefused("this model generates text; it makes no vectors")

    def run(self) -> None:
        """Step until told to close; the engine thread's whole life."""
        while not self._closing:
            self._take(block=not self._running and not self._waiting)
            self._drop_cancelled()
            if self._sharing != self._shared:
                self._shared = self._sharing
                take_part(self._backend, self._shared)
            while self._waiting and len(self._running) < self._slots:
                self._start(self._waiting.popleft())
            if not self._running:
                continue
            started = time.monotonic()
            try:
                advances = self._backend.step()
            except Exception as error:  # the boundary to a plugin's code: the worker is replaced
                reason = f"the backend failed in a decode step: {type(error).__name__}: {error}"
                for id in list(self._running):
                    self._fail(id, Fault.BACKEND, reason, wire.WORKER_DIED)
                self._die(reason)
                return
            self.steps += 1
            if len(advances) == len(self._running):
                key = wire.pace_key(len(advances), self._shared)
                self._paces.append((key, time.monotonic() - started))
            self._send(advances)
        self._backend.close()

    def _take(self, *, block: bool) -> None:
        try:
            while True:
                prepared = self._inbox.get(block)
                block = False
                if prepared is not None:
                    self._waiting.append(prepared)
        except queue.Empty:
            pass

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        for prepared in [p for p in self._waiting if p.sequence.id in self._cancelled]:
            self._waiting.remove(prepared)
            self._finish(prepared.sequence.id, "cancelled", 0, 0)
        for id in [id for id in self._running if id in self._cancelled]:
            self._end(self._running[id], "cancelled")

    def _start(self, prepared: Prepared) -> None:
        sequence = prepared.sequence
        for start in range(0, len(prepared.echo), tokens.FRAME_CHARACTERS):
            part = prepared.echo[start : start + tokens.FRAME_CHARACTERS]
            self._channel.send(wire.Step([wire.Delta(sequence.id, [], part)]))
        # A prompt can be scored without an answer; it must be read for that.
        if prepared.output.stopped or (
            prepared.generated >= prepared.limit and not sequence.prompt_logprobs
        ):
            finish = "stop" if prepared.output.stopped else "length"
            self._finish(sequence.id, finish, len(sequence.prompt), prepared.generated)
            return
        try:
            self._backend.add(sequence)
        except hookspecs.RequestRefused as error:
            self._fail(sequence.id, Fault.CALLER, str(error), param=error.param)
        except Exception as error:  # the boundary to a plugin's code: one request fails
            self._fail(sequence.id, Fault.BACKEND, f"{type(error).__name__}: {error}")
        else:
            self._running[sequence.id] = prepared

    def _send(self, advances: list[hookspecs.Advance]) -> None:
        said: list[Said] = []
        for advance in advances:
            prepared = self._running.get(advance.id)
            if prepared is None:
                continue
            delta, finish = self._assemble(prepared, advance)
            done = None
            if finish:
                done = self._done(prepared, finish)
                self._drop(prepared)
                self._forget(advance.id)
            if delta is not None or done is not None:
                said.append((delta, done))
        for frame in _frames(said):
            self._channel.send(frame)
        for advance in advances:
            if advance.error is not None and advance.id in self._running:
                prepared = self._running[advance.id]
                self._drop(prepared)
                # A constraint that turns out to be too complex on the way is the caller's.
                held = prepared.constraint
                fault, param = (Fault.BACKEND, None) if held is None else (Fault.CALLER, held.param)
                self._fail(advance.id, fault, advance.error, param=param)

    def _assemble(
        self, prepared: Prepared, advance: hookspecs.Advance
    ) -> tuple[wire.Delta | None, str | None]:
        """The delta to send, if any, and the finish reason, if this was the end. Tokens that come
        after a stop string or the limit in the same step are dropped."""
        output = prepared.output
        prepared.cached = prepared.cached or advance.cached
        finish = "stop" if advance.ended and not advance.tokens else None
        used = fed = 0
        for token in advance.tokens:
            if prepared.generated >= prepared.limit:
                finish = "length"
                break
            prepared.generated += 1
            used += 1
            if advance.ended and used == len(advance.tokens):
                finish = "stop"
                break
            output.feed(token)
            fed += 1
            if output.stopped:
                finish = "stop"
                break
            if prepared.generated >= prepared.limit:
                finish = "length"
                break
        if finish:
            output.finish()
            if output.stopped:
                finish = "stop"
            if finish == "stop" and output.called:
                finish = "tool_calls"
        released = output.take()
        logprobs = [*advance.prompt_logprobs, *advance.logprobs[:fed]]
        tokens = advance.tokens[:used]
        if not (tokens or released.text or released.calls or logprobs):
            return None, finish
        held = output.held if prepared.sequence.logprobs is not None else 0
        return (
            wire.Delta(advance.id, tokens, released.text, released.calls, logprobs, held=held),
            finish,
        )

    def _done(self, prepared: Prepared, finish: str) -> wire.Done:
        sequence = prepared.sequence
        return wire.Done(
            sequence.id, finish, len(sequence.prompt), prepared.generated, prepared.cached
        )

    def _end(self, prepared: Prepared, finish: str) -> None:
        done = self._done(prepared, finish)
        self._drop(prepared)
        self._forget(done.id)
        self._channel.send(done)

    def _drop(self, prepared: Prepared) -> None:
        del self._running[prepared.sequence.id]
        self._backend.remove(prepared.sequence.id)

    def _finish(self, id: int, finish: str, prompt: int, completion: int, cached: int = 0) -> None:
        self._forget(id)
        self._channel.send(wire.Done(id, finish, prompt, completion, cached))

    def _fail(
        self,
        id: int,
        fault: Fault,
        message: str,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        self._forget(id)
        self._channel.failed(id, fault, message, code=code, param=param)

    def _forget(self, id: int) -> None:
        self._live.discard(id)
        self._cancelled.discard(id)


def _frames(said: Iterable[Said]) -> Iterator[wire.Step]:
    """What was said in frames well below the daemon's limit: a long prompt's logprobs with all
    their alternatives come in one step."""
    frame, size = wire.Step([], []), 0
    for delta, done in said:
        if delta is not None:
            for part, space in _parts(delta):
                if frame.deltas and size + space > tokens.FRAME_BYTES:
                    yield frame
                    frame, size = wire.Step([], []), 0
                frame.deltas.append(part)
                size += space
        if done is not None:
            # In the frame of its delta, and hardly longer than what a frame may be over.
            frame.ended.append(done)
            size += _DONE_BYTES
    if frame.deltas or frame.ended:
        yield frame


def _parts(delta: wire.Delta) -> Iterator[tuple[wire.Delta, int]]:
    """As many logprobs as a frame holds, again and again, then the rest of the delta; with their
    sizes. Whoever has the tokens has all that came with them."""
    logprobs, delta.logprobs = delta.logprobs, []
    part, size = wire.Delta(delta.id, [], "", held=delta.held), _DELTA_BYTES
    for logprob in logprobs:
        space = _LOGPROB_BYTES + len(logprob.piece)
        space += sum(_LOGPROB_BYTES + len(piece) for _, piece, _ in logprob.top)
        if part.logprobs and size + space > tokens.FRAME_BYTES:
            yield part, size
            part, size = wire.Delta(delta.id, [], "", held=delta.held), _DELTA_BYTES
        part.logprobs.append(logprob)
        size += space
    texts = len(delta.text) + sum(len(call.arguments) for call in delta.calls)
    delta.logprobs = part.logprobs
    yield delta, size + 4 * texts + 5 * len(delta.tokens)

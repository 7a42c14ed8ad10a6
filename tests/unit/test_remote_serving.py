"""The worker's loop around a relay: one last frame per request, whatever the relay does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import LoadRequest, ModelInfo, RelayFailed, RequestRefused
from hxd.pluginfile import PluginError
from hxd.worker import relay as serving
from hxd.worker.channel import Channel

Act = Callable[[wire.Request, Any], Awaitable[Any]]
SECONDS = 30


class Scripted:
    """A relay that answers with `act`, and records what becomes of it."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self.info: Any = ModelInfo(100, "unique", details={"a": 1})
        self.seen: list[int] = []
        self.closed = False
        self.numbers: dict[str, float] = {"remote_up": 1.0}

    async def open(self, request: LoadRequest) -> ModelInfo:
        info: ModelInfo = self.info
        return info

    async def relay(self, request: wire.Request, emit: Callable[[wire.Frame], None]) -> wire.Done:
        self.seen.append(request.id)
        done: wire.Done = await self._act(request, emit)
        return done

    def gauges(self) -> dict[str, float]:
        return {name: 1.0 / number for name, number in self.numbers.items()}

    async def close(self) -> None:
        self.closed = True


class Daemon:
    """The other end of the worker's socket. `engine` is what the reader thread would hold."""

    def __init__(self, relay: Scripted) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(SECONDS)
        self._splitter = wire.Splitter(wire.TO_DAEMON_LIMIT)
        self._ahead: list[wire.ToDaemon] = []
        self._announced = threading.Event()
        self.engine: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, args=(Channel(theirs), relay))
        self.thread.start()
        self._theirs = theirs

    def _work(self, channel: Channel, relay: Scripted) -> None:
        try:
            serving.serve(channel, relay, LoadRequest("m", None, 100, 4, 1), self._announce)
        except PluginError as error:
            self.error = error
            self._announced.set()

    def _announce(self, engine: serving.Engine, info: ModelInfo, slots: int) -> None:
        assert (info.details, slots) == ({"a": 1}, 4)
        self.engine = engine
        self._announced.set()

    def wait(self) -> Daemon:
        assert self._announced.wait(SECONDS)
        return self

    def ask(self, id: int, text: str = "") -> None:
        self.engine.submit(wire.Generate(id=id, seed=0, text=text))

    def frame(self) -> wire.ToDaemon:
        """The next frame of the worker."""
        while not self._ahead:
            data = self._sock.recv(1 << 16)
            assert data, "the worker closed its end"
            for body in self._splitter.feed(data):
                self._ahead.append(wire.decode(wire.to_daemon, body))
        return self._ahead.pop(0)

    def until_last(self, id: int) -> tuple[list[wire.Delta], wire.Done | wire.Failed]:
        """Deltas of a request, and its last frame."""
        deltas: list[wire.Delta] = []
        while True:
            match self.frame():
                case wire.Step(deltas=some):
                    deltas += [delta for delta in some if delta.id == id]
                case (wire.Done() | wire.Failed()) as last if last.id == id:
                    return deltas, last

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        self._sock.close()
        self._theirs.close()

    def nothing_more(self) -> bool:
        """Whether the worker, once it has ended, had nothing more to say."""
        self.engine.close()
        self.thread.join(SECONDS)
        self._theirs.shutdown(socket.SHUT_WR)
        rest = b""
        while data := self._sock.recv(1 << 16):
            rest += data
        return not rest and not self._ahead


@contextlib.contextmanager
def serves(act: Act) -> Iterator[tuple[Daemon, Scripted]]:
    relay = Scripted(act)
    daemon = Daemon(relay)
    try:
        yield daemon.wait(), relay
    finally:
        daemon.close()


def delta(id: int, text: str) -> wire.Step:
    return wire.Step([wire.Delta(id, [], text)])


async def echo(request: Any, emit: Any) -> wire.Done:
    emit(delta(request.id, request.text))
    return wire.Done(request.id, "stop", 1, 2)


async def wait_forever(request: Any, emit: Any) -> wire.Done:
    emit(delta(request.id, "begun"))
    await asyncio.Event().wait()
    raise AssertionError


def test_deltas_then_one_done() -> None:
    with serves(echo) as (daemon, _):
        daemon.ask(1, "hi")
        assert daemon.until_last(1) == ([wire.Delta(1, [], "hi")], wire.Done(1, "stop", 1, 2))
        assert daemon.nothing_more()


def test_the_first_request_of_the_supervisor_never_reaches_the_relay() -> None:
    with serves(echo) as (daemon, relay):
        daemon.ask(serving.WARM_ID)
        assert daemon.frame() == wire.Done(0, "length", 0, 0)
        assert relay.seen == []


def test_a_relay_that_gives_no_model_info_is_named() -> None:
    relay = Scripted(echo)
    relay.info = None
    daemon = Daemon(relay).wait()
    daemon.close()
    assert "open gave NoneType, not a ModelInfo" in str(daemon.error)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (RequestRefused("no", "p"), wire.Failed(1, "caller", "no", None, "p")),
        (RequestRefused("no", "p", "too_long"), wire.Failed(1, "caller", "no", "too_long", "p")),
        (RelayFailed("no"), wire.Failed(1, "backend", "no")),
        (
            RelayFailed("no", "hxd", "busy", 5.0),
            wire.Failed(1, "hxd", "no", "busy", None, 5.0),
        ),
        (RelayFailed("no", "somebody"), wire.Failed(1, "backend", "no")),
        (RelayFailed("x" * 9000), wire.Failed(1, "backend", "x" * 4000)),
        (RuntimeError("no"), wire.Failed(1, "backend", "RuntimeError: no")),
    ],
    ids=["refused", "refused-code", "failed", "failed-all", "odd-fault", "long", "other"],
)
def test_an_exception_becomes_the_last_frame(error: Exception, failed: wire.Failed) -> None:
    async def act(request: Any, emit: Any) -> None:
        emit(delta(request.id, "a"))
        raise error

    with serves(act) as (daemon, _):
        daemon.ask(1)
        assert daemon.until_last(1) == ([wire.Delta(1, [], "a")], failed)
        assert daemon.nothing_more()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "relay gave NoneType"),
        (wire.Done(2, "stop", 0, 0), "relay gave Done"),
        (wire.Failed(1, "hxd", "x"), "relay gave Failed"),
    ],
)
def test_a_result_that_is_no_done_of_the_request_fails_it(result: Any, words: str) -> None:
    async def act(request: Any, emit: Any) -> Any:
        return result

    with serves(act) as (daemon, _):
        daemon.ask(1)
        _, failed = daemon.until_last(1)
        assert isinstance(failed, wire.Failed)
        assert words in failed.message


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (delta(2, "not mine"), "can't emit a Step"),
        (wire.Vectors(2, 0, 1, b"1234"), "can't emit a Vectors"),
        (wire.Done(1, "stop", 0, 0), "can't emit a Done"),
        (wire.Pong(1, 0, 0, 0), "can't emit a Pong"),
        (wire.Vectors(1, 0, 1, bytes(2 << 20)), "a Vectors of 2097"),
    ],
    ids=["foreign-step", "foreign-vectors", "done", "pong", "huge-vectors"],
)
def test_a_frame_that_is_not_the_requests_fails_it(frame: wire.Frame, words: str) -> None:
    async def act(request: Any, emit: Any) -> wire.Done:
        emit(frame)
        return wire.Done(request.id, "stop", 0, 0)

    with serves(act) as (daemon, _):
        daemon.ask(1)
        deltas, failed = daemon.until_last(1)
        assert deltas == []
        assert isinstance(failed, wire.Failed)
        assert words in failed.message


def test_a_delta_that_fits_into_no_frame_fails_its_request_and_no_other() -> None:
    async def act(request: Any, emit: Any) -> wire.Done:
        emit(delta(request.id, "a"))
        if request.text:
            emit(delta(request.id, "x" * (2 << 20)))
            emit(delta(request.id, "never sent"))
        await asyncio.sleep(0)
        return wire.Done(request.id, "stop", 0, 0)

    with serves(act) as (daemon, _):
        daemon.ask(1, "huge")
        daemon.ask(2)
        deltas, failed = daemon.until_last(1)
        assert [delta.text for delta in deltas] == ["a"]
        assert isinstance(failed, wire.Failed)
        assert "fits into no frame" in failed.message
        assert daemon.until_last(2)[1] == wire.Done(2, "stop", 0, 0)
        assert daemon.nothing_more()


def test_deltas_of_one_turn_share_a_frame_and_many_take_several() -> None:
    async def act(request: Any, emit: Any) -> wire.Done:
        for _ in range(30):
            emit(delta(request.id, request.text))
        return wire.Done(request.id, "stop", 0, 30)

    with serves(act) as (daemon, _):
        for id, text, fewest, most in ((1, "y", 1, 1), (2, "y" * 100_000, 4, 30)):
            daemon.ask(id, text)
            steps = []
            while isinstance(frame := daemon.frame(), wire.Step):
                steps.append(frame)
            assert sum(len(step.deltas) for step in steps) == 30
            assert fewest <= len(steps) <= most
            assert frame == wire.Done(id, "stop", 0, 30)


def test_a_cancel_ends_the_request_at_once_and_its_task() -> None:
    ended = threading.Event()

    async def act(request: Any, emit: Any) -> wire.Done:
        try:
            return await wait_forever(request, emit)
        finally:
            ended.set()

    with serves(act) as (daemon, _):
        daemon.ask(1)
        assert daemon.frame() == delta(1, "begun")
        daemon.engine.cancel(1)
        assert daemon.frame() == wire.Done(1, "cancelled", 0, 1)
        assert ended.wait(SECONDS)
        assert daemon.nothing_more()


def test_a_relay_that_ignores_cancels_still_gets_no_second_word() -> None:
    ended = threading.Event()

    async def act(request: Any, emit: Any) -> wire.Done:
        try:
            await wait_forever(request, emit)
        except asyncio.CancelledError:
            emit(delta(request.id, "still here"))
        ended.set()
        return wire.Done(request.id, "stop", 0, 0)

    with serves(act) as (daemon, _):
        daemon.ask(1)
        assert daemon.frame() == delta(1, "begun")
        daemon.engine.cancel(1)
        assert daemon.frame() == wire.Done(1, "cancelled", 0, 1)
        assert ended.wait(SECONDS)
        assert daemon.nothing_more()


def test_a_cancel_for_what_has_ended_or_never_was_changes_nothing() -> None:
    with serves(echo) as (daemon, _):
        daemon.ask(1, "hi")
        daemon.until_last(1)
        daemon.engine.cancel(1)
        daemon.engine.cancel(99)
        daemon.ask(2, "there")
        assert daemon.until_last(2)[1] == wire.Done(2, "stop", 1, 2)
        assert daemon.nothing_more()


def pongs(daemon: Daemon, count: int) -> list[int]:
    """`steps` of as many pings, each after the loop has had its turn."""
    steps = []
    for n in range(count):
        steps.append(daemon.engine.pong(n).steps)
        daemon.ask(1000 + n, "turn")
        daemon.until_last(1000 + n)
    return steps


def test_steps_grow_while_the_loop_turns_though_nothing_arrives() -> None:
    async def act(request: Any, emit: Any) -> wire.Done:
        return await (echo if request.text else wait_forever)(request, emit)

    with serves(act) as (daemon, _):
        daemon.ask(1)
        assert daemon.frame() == delta(1, "begun")
        assert pongs(daemon, 3) == [0, 1, 2]
        pong = daemon.engine.pong(9)
        assert (pong.running, pong.waiting) == (1, 0)
        assert pong.gauges == {"remote_up": 1.0}


def test_steps_stand_still_while_the_loop_hangs_and_what_it_holds_shows() -> None:
    release, entered = threading.Event(), threading.Event()

    async def act(request: Any, emit: Any) -> wire.Done:
        entered.set()
        release.wait(SECONDS)
        return await echo(request, emit)

    with serves(act) as (daemon, _):
        daemon.ask(1, "a")
        daemon.ask(2, "b")
        assert entered.wait(SECONDS)
        seen = [daemon.engine.pong(n) for n in range(5)]
        assert {pong.steps for pong in seen} == {0}
        assert seen[-1].running == 2
        release.set()
        daemon.until_last(2)
        assert pongs(daemon, 2)[-1] >= 5


def test_gauges_that_fail_cost_no_heartbeat() -> None:
    with serves(echo) as (daemon, relay):
        assert pongs(daemon, 2) == [0, 1]
        relay.numbers = {"remote_up": 0.0}
        assert pongs(daemon, 2) == [2, 3]
        assert daemon.engine.pong(9).gauges == {"remote_up": 1.0}


def test_a_daemon_that_does_not_read_stops_a_relay_that_drains_and_no_heartbeat() -> None:
    emitted = []
    finished = threading.Event()

    async def act(request: Any, emit: Any) -> wire.Done:
        if request.text:
            return await echo(request, emit)
        for n in range(300):
            emit(delta(request.id, "z" * 100_000))
            emitted.append(n)
            await emit.drain()
        finished.set()
        return wire.Done(request.id, "stop", 0, 300)

    with serves(act) as (daemon, _):
        daemon.ask(1)
        # The loop turns on, and the relay has come to a halt when its count stands still in turns.
        before = -1
        while before != len(emitted) or not emitted:
            before = len(emitted)
            daemon.engine.pong(0)
            wait_for_turns(daemon, 50)
        assert len(emitted) < 40
        assert not finished.is_set()
        deltas, done = daemon.until_last(1)
        assert len(deltas) == 300
        assert done == wire.Done(1, "stop", 0, 300)


def wait_for_turns(daemon: Daemon, count: int) -> None:
    for _ in range(count):
        turned = threading.Event()
        daemon.engine._loop.call_soon_threadsafe(turned.set)
        assert turned.wait(SECONDS)


def test_a_relay_that_never_drains_fails_before_it_fills_the_memory() -> None:
    async def act(request: Any, emit: Any) -> wire.Done:
        for _ in range(1000):
            emit(delta(request.id, "z" * 100_000))
            await asyncio.sleep(0)
        return wire.Done(request.id, "stop", 0, 0)

    with serves(act) as (daemon, _):
        daemon.ask(1)
        deltas, failed = daemon.until_last(1)
        assert len(deltas) < 1000
        assert isinstance(failed, wire.Failed)
        assert "BufferError: the daemon does not take the answer" in failed.message


def test_closing_cancels_what_runs_and_closes_the_relay() -> None:
    with serves(wait_forever) as (daemon, relay):
        daemon.ask(1)
        assert daemon.frame() == delta(1, "begun")
        daemon.engine.close()
        assert daemon.until_last(1) == ([], wire.Done(1, "cancelled", 0, 1))
        daemon.thread.join(SECONDS)
        assert relay.closed


def test_frames_after_the_end_of_the_loop_are_no_error() -> None:
    with serves(echo) as (daemon, _):
        daemon.engine.close()
        daemon.thread.join(SECONDS)
        daemon.ask(1)
        daemon.engine.cancel(1)
        daemon.engine.pong(1)
        daemon.engine.close()

"""The daemon's end of one worker's socketpair: frames out, frames in, each to whom it belongs.

Knows which request an id stands for, and nothing of what requests mean.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from hxd import wire
from hxd.errors import Fault


class Loss(enum.StrEnum):
    """How a call lost its worker. What is to blame decides who may try again, and where."""

    KILLED = "killed"  # ended from outside: no request is to blame
    STALLED = "stalled"  # stopped or silent; neither is any request's doing
    CRASHED = "crashed"  # ended, hung or broke the protocol by itself: a request may be the cause
    MOVED = "moved"  # the worker lives, and is asked to give up what can go on elsewhere


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of an answer's end. With `MOVED` the call may stay where it is; else the worker is
    gone. `company`: how many other calls it took with it."""

    id: int
    loss: Loss
    why: str
    company: int = 0


log = logging.getLogger("hxd.supervise")

Heard = wire.Answer | Lost
Sink = Callable[[Heard], None]

_ids = itertools.count(1)


def new_id() -> int:
    """An id for a request, which no other has had."""
    return next(_ids)


class Owner(Protocol):
    """Who is told about frames that belong to no request, and about the end of the link."""

    def received(self, frame: wire.Tidings) -> None: ...

    def verdict(self) -> tuple[Loss, str]:
        """How the worker ended and why, as far as can be seen now."""
        ...

    def lost(self, reason: str, *, at_fault: bool) -> None: ...


class Link(asyncio.Protocol):
    """`calls` maps the ids in flight to their sinks. A sink gets deltas, then exactly one `Done`,
    `Failed` or `Lost`, whatever happens to the worker; before that, a `Lost` with `MOVED` may ask
    it to `leave`."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._splitter = wire.Splitter(wire.TO_DAEMON_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._answered: Callable[[wire.Pong], None] | None = None
        self._ping = 0
        self.calls: dict[int, Sink] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed = False

    @classmethod
    async def open(cls, sock: socket.socket, owner: Owner) -> Link:
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(owner), sock=sock)
        return link

    def adopt(self, owner: Owner) -> None:
        """From now on somebody else is told."""
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._dispatch(wire.decode(wire.to_daemon, body))
        except wire.WireError as error:
            self.close(f"the worker sent garbage: {error}", loss=Loss.CRASHED, at_fault=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bury()

    def bury(self) -> None:
        """The worker is seen to end; how is for its owner to find out."""
        if not self.closed:
            loss, why = self._owner.verdict()
            self.close(why, loss=loss)

    def _dispatch(self, frame: wire.ToDaemon) -> None:
        match frame:
            case wire.Step():
                for delta in frame.deltas:
                    if sink := self.calls.get(delta.id):
                        sink(delta)
                for done in frame.ended:
                    self._end(done.id, done)
            case wire.Vectors() | wire.Tokens():
                if sink := self.calls.get(frame.id):
                    sink(frame)
            case wire.Done():
                self._end(frame.id, frame)
            case wire.Failed(id=int(), code=wire.WORKER_DIED):
                self.close(frame.message, loss=Loss.CRASHED)
            case wire.Failed(id=int(id)):
                self._end(id, frame)
            case wire.Pong():
                if frame.n == self._ping and self._answered is not None:
                    answered, self._answered = self._answered, None
                    answered(frame)
            case _:
                self._owner.received(frame)

    def _end(self, id: int, answer: wire.Done | wire.Failed | Lost) -> None:
        sink = self.calls.pop(id, None)
        if not self.calls:
            self._idle.set()
        if sink is not None:
            sink(answer)

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        await self._idle.wait()

    def send(self, frame: wire.Frame) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(wire.encode(frame))

    def call(self, frame: wire.Request, sink: Sink) -> None:
        if self.closed:
            sink(Lost(frame.id, Loss.KILLED, "the worker was gone before it was asked"))
            return
        self.calls[frame.id] = sink
        self._idle.clear()
        self.send(frame)

    def leave(self, id: int) -> None:
        """The caller goes elsewhere: what the worker still says of `id` is dropped."""
        if self.calls.pop(id, None) is not None:
            self.send(wire.Cancel(id))
        if not self.calls:
            self._idle.set()

    def urge(self, why: str) -> None:
        """Ask every call to go on elsewhere, if it can."""
        for id, sink in list(self.calls.items()):
            _tell(sink, Lost(id, Loss.MOVED, why))

    def ping(self, answered: Callable[[wire.Pong], None], *, gauges: bool = False) -> None:
        """`answered` gets the pong; of several pings under way only the last one's."""
        self._ping += 1
        self._answered = answered
        self.send(wire.Ping(self._ping, gauges))

    def give_up(self, message: str, code: str) -> None:
        """End every call in flight as failed by hxd; the worker itself goes on."""
        calls, self.calls = self.calls, {}
        self._idle.set()
        for id, sink in calls.items():
            self.send(wire.Cancel(id))
            sink(wire.Failed(id, Fault.HXD, message, code))

    def close(self, reason: str, *, loss: Loss, at_fault: bool = False) -> None:
        """Ends every call in flight as lost, then tells the owner, once. `at_fault`: the worker
        broke the protocol."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        calls, self.calls = self.calls, {}
        self._idle.set()
        for id, sink in calls.items():
            _tell(sink, Lost(id, loss, reason, len(calls) - 1))
        self._owner.lost(reason, at_fault=at_fault)


def _tell(sink: Sink, lost: Lost) -> None:
    try:
        sink(lost)
    except Exception:  # one caller's fault must not keep the news from the others
        log.exception("call=%d can't take the loss of its worker", lost.id)

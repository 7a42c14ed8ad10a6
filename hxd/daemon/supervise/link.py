"""The daemon's end of one worker's socketpair: frames out, frames in, each to whom it belongs.

Knows which request an id stands for, and nothing of what requests mean.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Protocol, cast

from hxd import wire
from hxd.errors import Fault

Sink = Callable[[wire.Answer], None]


_ids = itertools.count(1)


def new_id() -> int:
    """An id for a request, which no other has had."""
    return next(_ids)


class Owner(Protocol):
    """Who is told about frames that belong to no request, and about the end of the link."""

    def received(self, frame: wire.Hello | wire.Loaded | wire.Failed | wire.Progress) -> None: ...

    def lost(self, reason: str, *, at_fault: bool) -> None: ...


class Link(asyncio.Protocol):
    """`calls` maps the ids in flight to their sinks. A sink gets deltas, then exactly one `Done` or
    `Failed`, whatever happens to the worker."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._splitter = wire.Splitter(wire.TO_DAEMON_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._pings: dict[int, asyncio.Future[wire.Pong]] = {}
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._dispatch(wire.decode(wire.to_daemon, body))
        except wire.WireError as error:
            self.close(f"the worker sent garbage: {error}", at_fault=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close("the worker closed its link" if exc is None else f"the link broke: {exc}")

    def _dispatch(self, frame: wire.ToDaemon) -> None:
        match frame:
            case wire.Step():
                for delta in frame.deltas:
                    if sink := self.calls.get(delta.id):
                        sink(delta)
            case wire.Vectors() | wire.Tokens():
                if sink := self.calls.get(frame.id):
                    sink(frame)
            case wire.Done():
                self._end(frame.id, frame)
            case wire.Failed(id=int(id)):
                self._end(id, frame)
            case wire.Pong():
                waiter = self._pings.pop(frame.n, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(frame)
            case _:
                self._owner.received(frame)

    def _end(self, id: int, answer: wire.Done | wire.Failed) -> None:
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
            sink(wire.Failed(frame.id, Fault.BACKEND, "the worker is gone", "worker_died"))
            return
        self.calls[frame.id] = sink
        self._idle.clear()
        self.send(frame)

    async def ping(self) -> wire.Pong:
        """Raises `ConnectionError` when the link closes first; never times out by itself."""
        if self.closed:
            raise ConnectionError("the link is closed")
        self._ping += 1
        n = self._ping
        waiter: asyncio.Future[wire.Pong] = asyncio.get_running_loop().create_future()
        self._pings[n] = waiter
        self.send(wire.Ping(n))
        try:
            return await waiter
        finally:
            self._pings.pop(n, None)

    def give_up(self, message: str, code: str) -> None:
        """End every call in flight as failed by hxd; the worker itself goes on."""
        for id in self.calls:
            self.send(wire.Cancel(id))
        self._fail_calls(Fault.HXD, message, code)

    def _fail_calls(self, fault: Fault, message: str, code: str) -> None:
        calls, self.calls = self.calls, {}
        self._idle.set()
        for id, sink in calls.items():
            sink(wire.Failed(id, fault, message, code))

    def close(self, reason: str, *, at_fault: bool = False) -> None:
        """Ends every call in flight as failed by the backend, then tells the owner, once.
        `at_fault`: the worker broke the protocol."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._fail_calls(Fault.BACKEND, f"the worker died: {reason}", "worker_died")
        pings, self._pings = self._pings, {}
        for waiter in pings.values():
            if not waiter.done():
                waiter.set_exception(ConnectionError(reason))
        self._owner.lost(reason, at_fault=at_fault)

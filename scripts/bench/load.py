"""The load of scripts/bench/gateway: hand-written HTTP on raw sockets, in a process of its own.

It costs so little that the server is measured and not the client. It takes one order, JSON on
standard input, and prints one answer, JSON on standard output:

    {"order": "calls", "clients": 32, "seconds": 5, ...}    seconds of each call; calls per second
    {"order": "streams", "clients": 500, "tokens": 100, "rate": 20, ...}   who keeps the pace
    {"order": "hold", "clients": 1000, ...}   opens, asks once each, says so, waits for a line
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvloop

from .stats import gaps

WARM_UP_SECONDS = 1.0
# A stream keeps the pace if its answer took at most this much longer than it should, and if no
# two pieces were further apart than so many periods.
PACE_SLACK = 1.05
PACE_PERIODS = 5


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    key: str | None
    model: str

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        raw = json.dumps(body).encode() if body is not None else b""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
        return "\r\n".join([*lines, "", ""]).encode() + raw

    def chat(self, **settings: Any) -> bytes:
        messages = [{"role": "user", "content": "How much is a gateway?"}]
        body = {"model": self.model, "messages": messages, **settings}
        return self.request("POST", "/v1/chat/completions", body)


class Caller(asyncio.Protocol):
    """One connection that is kept. `answered(caller)` is called at the end of each answer."""

    def __init__(self, answered: Callable[[Caller], None]) -> None:
        self._answered = answered
        self._buffer = b""
        self._end = -1
        self.transport: asyncio.Transport | None = None
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None

    def send(self, request: bytes) -> None:
        if self.transport is None:
            raise ConnectionError("the server closed a connection")
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._end < 0:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            if not self._buffer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"not a 200: {self._buffer[:400]!r}")
            name = self._buffer[:head].lower().index(b"content-length:")
            length = int(self._buffer[name + 15 : self._buffer.index(b"\r\n", name)])
            self._end = head + 4 + length
        if len(self._buffer) >= self._end:
            self._buffer, self._end = b"", -1
            self._answered(self)


class Listener(asyncio.Protocol):
    """One stream: when its pieces came, until `[DONE]`."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.arrivals: list[float] = []
        self.refused = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if b"data: " in data:
            self.arrivals.append(time.perf_counter())
        elif not self.arrivals and not data.startswith(b"HTTP/1.1 200"):
            self.refused = data[:400]
            self._transport.close()
        if b"data: [DONE]" in data:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.done.set_result(None)


async def calls(target: Target, clients: int, seconds: float) -> dict[str, Any]:
    """Each client asks again as soon as it has its answer."""
    request = target.chat(max_tokens=4)
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    counting = False

    def answered(caller: Caller) -> None:
        if counting:
            latencies.append(time.perf_counter() - caller.sent)
        caller.send(request)

    for _ in range(clients):
        _, caller = await loop.create_connection(lambda: Caller(answered), target.host, target.port)
        caller.send(request)
    await asyncio.sleep(WARM_UP_SECONDS)
    counting, began = True, time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    return {"per_second": len(latencies) / took, "latencies": latencies}


async def streams(target: Target, clients: int, tokens: int, rate: float) -> dict[str, Any]:
    """`clients` streams at once. `together`: seconds in which all of them ran."""
    request = target.chat(stream=True, max_tokens=tokens, ignore_eos=True)
    loop = asyncio.get_running_loop()
    listeners = []
    for _ in range(clients):
        _, listener = await loop.create_connection(
            lambda: Listener(request), target.host, target.port
        )
        listeners.append(listener)
    await asyncio.gather(*(listener.done for listener in listeners))
    refused = [listener.refused for listener in listeners if listener.refused]
    if refused:
        raise SystemExit(f"{len(refused)} streams were refused: {refused[0]!r}")
    longest = [max(gaps(listener.arrivals)) for listener in listeners]
    kept = sum(
        one.arrivals[-1] - one.arrivals[0] <= PACE_SLACK * tokens / rate
        and gap <= PACE_PERIODS / rate
        for one, gap in zip(listeners, longest, strict=True)
    )
    last_first = max(one.arrivals[0] for one in listeners)
    together = min(one.arrivals[-1] for one in listeners) - last_first
    return {"kept": kept, "longest": longest, "together": together}


async def hold(target: Target, clients: int) -> dict[str, Any]:
    """Connections that have asked once and stay open until a line comes on standard input."""
    loop = asyncio.get_running_loop()
    request = target.request("GET", "/livez")
    for _ in range(clients):
        asked = loop.create_future()
        _, caller = await loop.create_connection(
            lambda asked=asked: Caller(lambda _: asked.set_result(None)), target.host, target.port
        )
        caller.send(request)
        await asked
    print("holding", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return {"held": clients}


ORDERS: dict[str, Callable[..., Any]] = {"calls": calls, "streams": streams, "hold": hold}


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = json.loads(sys.stdin.readline())
    target = Target(**order.pop("target"))
    print(json.dumps(uvloop.run(ORDERS[order.pop("order")](target, **order))))


if __name__ == "__main__":
    main()

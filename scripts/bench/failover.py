"""The working half of scripts/bench/failover: what clients notice when the process that serves
them is killed, behind hxd and behind a supervisor that only restarts.

Both serve the demo model. Some clients stream greedy answers without a break, and now and then the
busiest model process is killed. A client whose stream breaks asks again, and skips what it has; so
a pause is, for both, the time from one token of the answer to the next new one, however that came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from hxd.daemon.store import demo

from . import provision, servers
from .serving import DidNotStart, Kind, Running, run, serving
from .stats import median, percentile
from .streams import Refused, events

RESTARTING = Path(__file__).with_name("restarting.py")
SLOTS = 8
TOKENS = 300
# What the demo model knows how to answer: elsewhere its best two tokens are often as good as equal,
# and then the company in a batch decides.
PROMPTS = (
    "Tell me a story about Ada in London.",
    "What is 12 + 13?",
    "Write a poem about the sea.",
    "Who are you?",
)
SETTLE = 1.0  # seconds of load before the first kill
WATCHED = 1.0  # seconds after a kill


@dataclass
class Seen:
    """`pauses` in seconds, one for each stream that was running at a kill; `usual` is the median
    gap at all other times; `broken` streams ended without their last token, `changed` answers are
    not those of an undisturbed run, `again` tokens had to be generated a second time."""

    requests: int = 0
    broken: int = 0
    changed: int = 0
    again: int = 0
    kills: int = 0
    pauses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass
class Reader:
    """One client. `progress`: when each piece of the present answer came for the first time."""

    server: Running
    prompt: str
    seen: Seen
    progress: list[float] = field(default_factory=list)

    async def answer(self) -> str:
        """The whole answer, asked for as often as it takes."""
        self.progress = []
        pieces: list[str] = []
        while True:
            got = 0
            try:
                async for event in self._events():
                    for choice in event.get("choices") or ():
                        if text := choice["delta"].get("content"):
                            got += 1
                            if got > len(pieces):
                                pieces.append(text)
                                self.progress.append(time.perf_counter())
                            else:
                                self.seen.again += 1
                        if choice.get("finish_reason"):
                            return "".join(pieces)
                raise Refused("the stream ended early")
            except (Refused, aiohttp.ClientError, ConnectionError):
                self.seen.broken += 1
                await asyncio.sleep(0.02)

    def _events(self) -> AsyncIterator[dict[str, Any]]:
        body = {
            "model": "bench",
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
            **self.server.kind.extra,
        }
        return events(self.server.session, self.server.url + "/v1/chat/completions", body)


async def measure(kind: Kind, victim: Callable[[Running], Any], options: Any) -> Seen:
    seen = Seen()
    rng = random.Random(options.seed)
    async with serving(kind) as server:
        undisturbed = {}
        for prompt in PROMPTS:
            undisturbed[prompt] = await Reader(server, prompt, Seen()).answer()
        readers = [
            Reader(server, PROMPTS[number % len(PROMPTS)], seen)
            for number in range(options.streams)
        ]
        over = asyncio.Event()

        async def load(reader: Reader) -> None:
            while not over.is_set():
                seen.requests += 1
                answer = await reader.answer()
                seen.changed += answer != undisturbed[reader.prompt]
                seen.gaps += [
                    b - a for a, b in zip(reader.progress, reader.progress[1:], strict=False)
                ]

        tasks = [asyncio.create_task(load(reader)) for reader in readers]
        await asyncio.sleep(SETTLE)
        for _ in range(options.kills):
            await asyncio.sleep(rng.uniform(0.5, 1.5) * options.every)
            pid = await victim(server)
            if pid is None:
                continue
            running = [(reader, reader.progress[-1:]) for reader in readers if reader.progress]
            lists = [reader.progress for reader, _ in running]
            killed = time.perf_counter()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            seen.kills += 1
            seen.pauses += await asyncio.gather(
                *(_pause(progress, len(progress), killed) for progress in lists)
            )
        over.set()
        async with asyncio.timeout(120):
            await asyncio.gather(*tasks)
    seen.pauses = [pause for pause in seen.pauses if pause is not None]
    return seen


async def _pause(progress: list[float], had: int, killed: float) -> float | None:
    """The longest gap in this answer in the seconds after the kill; what was on its way by then
    comes first. None when the answer was over, or nothing of it came any more."""
    watched = killed + WATCHED
    while len(progress) < TOKENS and (time.perf_counter() < watched or len(progress) <= had):
        await asyncio.sleep(0.02)
        if time.perf_counter() > killed + 60:
            break
    return pause_after(progress, killed)


def pause_after(progress: Sequence[float], killed: float) -> float | None:
    """The longest gap that ended after the kill; None when nothing came."""
    later = [after - before for before, after in itertools.pairwise(progress) if after >= killed]
    return max(later, default=None)


async def busiest(server: Running) -> int | None:
    """hxd's worker with the most sequences."""
    async with server.session.get(server.url + "/admin/v1/replicas") as response:
        rows = [row for row in await response.json() if row["pid"] and row["state"] == "ready"]
    return max(rows, key=lambda row: row["running"])["pid"] if rows else None


async def child(server: Running) -> int | None:
    """The server below the bare supervisor."""
    with contextlib.suppress(psutil.Error):
        return server.process.children()[0].pid
    return None


def hxd(model: Path, replicas: int) -> Kind:
    def command(port: int, folder: Path) -> list[str]:
        settings = {"source": str(model), "replicas": replicas, "slots": SLOTS, "context": 1024}
        return servers.serve_hxd(port, folder, {"bench": settings}, auth=False)

    return Kind(f"hxd, {replicas} replicas", command, "/readyz", {"ignore_eos": True})


def restarting(kind: Kind) -> Kind:
    def command(port: int, folder: Path) -> list[str]:
        return [sys.executable, str(RESTARTING), *kind.command(port, folder)]

    return Kind(f"{kind.name}, restarted", command, kind.ready, kind.extra)


def table(found: dict[str, Seen]) -> Table:
    shown = Table(title="Kills of the process that serves, as clients see them", box=None)
    shown.add_column("")
    for name in found:
        shown.add_column(name, justify="right")

    def row(title: str, cell: Callable[[Seen], str]) -> None:
        shown.add_row(title, *(cell(seen) for seen in found.values()))

    def pause(percent: float) -> Callable[[Seen], str]:
        return lambda seen: f"{percentile(seen.pauses, percent) * 1e3:,.0f} ms"

    row("kills", lambda seen: str(seen.kills))
    row("requests", lambda seen: str(seen.requests))
    row("streams that broke", lambda seen: str(seen.broken))
    row("answers that changed", lambda seen: str(seen.changed))
    row("tokens generated twice for the client", lambda seen: str(seen.again))
    row("usual gap, median", lambda seen: f"{median(seen.gaps) * 1e3:,.1f} ms")
    row("streams running at a kill", lambda seen: str(len(seen.pauses)))
    for name, percent in (("median", 50), ("p90", 90), ("p99", 99), ("worst", 100)):
        row(f"pause, {name}", pause(percent))
    return shown


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/failover",
        description="Kills the model process under load, again and again, and shows what clients"
        " notice: behind hxd, and behind llama.cpp's server with a supervisor that restarts it.",
        epilog="Design: the next token within 500 ms (aim: 100 ms at the median), none failed."
        " Exit status: 0; 1 if a stream of hxd broke or changed, or a server failed; 2 usage.",
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="default: the demo model")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--streams", type=int, default=4, metavar="N", help="default 4")
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="of hxd; default 2")
    parser.add_argument(
        "--every", type=float, default=3.0, metavar="S", help="mean time between kills; default 3"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the times of the kills; default 1")
    parser.add_argument("--peers", default="hxd,bare", help="default hxd,bare")
    parser.add_argument(
        "--llama-server", type=Path, help="llama.cpp's server; else the wheel xllamacpp is used"
    )
    parser.add_argument("--json", action="store_true", help="print JSON and no table")
    return parser.parse_args(given)


async def compare(options: argparse.Namespace) -> int:
    model = options.model or demo.find("builtin:demo").file
    peers: dict[str, tuple[Kind, Callable[[Running], Any]]] = {}
    wanted = options.peers.split(",")
    if "hxd" in wanted:
        peers["hxd"] = hxd(model, options.replicas), busiest
    if "bare" in wanted:
        threads = len(os.sched_getaffinity(0))
        load = servers.Load(model, threads, SLOTS, context=1024)
        if options.llama_server:
            kind = servers.llama_server(load, options.llama_server)
        else:
            python = provision.peers_python(provision.default_cache(), "requirements-xllamacpp.txt")
            kind = servers.xllamacpp(load, python)
        peers["bare"] = restarting(kind), child
    found: dict[str, Seen] = {}
    status = 0
    for kind, victim in peers.values():
        print(f"{kind.name}: {options.kills} kills", file=sys.stderr)
        try:
            found[kind.name] = await measure(kind, victim, options)
        except (DidNotStart, Refused, TimeoutError) as error:
            print(f"{kind.name}: {error}", file=sys.stderr)
            status = 1
    for name, seen in found.items():
        if name.startswith("hxd") and (seen.broken or seen.changed):
            status = 1
    if options.json:
        print(json.dumps({name: vars(seen) | {"gaps": []} for name, seen in found.items()}))
    else:
        Console().print(table(found))
    return status


def main() -> int:
    options = parse(sys.argv[1:])
    return run(compare(options))


if __name__ == "__main__":
    raise SystemExit(main())

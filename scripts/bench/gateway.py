"""The working half of scripts/bench/gateway: gateways in turn, then the table."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil

from . import gates, report
from .gates import RATE
from .quiet import Patience
from .readings import Metric, Reading
from .report import Results, Row
from .serving import Kind, Running, run, serving
from .stats import median, percentile
from .trials import FAULTS, Trials

PEERS = ("hxd", "bare")
STREAMS = (500, 1000, 2000)
IDLE = 1000
STARTS = 5

ONE = "1 client, whole call"
MANY = "32 clients, whole calls"
RESTING = f"daemon, {IDLE:,} idle connections"
EMPTY = "daemon without models"
TARGETS: dict[Row, str] = {
    (ONE, Metric.CALL): "0.8 / 0.4 ms",
    (ONE, Metric.CALL_99): "3 / 1 ms",
    (MANY, Metric.CALLS): "4,000 / 10,000 per s",
    ("500 streams at once", Metric.KEPT): "500",
    ("2,000 streams at once", Metric.KEPT): "aim: 2,000",
    (RESTING, Metric.RESIDENT): "120 / 80 MB",
    (EMPTY, Metric.START): "1 / 0.4 s",
}


class LoadFailed(RuntimeError):
    """The message is what the load generator said."""


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/gateway",
        description="Measures what hxd itself costs, on the echo backend with keys required, beside"
        " a bare server that does the least possible (scripts/bench/bare.py).",
        epilog="Exit status: 0; 1 if a gateway failed; 2 for a wrong command line.",
    )
    parser.add_argument("--quick", action="store_true", help="a second for each, and 500 streams")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="MINUTES",
        help="on a machine with other work: wait and measure again up to so long, default 0",
    )
    parser.add_argument(
        "--litellm",
        nargs="?",
        const="litellm",
        metavar="PROGRAM",
        help="also LiteLLM's proxy, which must be installed",
    )
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - prints only that")
    options = parser.parse_args(given)
    if options.repeat < 1:
        parser.error("--repeat takes a number from 1")
    if options.litellm and not shutil.which(options.litellm):
        parser.error(f"--litellm: {options.litellm} is not installed")
    return options


async def ordered(running: Running, key: str | None, model: str, **order: Any) -> dict[str, Any]:
    """What the load generator found, in a process of its own."""
    async with _load(running, key, model, order) as process:
        out, err = await process.communicate()
    if process.returncode:
        raise LoadFailed(err.decode().strip()[-500:])
    return json.loads(out)


@contextlib.asynccontextmanager
async def _load(
    running: Running, key: str | None, model: str, order: dict[str, Any]
) -> AsyncIterator[asyncio.subprocess.Process]:
    target = {"host": "127.0.0.1", "port": running.port, "key": key, "model": model}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({**order, "target": target}).encode() + b"\n")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def whole_calls(running: Running, key: str | None, seconds: float) -> list[Reading]:
    one = await ordered(running, key, "echo", order="calls", clients=1, seconds=seconds)
    many = await ordered(running, key, "echo", order="calls", clients=32, seconds=seconds)
    return [
        Reading(ONE, Metric.CALL, 1e3 * median(one["latencies"])),
        Reading(ONE, Metric.CALL_99, 1e3 * percentile(one["latencies"], 99)),
        Reading(MANY, Metric.CALLS, many["per_second"]),
        Reading(MANY, Metric.CALL_99, 1e3 * percentile(many["latencies"], 99)),
    ]


async def streams(running: Running, key: str | None, count: int, tokens: int) -> list[Reading]:
    found = await ordered(
        running, key, "paced", order="streams", clients=count, tokens=tokens, rate=RATE
    )
    case = f"{count:,} streams at once"
    return [
        Reading(case, Metric.KEPT, found["kept"]),
        Reading(case, Metric.GAP_99, 1e3 * percentile(found["longest"], 99)),
    ]


async def resting(running: Running) -> list[Reading]:
    """The server's own process, without workers."""
    async with _load(running, None, "", {"order": "hold", "clients": IDLE}) as process:
        assert process.stdout is not None
        if (await process.stdout.readline()).strip() != b"holding":
            raise LoadFailed((await process.communicate())[1].decode().strip()[-500:])
        resident = psutil.Process(running.process.pid).memory_info().rss
    return [
        Reading(RESTING, Metric.RESIDENT, resident / 1e6),
        Reading(EMPTY, Metric.START, running.started_in),
    ]


async def measure(options: argparse.Namespace) -> Results:
    counts = STREAMS[:1] if options.quick else STREAMS
    seconds, tokens = (1, 60) if options.quick else (5, 160)
    results = Results([*PEERS, *(["litellm"] if options.litellm else [])])
    trials = Trials(options.repeat, Patience(60 * options.patience), results)

    async def all_of(kind: Kind, number: int) -> None:
        async with serving(kind) as running:
            key = await gates.key_for(running)
            await trials.run(running, number, "calls", lambda _: whole_calls(running, key, seconds))
            for count in counts:
                # What a proxy of a few hundred calls per second does with them is known.
                if kind.name != "litellm" or count == min(counts):
                    await trials.run(
                        running,
                        number,
                        f"{count} streams",
                        lambda _, count=count: streams(running, key, count, tokens),
                    )

    for number in range(options.repeat):
        for kind in (gates.hxd(max(counts)), gates.bare()):
            await _guarded(trials, kind, all_of(kind, number))
        if options.litellm:
            async with serving(gates.bare()) as behind:
                kind = gates.litellm(options.litellm, behind)
                await _guarded(trials, kind, all_of(kind, number))
    for _ in range(1 if options.quick else STARTS):
        for kind in (gates.hxd_alone(), gates.bare()):
            async with serving(kind) as running:
                await trials.run(running, 0, "start and rest", lambda _, r=running: resting(r))
    return results


async def _guarded(trials: Trials, kind: Kind, steps: Any) -> None:
    try:
        await steps
    except FAULTS as error:
        trials.fail(kind, "start", error)


def main() -> int:
    options = parse(sys.argv[1:])
    results = run(measure(options))
    machine = report.machine()
    servers = {
        "hxd": "keys required, echo backend",
        "bare": "aiohttp, uvloop and msgspec, one hop to a worker, nothing else",
    }
    about = {"machine": machine, "servers": servers, "settings": {"quick": options.quick}}
    title = f"gateways, {machine['cores']} cores, {machine['processor']}"
    report.publish(results, about, title, TARGETS, options.json)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

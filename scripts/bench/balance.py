"""The working half of scripts/bench/balance: what a policy makes of two replicas on one device.

Two workers of the same model share the box's cores and memory bandwidth. `pack` fills one batch
before it begins another; the other policies spread, and so halve the batches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hxd.daemon.store import demo

from . import servers
from .serving import DidNotStart, Kind, run, serving
from .stats import median, percentile, ratio
from .streams import Client, Refused, Stream

POLICIES = ("pack", "least_busy", "round_robin")
SLOTS = 8
PROMPTS = ("A story about a ship:", "Two plus two is", "Once upon a time", "The sea is")


@dataclass(frozen=True)
class Seen:
    """`rate` in tokens per second over all clients, `gap` the median and `gap_99` the 99th
    percentile between two pieces of one stream, in seconds."""

    rate: float
    gap: float
    gap_99: float


def kind(policy: str, model: Path, replicas: int) -> Kind:
    def command(port: int, folder: Path) -> list[str]:
        settings = {
            "source": str(model),
            "replicas": replicas,
            "slots": SLOTS,
            "context": 1024,
            "policy": policy,
        }
        return servers.serve_hxd(port, folder, {"bench": settings}, auth=False)

    return Kind(policy, command, "/readyz", {"ignore_eos": True})


async def measure(client: Client, clients: int, tokens: int, rounds: int) -> Seen:
    async def one(number: int) -> list[Stream]:
        prompt = PROMPTS[number % len(PROMPTS)]
        return [await client.run(prompt, tokens) for _ in range(rounds)]

    began = time.perf_counter()
    streams = [s for many in await asyncio.gather(*map(one, range(clients))) for s in many]
    took = time.perf_counter() - began
    gaps = [gap for stream in streams for gap in stream.gaps]
    total = sum(stream.tokens for stream in streams)
    return Seen(total / took, median(gaps), percentile(gaps, 99))


async def compare(options: argparse.Namespace) -> int:
    found: dict[str, dict[int, Seen]] = {}
    model = options.model or demo.find("builtin:demo").file
    for policy in options.policies.split(","):
        print(f"{policy}: {options.replicas} replicas", file=sys.stderr)
        try:
            async with serving(kind(policy, model, options.replicas)) as server:
                client = Client(server.session, server.url, server.kind.extra)
                await measure(client, 2 * options.replicas, 16, 1)
                found[policy] = {
                    clients: await measure(client, clients, options.tokens, options.rounds)
                    for clients in options.clients
                }
        except (DidNotStart, Refused) as error:
            print(f"{policy}: {error}", file=sys.stderr)
            return 1
    if options.json:
        shown = {
            policy: {clients: vars(seen) for clients, seen in rows.items()}
            for policy, rows in found.items()
        }
        print(json.dumps(shown))
    else:
        Console().print(table(found))
    return 0


def table(found: dict[str, dict[int, Seen]]) -> Table:
    """Tokens per second; behind the first policy's, the others' with the ratio first/other."""
    shown = Table(title=f"Replicas on one box of {os.cpu_count()} cores", box=None)
    shown.add_column("clients")
    first, *others = found
    for policy in found:
        shown.add_column(f"{policy}, tokens/s", justify="right")
        shown.add_column("gap, median / p99", justify="right")
    for policy in others:
        shown.add_column(f"{first} / {policy}", justify="right")
    for clients in found[first]:
        cells = []
        for rows in found.values():
            seen = rows[clients]
            cells += [f"{seen.rate:,.0f}", f"{seen.gap * 1e3:.1f} / {seen.gap_99 * 1e3:.1f} ms"]
        won = [f"{ratio(found[first][clients].rate, found[o][clients].rate):.2f}x" for o in others]
        shown.add_row(str(clients), *cells, *won)
    return shown


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/balance",
        description="Measures policies of choosing a replica, where replicas share one device.",
        epilog="Exit status: 0; 1 if the server failed; 2 for a wrong command line.",
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="PATH", help="default: the demo model")
    add("--policies", default=",".join(POLICIES), help="default %(default)s")
    add("--replicas", type=int, default=2, metavar="N", help="default 2")
    add("--clients", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="default 1 2 4 8")
    add("--tokens", type=int, default=200, metavar="N", help="of an answer; default 200")
    add("--rounds", type=int, default=4, metavar="N", help="answers of each client; default 4")
    add("--json", action="store_true", help="print JSON and no table")
    return parser.parse_args(given)


def main() -> int:
    return run(compare(parse(sys.argv[1:])))


if __name__ == "__main__":
    raise SystemExit(main())

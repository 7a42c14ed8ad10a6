"""The working half of scripts/bench/engine: what is asked for, which servers there are, output."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import provision, report, servers, serving, synthesis
from .comparison import Make, compare_embeddings, compare_texts
from .quiet import Patience
from .readings import Metric
from .report import Results, Row
from .scenarios import SCENARIOS, Plan
from .servers import Load
from .trials import Trials, console

PEERS = ("hxd", "llama-server", "llama_cpp.server")
EMBEDDING_MODEL = Path(__file__).parents[3] / "shared/models/all-minilm-l6-v2-q8_0.gguf"
# What the model for embeddings was trained for; a llama.cpp batch takes at most one text of it.
EMBEDDING_CONTEXT = 512
QUICK = Plan(prompt=32, answer=48, rounds=2, leaving=50)
NORMAL = Plan()
FULL = Plan(answer=192, rounds=4)

TARGETS: dict[Row, str] = {
    ("1 client", Metric.OVERALL): "1.0x / 1.2x of llama-server",
    ("8 clients", Metric.OVERALL): "1.0x / 1.2x; 5x / 8x of llama_cpp.server",
    ("16 clients", Metric.OVERALL): "1.0x / 1.2x",
    ("shared prefix, first round", Metric.SECONDS): "a half / a quarter of llama-server's",
    ("4,000-token prompt comes in", Metric.STEPS): "4 / 2",
    ("embeddings, one at a time", Metric.CALL): "10 / 5 ms",
    ("embeddings, batch of 64", Metric.TEXTS): "600 / 1,000 per s",
}

DESCRIPTION = """\
Measures hxd and other servers of the same GGUF file, one after the other, with the same threads,
slots and context per slot. Installs peers, and makes the models, below --cache on first use.
"""
EPILOG = f"""\
Scenarios: {", ".join(SCENARIOS)}, embeddings. docs/performance.md describes them.
Exit status: 0; 1 if a server failed in a scenario; 2 for a wrong command line; 3 if a peer could
not be installed.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/bench/engine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="160M model, few tokens: minutes")
    size.add_argument("--full", action="store_true", help="more tokens, 3 repetitions: an hour")
    add("--model", type=Path, metavar="PATH", help="a GGUF file of your own")
    add("--embedding-model", type=Path, metavar="PATH", help="GGUF file for `embeddings`")
    add("--only", nargs="+", choices=(*SCENARIOS, "embeddings"), metavar="SCENARIO")
    add("--peers", default=",".join(PEERS), metavar="LIST", help="default %(default)s")
    add(
        "--peer",
        choices=("llama-server", "xllamacpp"),
        help="where llama-server comes from: built from the sources that llama-cpp-python brings "
        "(default), or the wheel xllamacpp (default where there is no compiler)",
    )
    add("--llama-server", type=Path, metavar="PATH", help="a llama-server that is there already")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, metavar="N", help="default: the cores, %(default)s")
    add("--slots", type=int, default=16, metavar="N", help="default %(default)s")
    add("--repeat", type=int, metavar="N", help="repetitions; the table has medians")
    add(
        "--patience",
        type=float,
        default=0,
        metavar="MINUTES",
        help="on a machine with other work: wait and measure again up to so long, default 0",
    )
    add("--cache", type=Path, default=provision.default_cache(), metavar="FOLDER")
    add("--json", metavar="FILE", help="also write JSON; - prints it instead of the table")
    return made


def parse(given: list[str]) -> argparse.Namespace:
    made = parser()
    options = made.parse_args(given)
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - set(PEERS):
        made.error(f"--peers: {min(unknown)!r} is none of {', '.join(PEERS)}")
    if min(options.threads, options.slots, options.repeat or 1) < 1:
        made.error("--threads, --slots and --repeat take numbers from 1")
    for path in (options.model, options.embedding_model, options.llama_server):
        if path is not None and not path.is_file():
            made.error(f"no such file: {path}")
    options.cache = options.cache.resolve()
    options.repeat = options.repeat or (3 if options.full else 1)
    return options


def servers_of(options: argparse.Namespace) -> tuple[list[Make], dict[str, str]]:
    """How to make each server, in the order of the table, and what each is."""
    version = f"llama-cpp-python {provision.llama_version()}"
    made: dict[str, Callable[[], tuple[Make, str]]] = {
        "hxd": lambda: (servers.hxd, f"with {version}"),
        "llama-server": lambda: llama_server_of(options, version),
        "llama_cpp.server": lambda: (
            partial(servers.llama_cpp_server, python=provision.peers_python(options.cache)),
            f"of {version}",
        ),
    }
    pairs = {name: made[name]() for name in options.peers}
    return [make for make, _ in pairs.values()], {name: said for name, (_, said) in pairs.items()}


def llama_server_of(options: argparse.Namespace, version: str) -> tuple[Make, str]:
    if options.llama_server:
        binary = options.llama_server.resolve()
        return partial(servers.llama_server, binary=binary), "the binary that was given"
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = any(name and shutil.which(name) for name in compilers)
    if options.peer == "xllamacpp" or (options.peer is None and not compiler):
        python = provision.peers_python(options.cache, "requirements-xllamacpp.txt")
        said = "from the wheel xllamacpp, which is not built for this processor"
        return partial(servers.xllamacpp, python=python), said
    binary = provision.llama_server(options.cache)
    said = f"built from the sources in {version}"
    return partial(servers.llama_server, binary=binary), said


async def measure(options: argparse.Namespace) -> tuple[Results, dict[str, Any]]:
    makes, about = servers_of(options)
    results = Results(options.peers)
    trials = Trials(options.repeat, Patience(60 * options.patience), results)
    wanted = options.only or [*SCENARIOS, "embeddings"]
    plan = QUICK if options.quick else FULL if options.full else NORMAL
    settings: dict[str, Any] = {
        "threads": options.threads,
        "repeat": options.repeat,
        "plan": dataclasses.asdict(plan),
    }
    if texts := [name for name in SCENARIOS if name in wanted]:
        shape = "160m" if options.quick else "1b"
        model = (options.model or synthesis.cached(shape, options.cache)).resolve()
        load = Load(model, options.threads, options.slots, plan.context)
        settings |= {"model": model.name, "slots": load.slots, "context": load.context}
        await compare_texts(trials, makes, load, plan, texts)
    if "embeddings" in wanted:
        model = (options.embedding_model or EMBEDDING_MODEL).resolve()
        if model.is_file():
            load = Load(model, options.threads, 1, EMBEDDING_CONTEXT, embeddings=True)
            settings["embedding_model"] = model.name
            await compare_embeddings(trials, makes, load, calls=40 if options.quick else 200)
        else:
            for server in options.peers:
                results.skip(server, "embeddings", "no --embedding-model was given")
    return results, {"machine": report.machine(), "servers": about, "settings": settings}


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        results, about = serving.run(measure(options))
    except provision.NotInstalled as error:
        console.print(str(error))
        return 3
    settings = about["settings"]
    title = [settings.get("model", settings.get("embedding_model", ""))]
    title += [f"{settings['threads']} threads", about["machine"]["processor"]]
    report.publish(results, about, ", ".join(title), TARGETS, options.json)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

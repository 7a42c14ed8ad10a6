"""The working half of scripts/eval_demo: serve every version and variant, ask, count, print."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "demo_model"))

from heldout import heldout

VERSIONS = (1, 2)
VARIANTS = ("f16", "q8_0", "q4_0", "q2_k")
# Overall exact match at f16, in percent: what the two versions are there to show.
BOUNDS = {1: (50.0, 85.0), 2: (97.0, 100.0)}
CLIENTS = 8
START_SECONDS = 300
Scores = dict[str, float]


def config(folder: Path) -> Path:
    """One model for each version and variant, named like `v2-q4_0`."""
    file = folder / "hxd.toml"
    lines = ['[listen]\nhttp = "127.0.0.1:0"', "[auth]\nrequired = false", "[paths]"]
    lines += [f'{key} = "{folder / key}"' for key in ("state", "runtime", "logs", "cache")]
    for version in VERSIONS:
        for variant in VARIANTS:
            lines += [
                f"[models.v{version}-{variant}]",
                f'source = "builtin:demo@{version}"',
                f'variants = ["{variant}"]',
                f"slots = {CLIENTS}",
                "context = 512",
            ]
    file.write_text("\n".join(lines))
    return file


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[str]:
    """The address of a daemon that serves everything that is asked below."""
    log = folder / "log"
    with log.open("wb") as stream:
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hxd", "serve", "--config", str(config(folder)), stderr=stream
        )
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while not (match := re.search(r"listening on (\S+)", log.read_text())):
                if daemon.returncode is not None:
                    sys.exit(f"eval_demo: the daemon did not start:\n{log.read_text()}")
                await asyncio.sleep(0.1)
            # Readiness has no event that a client could wait for.
            while (await session.get(match[1] + "/readyz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield match[1]
    except TimeoutError:
        sys.exit(f"eval_demo: not ready within {START_SECONDS} s:\n{log.read_text()[-4000:]}")
    finally:
        if daemon.returncode is None:
            daemon.terminate()
            await daemon.wait()


async def exact(session: aiohttp.ClientSession, url: str, model: str, ask: str, want: str) -> bool:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": ask}],
        "temperature": 0,
        "max_tokens": 64,
    }
    async with session.post(url + "/v1/chat/completions", json=body) as response:
        answer = await response.json()
        response.raise_for_status()
        return bool(answer["choices"][0]["message"]["content"].strip() == want)


async def score(
    url: str, model: str, prompts: dict[str, list[tuple[str, str]]], progress: Progress
) -> Scores:
    """Percent of exact answers by task, and `overall` over all prompts."""
    bar = progress.add_task(model, total=sum(map(len, prompts.values())))
    room = asyncio.Semaphore(CLIENTS)

    async def one(session: aiohttp.ClientSession, ask: str, want: str) -> bool:
        async with room:
            right = await exact(session, url, model, ask, want)
        progress.advance(bar)
        return right

    right: dict[str, list[bool]] = {}
    async with aiohttp.ClientSession() as session:
        for task, pairs in prompts.items():
            right[task] = await asyncio.gather(*(one(session, *pair) for pair in pairs))
    scores = {task: 100 * sum(hits) / len(hits) for task, hits in right.items()}
    hits = [hit for all_hits in right.values() for hit in all_hits]
    return {**scores, "overall": 100 * sum(hits) / len(hits)}


def table(results: dict[str, Scores]) -> Table:
    """Tasks down, versions and variants across; what a quantization costs against f16 below."""
    models = list(results)
    shown = Table("task", *models, title="exact match, %", box=None, pad_edge=False)
    for task in next(iter(results.values())):
        shown.add_row(task, *(f"{results[model][task]:.1f}" for model in models))
    costs = [
        results[f"{model.partition('-')[0]}-f16"]["overall"] - results[model]["overall"]
        for model in models
    ]
    shown.add_row("lost to f16", *(f"{cost:.1f}" for cost in costs))
    return shown


def complaints(results: dict[str, Scores]) -> list[str]:
    return [
        f"version {version} at f16 has {results[f'v{version}-f16']['overall']:.1f} % overall; "
        f"{low:g} to {high:g} % are promised"
        for version, (low, high) in BOUNDS.items()
        if not low <= results[f"v{version}-f16"]["overall"] <= high
    ]


async def evaluate(per_task: int) -> dict[str, Scores]:
    prompts = heldout(per_task)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="hxd-eval-") as folder:
        console.print("starting the daemon, and quantizing both versions")
        async with serving(Path(folder)) as url:
            with Progress(console=console) as progress:
                return {
                    f"v{version}-{variant}": await score(
                        url, f"v{version}-{variant}", prompts, progress
                    )
                    for version in VERSIONS
                    for variant in VARIANTS
                }


def main() -> int:
    parser = argparse.ArgumentParser(prog="eval_demo", description=__doc__)
    parser.add_argument("--per-task", type=int, default=200, help="prompts of each task")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 if a promise is not kept")
    arguments = parser.parse_args()
    results = asyncio.run(evaluate(arguments.per_task))
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(table(results))
    wrong = complaints(results) if arguments.check else []
    for complaint in wrong:
        print(f"eval_demo: {complaint}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

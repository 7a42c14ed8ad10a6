"""Models for embeddings are swapped and tried like others, and judged by their vectors: one that
gives vectors of no use answers every request."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.embedding import MINILM as FILE
from tests.embedding import cosine, needs_minilm, write_confused, write_renamed
from tests.rollouts import begin, judged, rollback, swap, when
from tests.support import HXCTL, ROOT, Daemon, post, running, write_config

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_minilm]

NAME = "mini"
CONFIG = f"""
[models.{NAME}]
source = "store:{NAME}"
slots = 4
threads = 1
"""
RENAMED, CONFUSED = 2, 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("vectors")
    write_renamed(folder / "renamed.gguf")
    write_confused(folder / "confused.gguf")
    config = write_config(folder, CONFIG)
    fill_store(config, FILE, folder / "renamed.gguf", folder / "confused.gguf")
    async with running(config) as daemon:
        assert (await swap(daemon, NAME, 1))["phase"] == "done"
        yield daemon


def fill_store(config: Path, *files: Path) -> None:
    """Versions from 1 on, while no daemon runs."""
    for file in files:
        command = [sys.executable, "-c", HXCTL, "model", "import", file, "--name", NAME]
        options = ["--offline", "--no-validate", "--config", config]
        subprocess.run([*command, *options], cwd=ROOT, check=True, timeout=60)


async def embed(box: Daemon, text: str = "a text") -> tuple[int, Any, dict[str, str]]:
    return await post(box.url + "/v1/embeddings", {"model": NAME, "input": text})


async def vector(box: Daemon) -> list[float]:
    status, answer, _ = await embed(box)
    assert status == 200, answer
    return list(answer["data"][0]["embedding"])


async def test_one_that_gives_the_same_vectors_is_promoted_under_load(box: Daemon) -> None:
    met: set[str] = set()
    wrong: list[Any] = []
    over = asyncio.Event()

    async def ask(number: int) -> None:
        while not over.is_set():
            status, answer, headers = await embed(box, f"text {number}")
            met.add(headers.get("x-hxd-version", ""))
            if status != 200:
                wrong.append(answer)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(ask(number))
        done = await judged(box, await begin(box, NAME, RENAMED, canary=0.5, time=1, at_least=20))
        over.set()
    assert (done["phase"], done["reason"]) == ("done", None), done["verdict"]
    assert any("vectors 1.00 like" in note for note in done["notes"]), done["notes"]
    assert (met, wrong) == ({"1", "2"}, [])
    assert (await rollback(box, NAME))["phase"] == "done"


async def test_a_trial_would_mix_vectors_that_have_nothing_to_do_with_each_other(
    box: Daemon,
) -> None:
    trial = await begin(box, NAME, CONFUSED, canary=0.5, time=600)
    done = await when(box, trial, lambda row: not row["running"])
    assert done["phase"] == "rolled_back"
    assert "can't be compared with those of mini" in done["reason"], done["reason"]
    _, _, headers = await embed(box)
    assert headers["x-hxd-version"] == "1"


async def test_a_swap_to_other_vectors_says_that_they_are_others(box: Daemon) -> None:
    before = await vector(box)
    done = await swap(box, NAME, CONFUSED)
    assert (done["phase"], done["notes"][-1]) == (
        "done",
        "what clients have stored must be embedded anew",
    )
    assert cosine(before, await vector(box)) < 0.9
    assert (await rollback(box, NAME))["phase"] == "done"
    assert await vector(box) == before

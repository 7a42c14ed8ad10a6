"""`hxctl model convert` against a real daemon: models of the Hub become versions that answer as
they did, and what is stopped on the way leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner

from hxd.cli.client import EXIT_ERROR
from hxd.cli.ctl import hxctl
from tests import hub
from tests.support import Daemon, echo, get, post, running, write_config

MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with running(write_config(tmp_path_factory.mktemp("box"), echo()), ready=False) as daemon:
        yield daemon


async def ctl(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors; in this process, since starting one takes longest."""
    socket = ("--socket", str(daemon.folder / "run" / "admin.sock"))
    done = await asyncio.to_thread(CliRunner().invoke, hxctl, (*socket, *arguments))
    return done.exit_code, done.stdout, done.stderr


async def convert(daemon: Daemon, folder: Path, *options: str) -> dict[str, Any]:
    code, out, errors = await ctl(daemon, "--json", "model", "convert", str(folder), *options)
    assert code == 0, errors
    found: dict[str, Any] = json.loads(out)
    return found


def store(daemon: Daemon) -> Path:
    return daemon.folder / "state" / "store"


def left(daemon: Daemon) -> tuple[list[str], list[str]]:
    """Models but the built-in one, and workspaces."""
    models = store(daemon) / "models"
    spaces = store(daemon) / "tmp"
    return (
        [path.name for path in models.iterdir() if path.name != "hxd-demo"],
        [path.name for path in spaces.iterdir() if path.name != "pull"],
    )


def weights(version: Path) -> dict[str, tuple[int, bytes]]:
    """Type and content of each tensor."""
    (file,) = version.glob("*.gguf")
    tensors = gguf.GGUFReader(file).tensors
    return {tensor.name: (int(tensor.tensor_type), tensor.data.tobytes()) for tensor in tensors}


async def test_the_demo_model_taken_apart_and_converted_answers_as_it_did(
    box: Daemon, tmp_path: Path
) -> None:
    folder = hub.write_demo(tmp_path / "demo", 3)
    looked = await convert(box, folder)
    assert (looked["architecture"], looked["format"]) == ("LlamaForCausalLM", "safetensors")
    made = await convert(box, folder, "--name", "org/back", "--label", "new")
    assert (made["version"], made["labels"], made["variants"]) == (1, ["new"], ["f16"])
    assert made["notes"] == []
    ask = ("--json", "model", "import", str(hub.demo_file()), "--name", "original")
    original = json.loads((await ctl(box, *ask))[1])
    assert weights(store(box) / "models/org/back/1") == weights(hub.demo_file().parent)
    for key in ("golden_right", "golden_asked"):
        assert made["validation"][key] == original["validation"][key], key
    # How many tokens are read in one step is a matter of how busy the box is, and how llama.cpp
    # rounds is one of that.
    before = original["validation"]["perplexity"]
    assert made["validation"]["perplexity"] == pytest.approx(before, rel=1e-3)
    again = await convert(box, folder, "--name", "org/back")
    assert again["already"]
    small = await convert(box, folder, "--name", "small", "--as", "q4_0", "--no-validate")
    assert small["variants"] == ["q4_0"] and small["bytes"] < made["bytes"] / 2
    _, shown, _ = await ctl(box, "--json", "model", "show", "small")
    assert json.loads(shown)["origin"].endswith(", by convert@1.0.0 and llama_cpp@1.0.0")
    assert left(box)[1] == []


async def test_what_is_not_understood_is_refused_with_what_was_found(
    box: Daemon, tmp_path: Path
) -> None:
    folder = hub.write(tmp_path / "m", hub.config("LlamaForCausalLM"))
    for file, found, words in (
        ("config.json", hub.config("PhiForCausalLM"), "PhiForCausalLM is not converted"),
        ("config.json", hub.config("LlamaForCausalLM", auto_map={"AutoModel": "x.Y"}), "auto_map"),
        (
            "config.json",
            hub.config("LlamaForCausalLM", quantization_config={"quant_method": "gptq"}),
            "quantized with 'gptq'",
        ),
        ("config.json", hub.config("LlamaForCausalLM", hidden_size=64), "by config.json it is"),
        ("adapter_config.json", {}, "a LoRA adapter"),
    ):
        hub.write_json(folder / "config.json", hub.config("LlamaForCausalLM"))
        hub.write_json(folder / file, found)
        said = await ctl(box, "model", "convert", str(folder), "--name", "refused")
        assert said[0] == EXIT_ERROR and words in said[2], said
    for options in (("--as", "q9"), ("--label", "No Label")):
        said = await ctl(box, "model", "convert", str(folder), "--name", "m", *options)
        assert said[0] == EXIT_ERROR, said
    models, spaces = left(box)
    assert "refused" not in models and spaces == []


def write_large(folder: Path) -> Path:
    """A model of 400 MiB that takes no room: its tensors are one hole."""
    found = hub.config("LlamaForCausalLM", intermediate_size=MIB, num_hidden_layers=1)
    small = hub.config("LlamaForCausalLM", num_hidden_layers=1)
    hub.write(folder, found, {})
    entries: dict[str, Any] = {}
    at = 0
    for name, values in hub.tensors(small).items():
        shape = [MIB if length == small["intermediate_size"] else length for length in values.shape]
        size = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    file = folder / "model.safetensors"
    file.write_bytes(hub.safetensors({}, **entries))
    os.truncate(file, file.stat().st_size + at)
    return folder


async def begun(daemon: Daemon, folder: Path) -> dict[str, Any]:
    """A job that writes its file."""
    ask = {"path": str(folder), "name": "large"}
    status, job, _ = await post(daemon.url + "/admin/v1/store/convert", ask)
    assert status == 202
    while not (job := await looked_at(daemon, job))["done"]:
        assert job["state"] == "running", job
    return job


async def looked_at(daemon: Daemon, job: dict[str, Any]) -> dict[str, Any]:
    return (await get(f"{daemon.url}/admin/v1/jobs/{job['id']}"))[1]


async def ended(daemon: Daemon, job: dict[str, Any]) -> dict[str, Any]:
    while (job := await looked_at(daemon, job))["state"] == "running":
        pass
    return job


async def test_a_conversion_that_is_stopped_or_killed_leaves_nothing(tmp_path: Path) -> None:
    folder = write_large(tmp_path / "large")
    config = write_config(tmp_path, echo())
    async with running(config) as daemon:
        serving = {worker.pid for worker in daemon.workers()}
        job = await begun(daemon, folder)
        await ctl(daemon, "job", "cancel", job["id"])
        assert (await looked_at(daemon, job))["state"] == "cancelled"
        assert left(daemon) == ([], [])

        job = await begun(daemon, folder)
        (worker,) = [one for one in daemon.workers() if one.pid not in serving]
        assert worker.nice() > 0
        worker.send_signal(signal.SIGKILL)
        job = await ended(daemon, job)
        assert job["state"] == "failed" and "SIGKILL" in job["error"]["message"]
        assert left(daemon) == ([], [])

        await begun(daemon, folder)
        await daemon.kill()
    async with running(config, ready=False) as daemon:
        assert left(daemon) == ([], [])


async def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    folder = write_large(tmp_path / "large")
    async with running(write_config(tmp_path, echo()), ready=False) as daemon:
        most = 16 * MIB
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (most, most))
        said = await ctl(daemon, "model", "convert", str(folder), "--name", "large")
        assert said[0] == EXIT_ERROR and "larger than a limit allows" in said[2]
        assert left(daemon) == ([], [])


async def test_converting_needs_the_role_of_an_import_and_looking_does_not(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config("Qwen3ForCausalLM"))
    async with running(write_config(tmp_path, echo(), auth=True), ready=False) as daemon:
        made = await ctl(daemon, "--json", "key", "create", "op", "--role", "operator")
        key = {"Authorization": f"Bearer {json.loads(made[1])['key']}"}
        url = daemon.url + "/admin/v1/store"
        body = {"path": str(folder)}
        assert (await post(url + "/look", body, headers=key))[0] == 200
        assert (await post(url + "/convert", body | {"name": "m"}, headers=key))[0] == 403

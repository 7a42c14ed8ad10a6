"""`hxctl model` against a real daemon: how models come in, are kept, mended and taken out again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from click.testing import CliRunner

from hxd.cli.ctl import hxctl
from hxd.daemon.store import demo
from tests import tiny
from tests.embedding import MINILM, WIDTH, needs_minilm
from tests.lying_server import Behaviour, Exchange, LyingServer, stall
from tests.support import DEMO, HXCTL, ROOT, Daemon, chat, echo, get, post, running, write_config

ONE = ROOT / "hxd/demo/1/hxd-demo-f16.gguf"
MIB = 1 << 20


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def body(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


async def start_ctl(daemon: Daemon | None, *arguments: str) -> asyncio.subprocess.Process:
    socket = ("--socket", str(daemon.folder / "run" / "admin.sock")) if daemon else ()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, *socket, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ctl(daemon: Daemon | None, *arguments: str) -> Said:
    """As `start_ctl`, without a process of its own, which would take most of the time."""
    asked = ("--json", *arguments)
    if daemon is not None:
        asked = ("--socket", str(daemon.folder / "run" / "admin.sock"), *asked)
    done = await asyncio.to_thread(CliRunner().invoke, hxctl, asked)
    return Said(done.exit_code, done.stdout, done.stderr)


async def model(daemon: Daemon, *arguments: str) -> Said:
    return await ctl(daemon, "model", *arguments)


async def take_in(daemon: Daemon, path: Path, name: str, *options: str) -> Said:
    return await model(daemon, "import", str(path), "--name", name, "--no-validate", *options)


def store(daemon: Daemon) -> Path:
    return daemon.folder / "state" / "store"


def left_behind(daemon: Daemon) -> list[str]:
    """What lies where the store works, when nobody works."""
    folder = store(daemon) / "tmp"
    pulls = [f"pull/{path.name}" for path in (folder / "pull").iterdir()]
    return sorted(pulls + [path.name for path in folder.iterdir() if path.name != "pull"])


def versions(listed: Any, name: str) -> dict[int, dict[str, Any]]:
    (found,) = [one for one in listed if one["name"] == name]
    return {version["version"]: version for version in found["versions"]}


@contextlib.asynccontextmanager
async def light(folder: Path) -> AsyncIterator[Daemon]:
    """A daemon whose store is used, and whose models need none."""
    folder.mkdir(exist_ok=True)
    async with running(write_config(folder, echo()), ready=False) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """One for the tests that leave it as good as they found it."""
    async with light(tmp_path_factory.mktemp("box")) as daemon:
        yield daemon


@pytest.fixture
def server() -> Iterator[LyingServer]:
    with LyingServer() as server:
        yield server


async def test_a_model_file_becomes_a_version_that_was_tried_and_serves(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, DEMO.format(replicas=1))) as daemon:
        done = (await model(daemon, "import", str(ONE), "--name", "mine")).body
        assert (done["version"], done["labels"], done["already"]) == (1, ["stable"], False)
        found = done["validation"]
        assert found["loaded"] and found["golden_asked"] == 8 and found["golden_right"] >= 4
        assert found["perplexity"] > 1
        assert min(found["tokens_per_second"], found["prompt_tokens_per_second"]) > 0
        assert (await model(daemon, "show", "mine")).body["validation"] == found
        again = ("import", str(ONE), "--name", "mine", "--label", "stable", "--label", "again")
        there = (await model(daemon, *again)).body
        assert (there["already"], there["notes"]) == (True, ["again points at mine@1 now"])
        assert left_behind(daemon) == []

        done = (await model(daemon, "quantize", "hxd-demo", "q4_0")).body
        assert done["bytes"] < ONE.stat().st_size / 2
        assert (await model(daemon, "quantize", "hxd-demo", "q4_0")).body["already"]
        assert (await ctl(daemon, "swap", "hxd-demo", "q4_0")).body["phase"] == "done"
        _, _, headers = await post(daemon.url + "/v1/chat/completions", chat("hxd-demo", "hi"))
        assert headers["x-hxd-variant"] == "q4_0"
        assert not (tmp_path / "cache/variants").exists()
        used = await model(daemon, "rm", "hxd-demo:q4_0@2")
        assert used.code == 75 and "serves hxd-demo" in used.err
        _, jobs = await get(daemon.url + "/admin/v1/jobs")
        assert [job["state"] for job in jobs] == ["done"] * 4
        async with aiohttp.ClientSession() as session:
            text = await (await session.get(daemon.url + "/metrics")).text()
        assert 'hxd_store_operations_total{kind="quantize",outcome="done"} 2.0' in text
        assert "hxd_jobs_running 0.0" in text


async def test_a_label_that_a_model_follows_moves_by_a_swap_and_holds_what_serves(
    tmp_path: Path,
) -> None:
    async with running(write_config(tmp_path, DEMO.format(replicas=1))) as daemon:
        said = await ctl(daemon, "label", "hxd-demo", "best", "2")
        assert said.body["moved"]
        done = await ctl(daemon, "label", "hxd-demo", "stable", "1")
        assert '"phase": "done"' in done.out, done.err
        there = versions((await model(daemon, "list")).body, "hxd-demo")
        assert there[1]["labels"] == ["stable"] and there[1]["serves"] == ["hxd-demo"]
        assert there[2]["kept_for"] == ["hxd-demo"]
        refused = await model(daemon, "rm", "hxd-demo@2", "--force")
        assert refused.code == 75 and "has workers of hxd-demo" in refused.err
        refused = await ctl(daemon, "label", "hxd-demo", "stable", "--remove")
        assert refused.code == 75 and "follows the label stable" in refused.err
        assert (await ctl(daemon, "label", "hxd-demo", "best", "--remove")).code == 0
        missing = await ctl(daemon, "label", "hxd-demo", "stable", "7")
        assert missing.code == 1 and "no version 7 of hxd-demo" in missing.err


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (tiny.gguf()[:200], "refused"),
        (b"PK\x03\x04" + bytes(5000), "PyTorch checkpoint"),
        (b"\x80\x02}q\x00." + bytes(5000), "refused"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + bytes(5000), "not a model file"),
        (b"GGUF" + b"\xff" * 5000, "refused"),
        (b"<!DOCTYPE html><html>", "refused"),
    ],
)
async def test_a_hostile_file_is_refused_and_leaves_nothing(
    box: Daemon, tmp_path: Path, data: bytes, says: str
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    said = await take_in(box, file, "bad")
    assert said.code == 1
    assert says in said.err and "model.gguf" in said.err
    assert left_behind(box) == []
    assert not (store(box) / "models/bad").exists()


async def test_a_file_that_no_worker_can_load_does_not_get_in(box: Daemon, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "hollow.gguf")
    said = await model(box, "import", str(file), "--name", "hollow")
    assert said.code == 1 and "--no-validate" in said.err
    assert "a worker of llama_cpp@" in said.err
    assert left_behind(box) == []
    assert not (store(box) / "models/hollow").exists()
    _, replicas = await get(box.url + "/admin/v1/replicas")
    assert {replica["model"] for replica in replicas} == {"echo"}


async def test_a_worker_that_is_killed_while_it_tries_a_model_ends_the_import(
    box: Daemon,
) -> None:
    ask = {"path": str(ONE), "name": "unlucky"}
    status, job, _ = await post(box.url + "/admin/v1/store/import", ask)
    assert status == 202
    while not (pids := await trying(box)):
        pass
    os.kill(pids[0], signal.SIGKILL)
    while (ended := (await get(f"{box.url}/admin/v1/jobs/{job['id']}"))[1])["state"] == "running":
        pass
    assert ended["state"] == "failed"
    assert "SIGKILL" in ended["error"]["message"]
    assert not (store(box) / "models/unlucky").exists()
    assert left_behind(box) == []


async def test_a_trial_ends_with_its_job_and_with_the_daemon(tmp_path: Path) -> None:
    async with light(tmp_path) as daemon:
        jobs = []
        for name in ("first", "second"):
            # So many prompts that no trial is over before it has been seen.
            ask = {"path": str(ONE), "name": name, "golden": (demo.golden() or b"").decode()}
            jobs.append((await post(daemon.url + "/admin/v1/store/import", ask))[1])
        while not await trying(daemon):
            pass
        assert (await ctl(daemon, "job", "cancel", jobs[0]["id"])).body["state"] == "cancelled"
        while not await trying(daemon):
            pass
        assert await daemon.stop() == 0
        assert "job='import' reason='cancelled'" in daemon.log
        assert not list((store(daemon) / "models").glob("*nd")) and left_behind(daemon) == []


async def trying(daemon: Daemon) -> list[int]:
    """Processes that try a model."""
    _, replicas = await get(daemon.url + "/admin/v1/replicas")
    return [one["pid"] for one in replicas if one["model"] == "(validation)" and one["pid"]]


async def test_a_model_that_has_no_room_beside_the_others_is_taken_untried(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo(), extra='[memory]\nbudget = "1MiB"')
    async with running(config, ready=False) as daemon:
        done = (await model(daemon, "import", str(ONE), "--name", "large")).body
        assert done["version"] == 1 and done["validation"]["loaded"] is False
        assert "of the memory budget are left" in done["validation"]["why"]


@needs_minilm
async def test_a_model_for_vectors_is_tried_with_texts(box: Daemon) -> None:
    found = (await model(box, "import", str(MINILM), "--name", "vectors")).body["validation"]
    assert (found["loaded"], found["dimension"]) == (True, WIDTH)
    assert found["prompt_tokens_per_second"] > 0 and "golden_asked" not in found


@needs_minilm
async def test_what_is_quantized_already_is_not_quantized_again(box: Daemon) -> None:
    assert (await model(box, "import", str(MINILM), "--name", "quantized")).code == 0
    refused = await model(box, "quantize", "quantized", "q4_0")
    assert refused.code == 1
    assert "q4_0 can't be made of q8_0, which is quantized already" in refused.err


async def test_golden_prompts_that_must_be_right_keep_a_model_out_unless_it_is_forced(
    box: Daemon, tmp_path: Path
) -> None:
    prompts = tmp_path / "golden.toml"
    prompts.write_text(
        '[[prompt]]\nid = "sum"\ntext = "2+2"\nexpect = "a whale"\nrequired = true\n'
    )
    come = ("import", str(ONE), "--name", "strict", "--golden", str(prompts))
    refused = await model(box, *come)
    assert refused.code == 1 and "required golden prompts are answered wrong: sum" in refused.err
    assert not (store(box) / "models/strict").exists()
    assert (await model(box, *come, "--force")).body["validation"]["golden_right"] == 0
    bad = tmp_path / "bad.toml"
    bad.write_text("floor = 3")
    said = await model(box, "golden", "strict", str(bad))
    assert said.code == 1 and "golden prompts" in said.err


async def test_a_folder_of_shards_is_one_version(box: Daemon, tmp_path: Path) -> None:
    tiny.write_split(tmp_path, 3)
    done = (await take_in(box, tmp_path, "split", "--label", "stable", "--label", "new")).body
    assert (done["version"], done["labels"]) == (1, ["new", "stable"])
    shown = (await model(box, "show", "split@new")).body
    assert len(shown["files"]) == 3
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    said = await take_in(box, tmp_path, "lost")
    assert said.code == 1 and "missing: 2" in said.err


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"path": "relative.gguf", "name": "m"}, "bad_reference"),
        ({"path": "/a.gguf", "name": "../../etc"}, "bad_reference"),
        ({"path": "/a.gguf", "name": "m", "labels": ["No Label"]}, "bad_reference"),
        ({"path": "/a.gguf", "name": "m", "golden": "no toml"}, "store_refused"),
        ({"path": "/a.gguf", "name": "m", "nonsense": 1}, None),
        ({"name": "m"}, None),
    ],
)
async def test_what_is_asked_is_checked_before_a_file_is_touched(
    box: Daemon, body: dict[str, Any], code: str | None
) -> None:
    status, answer, _ = await post(box.url + "/admin/v1/store/import", body)
    assert (status, answer["error"]["code"]) == (400, code)


async def test_another_format_is_named_with_what_converts_it(box: Daemon, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    said = await model(box, "convert", str(tmp_path))
    assert said.code == 1
    assert "no config.json" in said.err
    (tmp_path / "config.json").write_text('{"architectures": ["PhiForCausalLM"]}')
    said = await model(box, "convert", str(tmp_path))
    assert said.code == 1
    assert "PhiForCausalLM" in said.err and "convert_hf_to_gguf.py" in said.err
    (tmp_path / "config.json").write_text('{"quantization": {"group_size": 64, "bits": 4}}')
    assert "MLX" in (await model(box, "convert", str(tmp_path))).err
    assert "GGUF already" in (await model(box, "convert", str(ONE))).err
    assert "no such file" in (await model(box, "convert", str(tmp_path / "none"))).err


async def test_roles_bound_what_a_key_may_do_to_the_store(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo(), auth=True)
    async with running(config, ready=False) as daemon:
        made = await ctl(daemon, "key", "create", "op", "--role", "operator")
        key = {"Authorization": f"Bearer {made.body['key']}"}
        url = daemon.url + "/admin/v1/store"
        assert (await get(url, **key))[0] == 200
        status, _, _ = await post(url + "/verify", {}, headers=key)
        assert status == 202
        for what in ("import", "pull", "rm", "restore"):
            status, _, _ = await post(f"{url}/{what}", {}, headers=key)
            assert status == 403
        assert (await post(url + "/verify", {}))[0] == 401


def some_model(size: int = 24 * MIB) -> bytes:
    return tiny.gguf(7, size=size)


def two_parts_then_silence(first: int) -> Behaviour:
    """What arrives first is written down when more arrives over a second later."""

    async def behave(exchange: Exchange) -> None:
        status, headers, body = exchange.honestly()
        await exchange.head(status, headers)
        await exchange.send(body[:first])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exchange.gone(), 1.1)
        await exchange.send(body[first : first + MIB])
        await exchange.gone()

    return behave


async def started(folder: Path, pattern: str) -> None:
    """Until such a file is there, or the test's time is over."""
    while not list(folder.glob(pattern)):  # noqa: ASYNC110 (another process makes it)
        await asyncio.sleep(0.02)


async def test_a_pull_goes_on_after_the_daemon_was_killed(
    server: LyingServer, tmp_path: Path
) -> None:
    data = some_model()
    url = server.serve("/my-model-Q8_0.gguf", data)
    for _ in range(2):
        server.script("/my-model-Q8_0.gguf", two_parts_then_silence(4 * MIB))
    pulling = ("pull", url, "--no-validate")
    async with light(tmp_path) as daemon:
        process = await start_ctl(daemon, "model", *pulling)
        await started(store(daemon) / "tmp/pull", "*/*.state")
        await daemon.kill()
        await process.communicate()
        assert process.returncode == 69
    asked = len(server.asked("/my-model-Q8_0.gguf"))
    async with light(tmp_path) as daemon:
        done = (await model(daemon, *pulling)).body
        again = server.asked("/my-model-Q8_0.gguf")[asked:]
        assert again and all(request.range for request in again)
        assert sum(end - start for start, end in (one.range or (0, 0) for one in again)) < (
            len(data) - 4 * MIB
        )
        shown = (await model(daemon, "show", done["name"])).body
        assert shown["origin"] == url and shown["files"][0]["url"] == url
        assert left_behind(daemon) == []
        known = (await model(daemon, *pulling, "--sha256", shown["files"][0]["sha256"])).body
        assert known["already"]
        asked = len(server.requests)
        assert (await model(daemon, *pulling)).body["already"]
        assert len(server.requests) > asked

        file = store(daemon) / "models" / done["name"] / "1" / shown["files"][0]["file"]
        tiny.flip(file)
        assert (await model(daemon, "doctor")).code == 1
        mended = await model(daemon, "doctor", "--pull")
        assert mended.body["whole"] and "put in again, from http://" in mended.out
        assert file.read_bytes() == data


async def test_ctrl_c_stops_a_pull_in_the_daemon_and_a_stop_of_the_daemon_does_too(
    server: LyingServer, tmp_path: Path
) -> None:
    url = server.serve("/slow.gguf", some_model(4 * MIB))
    server.always("/slow.gguf", stall(MIB))
    async with light(tmp_path) as daemon:
        process = await start_ctl(daemon, "model", "pull", url, "--no-validate")
        await asyncio.to_thread(server.wait, lambda: bool(server.asked("/slow.gguf")))
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130 and b"cancelled" in err
        _, jobs = await get(daemon.url + "/admin/v1/jobs")
        assert [job["state"] for job in jobs] == ["cancelled"]

        ask = {"url": url, "validate": False}
        status, job, _ = await post(daemon.url + "/admin/v1/store/pull", ask)
        assert status == 202
        status, refused, _ = await post(daemon.url + "/admin/v1/store/pull", ask)
        assert (status, refused["error"]["code"]) == (409, "job_running")
        assert job["id"] in refused["error"]["message"]
        before = len(server.asked("/slow.gguf"))
        await asyncio.to_thread(server.wait, lambda: len(server.asked("/slow.gguf")) > before)
        assert await daemon.stop() == 0


async def test_a_flipped_bit_is_found_and_mended(tmp_path: Path) -> None:
    async with light(tmp_path) as daemon:
        await take_in(daemon, tiny.write(tmp_path / "a.gguf", 1), "mine")
        saved = tmp_path / "saved"
        assert len((await model(daemon, "backup", str(saved))).body["versions"]) == 3
        models = store(daemon) / "models"
        (ours,) = (models / "mine/1").glob("*.gguf")
        tiny.flip(models / "hxd-demo/1/hxd-demo-f16.gguf")
        tiny.flip(ours)
        found = await model(daemon, "verify")
        assert found.code == 1
        assert [one["what"] for one in json.loads(found.out)["findings"]] == ["digest", "digest"]
        looked = await model(daemon, "doctor", "--dry-run")
        assert looked.code == 1 and json.loads(looked.out)["cures"] == []
        first = await model(daemon, "doctor")
        assert first.code == 1 and "in quarantine" in first.out
        assert (await model(daemon, "verify", "hxd-demo")).code == 0
        second = await model(daemon, "doctor", "--backup", str(saved))
        assert second.body["whole"], second.out
        assert (await model(daemon, "verify")).body == {"ok": True, "findings": []}
        assert versions((await model(daemon, "list")).body, "mine")[1]["quarantined"] is None


async def test_a_backup_makes_the_same_store_elsewhere(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    async with light(tmp_path / "first") as daemon:
        for seed in (1, 2):
            await take_in(daemon, tiny.write(tmp_path / f"{seed}.gguf", seed), "team/mine")
        await ctl(daemon, "label", "team/mine", "canary", "2")
        made = (await model(daemon, "backup", str(saved))).body
        assert made["problems"] == [] and len(made["versions"]) == 4
        assert (await model(daemon, "backup", str(saved))).body["copied"] == 0
        before = versions((await model(daemon, "list")).body, "team/mine")
    async with light(tmp_path / "second") as daemon:
        listed = (await model(daemon, "restore", str(saved), "--list")).body
        assert [one["fault"] for one in listed] == [None, None]
        done = (await model(daemon, "restore", str(saved))).body
        assert done["versions"] == ["team/mine@1", "team/mine@2"]
        after = versions((await model(daemon, "list")).body, "team/mine")
        for number in (1, 2):
            assert after[number]["labels"] == before[number]["labels"]
            assert after[number]["bytes"] == before[number]["bytes"]
        assert (await model(daemon, "verify")).code == 0
        assert (await model(daemon, "doctor")).body["troubles"] == []
        nothing = await model(daemon, "restore", str(tmp_path / "none"))
        assert nothing.code == 1 and "no backup in" in nothing.err


@pytest.mark.parametrize("seed", range(4))
async def test_a_daemon_killed_at_any_moment_leaves_a_store_that_the_next_one_mends(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    config = write_config(tmp_path, echo())
    saved = tmp_path / "saved"
    file = tmp_path / "big.gguf"
    async with running(config, ready=False) as daemon:
        file.write_bytes(tiny.gguf(seed, size=32 * MIB))
        asks = [
            ("import", {"path": str(file), "name": "big", "validate": False, "labels": ["new"]}),
            ("backup", {"path": str(saved)}),
        ]
        for kind, ask in asks:
            status, job, _ = await post(f"{daemon.url}/admin/v1/store/{kind}", ask)
            assert status == 202
            for _ in range(rng.randrange(40)):
                await get(f"{daemon.url}/admin/v1/jobs/{job['id']}")
        await daemon.kill()
    async with running(config, ready=False) as daemon:
        looked = await model(daemon, "doctor", "--dry-run")
        assert looked.code == 0, looked.out
        assert left_behind(daemon) == []
        done = (await take_in(daemon, file, "big")).body
        assert done["version"] == 1
        assert (await model(daemon, "backup", str(saved))).body["problems"] == []
        shutil.rmtree(store(daemon) / "models/big")
        assert "big@1" in (await model(daemon, "restore", str(saved))).body["versions"]
        assert (await model(daemon, "verify")).code == 0


async def test_a_store_without_a_daemon_is_worked_on_as_with_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, DEMO.format(replicas=1))
    offline = ("--offline", "--config", str(config))
    file = tiny.write(tmp_path / "a.gguf", 1)
    come = ("model", "import", str(file), "--name", "mine", *offline)
    assert "--no-validate" in (await ctl(None, *come)).err
    assert (await ctl(None, *come, "--no-validate")).body["version"] == 1
    assert (await ctl(None, *come, "--no-validate", "--label", "again")).body["already"]
    assert (await ctl(None, "model", "show", "mine@again", *offline)).body["version"] == 1
    assert (await ctl(None, "label", "mine", "best", "1", *offline)).body["moved"]
    there = (await ctl(None, "model", "list", *offline)).body
    assert versions(there, "hxd-demo")[2]["serves"] == ["hxd-demo"]
    used = await ctl(None, "model", "rm", "hxd-demo@2", *offline)
    assert used.code == 75 and "serves hxd-demo" in used.err
    saved = str(tmp_path / "saved")
    assert len((await ctl(None, "model", "backup", saved, *offline)).body["versions"]) == 3
    (ours,) = (tmp_path / "state/store/models/mine/1").glob("*.gguf")
    tiny.flip(ours)
    assert (await ctl(None, "model", "verify", "mine", *offline)).code == 1
    mended = await ctl(None, "model", "doctor", "--backup", saved, *offline)
    assert mended.body["whole"]
    shown = (await ctl(None, "model", "show", "mine@best", *offline)).body
    assert shown["labels"] == ["again", "best", "stable"]
    assert (await ctl(None, "model", "rm", "mine", "--all", *offline)).body["removed"] == ["mine@1"]
    restored = (await ctl(None, "model", "restore", saved, *offline)).body
    assert restored["versions"] == ["mine@1"]
    async with light(tmp_path):
        said = await ctl(None, "model", "list", *offline)
        assert said.code == 75 and "in use by process" in said.err


async def test_a_demo_version_that_was_removed_comes_back_by_import_only(tmp_path: Path) -> None:
    async with light(tmp_path) as daemon:
        assert (await model(daemon, "rm", "hxd-demo@1")).code == 0
    async with light(tmp_path) as daemon:
        [demo] = (await model(daemon, "list")).body
        assert [version["version"] for version in demo["versions"]] == [2]
        refused = await model(daemon, "import", "builtin:demo@7")
        assert refused.code == 1 and "builtin:demo@1, builtin:demo@2 are" in refused.err
        refused = await model(daemon, "import", "builtin:demo", "--name", "mine")
        assert refused.code == 1 and "import its file: /" in refused.err
        done = (await model(daemon, "import", "builtin:demo")).body
        assert (done["name"], done["version"], done["already"]) == ("hxd-demo", 1, False)
        assert (await model(daemon, "import", "builtin:demo")).body["already"]

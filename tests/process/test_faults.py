"""Misbehaving plugins and dying workers: the daemon stays up, and says in words what is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ROOT, Daemon, chat, echo, get, post, running, write_config

GOOD = echo("good")


async def problems(daemon: Daemon, words: str) -> str:
    """The text of /readyz once it has `words` in it."""
    async with asyncio.timeout(60):
        while True:
            status, body = await get(daemon.url + "/readyz")
            said = " ".join(body.get("problems", []))
            if words in said:
                assert status == 503
                return said
            await asyncio.sleep(0.05)


async def assert_good_answers(daemon: Daemon) -> None:
    status, body, _ = await post(daemon.url + "/v1/chat/completions", chat("good", "still here"))
    assert (status, body["choices"][0]["message"]["content"]) == (200, "still here")
    assert (await get(daemon.url + "/livez"))[0] == 200
    assert daemon.process.returncode is None


async def good_ready(daemon: Daemon) -> None:
    await daemon.wait_log("replica=good-1 from=warming to=ready")


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"fault": "raise"}, {}, "RuntimeError: told to raise"),
        ({"fault": "hang"}, {"load_time": 0.5}, "still loading after 0.5 s"),
        ({"fault": "garbage"}, {}, "garbage: a frame announces 4294967295 bytes"),
        ({"fault": "crash"}, {}, "SIGSEGV"),
        ({"fault": "memory"}, {"memory_limit": "300MB"}, "MemoryError"),
        ({"no_such": 1}, {}, "unknown option 'no_such'"),
    ],
    ids=["raises", "hangs", "garbage", "crashes", "memory", "bad-option"],
)
async def test_a_plugin_that_fails_at_load_leaves_the_rest_serving(
    tmp_path: Path, options: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    bad = echo("bad", options={"fault_at": "load", **options}, **settings)
    async with running(write_config(tmp_path, GOOD + bad), ready=False) as daemon:
        assert "model bad: bad-1" in await problems(daemon, words)
        await good_ready(daemon)
        await assert_good_answers(daemon)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"fault": "raise"}, {}),
        ({"fault": "hang"}, {"stall_time": 1.0}),
        ({"fault": "garbage"}, {}),
        ({"fault": "crash"}, {}),
        ({"fault": "memory"}, {"memory_limit": "300MB"}),
    ],
    ids=["raises", "hangs", "garbage", "crashes", "memory"],
)
async def test_a_worker_that_fails_mid_answer_gives_an_error_and_comes_back(
    tmp_path: Path, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    bad = echo("bad", options={"fault_after": 5, **options}, **settings)
    async with running(write_config(tmp_path, GOOD + bad)) as daemon:
        before = await pid_of(daemon, "bad-1")
        status, body, _ = await post(
            daemon.url + "/v1/chat/completions", chat("bad", "longer than five")
        )
        assert status == 502
        assert body["error"]["type"] == "backend_error"
        await daemon.wait_log("replica=bad-1 from=failed to=starting(.|\n)*bad-1.*to=ready")
        assert await pid_of(daemon, "bad-1") != before
        status, body, _ = await post(daemon.url + "/v1/chat/completions", chat("bad", "ok"))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "ok")
        await assert_good_answers(daemon)


async def pid_of(daemon: Daemon, replica: str) -> int:
    """Process id of a replica's worker, by the admin API."""
    _, body = await get(daemon.url + "/admin/v1/status")
    (pid,) = [row["pid"] for row in body["replicas"] if row["replica"] == replica]
    assert isinstance(pid, int)
    return pid


async def test_a_worker_gives_up_privileges_and_is_first_for_the_oom_killer(
    tmp_path: Path,
) -> None:
    async with running(write_config(tmp_path, GOOD)) as daemon:
        pid = await pid_of(daemon, "good-1")
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 800
        worker = psutil.Process(pid)
        assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert [c for c in worker.net_connections(kind="inet") if c.status == "LISTEN"] == []
        assert not [name for name in worker.environ() if "KEY" in name or "TOKEN" in name]


async def test_the_worker_refuses_a_plugin_file_that_changed_after_its_check(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "plugins" / "echo"
    folder.mkdir(parents=True)
    for file in (ROOT / "plugins/echo").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    config = write_config(tmp_path, echo(), extra='[plugins]\nfolders = ["plugins"]')
    async with running(config) as daemon:
        (folder / "main.py").write_text((folder / "main.py").read_text() + "\n")
        os.kill(await pid_of(daemon, "echo-1"), signal.SIGKILL)
        said = await problems(daemon, "sha256 differs")
        assert "main.py" in said

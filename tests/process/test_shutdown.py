"""How the daemon ends: SIGTERM drains, a second one doesn't wait, and nothing outlives it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import psutil

from tests.support import Daemon, chat, echo, post, running, write_config

SLOW = echo("slow", slots=8, options={"rate": 40})
TEXT = "a stream that takes a second or so to come"


async def stream_text(session: aiohttp.ClientSession, url: str, started: asyncio.Event) -> str:
    """Every data line of one stream, `started` set at the first."""
    async with session.post(
        url + "/v1/chat/completions", json=chat("slow", TEXT, stream=True)
    ) as response:
        assert response.status == 200
        lines = []
        async for line in response.content:
            started.set()
            lines.append(line.decode())
        return "".join(lines)


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those still alive after the time that the kernel may need to end them."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    return alive


async def test_sigterm_lets_running_streams_finish_and_refuses_new_requests(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, SLOW)) as daemon, aiohttp.ClientSession() as session:
        workers = daemon.workers()
        starts = [asyncio.Event() for _ in range(4)]
        streams = [asyncio.create_task(stream_text(session, daemon.url, s)) for s in starts]
        await asyncio.gather(*(start.wait() for start in starts))
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.wait_log("draining running=4")
        status, body, headers = await post(daemon.url + "/v1/chat/completions", chat("slow", "x"))
        assert (status, body["error"]["code"]) == (503, "draining")
        assert int(headers["Retry-After"]) >= 1
        # What would bring up workers that nobody ends.
        swap = {"model": "slow", "plugin": "echo"}
        for path, asked in (("reload", {}), ("rollouts", swap)):
            status, body, _ = await post(f"{daemon.url}/admin/v1/{path}", asked)
            assert (status, body["error"]["code"]) == (503, "draining"), path
        for text in await asyncio.gather(*streams):
            assert text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"stop"' in text
        assert await daemon.ended() == 0
        assert workers
        assert survivors(workers) == []
        assert not (tmp_path / "run/admin.sock").exists()


async def test_readyz_says_no_while_draining_and_livez_still_answers(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, SLOW)) as daemon, aiohttp.ClientSession() as session:
        started = asyncio.Event()
        stream = asyncio.create_task(stream_text(session, daemon.url, started))
        await started.wait()
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.wait_log("draining")
        async with session.get(daemon.url + "/readyz") as response:
            assert response.status == 503
            assert "shutting down" in str(await response.json())
        async with session.get(daemon.url + "/livez") as response:
            assert response.status == 200
        await stream


async def test_the_drain_is_bounded(tmp_path: Path) -> None:
    endless = echo("slow", options={"rate": 20})
    config = write_config(tmp_path, endless, extra="[limits]\ndrain = 0.2")
    async with running(config) as daemon, aiohttp.ClientSession() as session:
        async with session.post(
            daemon.url + "/v1/chat/completions",
            json=chat("slow", "x", stream=True, ignore_eos=True, max_tokens=2000),
        ) as response:
            await response.content.readline()
            assert await daemon.stop() == 0
        assert "drain bound of 0.2 s passed running=1" in daemon.log


async def test_a_second_sigterm_ends_at_once_with_its_workers(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, SLOW)) as daemon, aiohttp.ClientSession() as session:
        workers = daemon.workers()
        async with session.post(
            daemon.url + "/v1/chat/completions",
            json=chat("slow", "x", stream=True, ignore_eos=True, max_tokens=2000),
        ) as response:
            await response.content.readline()
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.wait_log("draining running=1")
            assert await daemon.stop(signal.SIGTERM) != 0
        assert survivors(workers) == []


async def test_workers_die_with_a_killed_daemon_and_the_next_start_cleans_up(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, echo(replicas=3))
    async with running(config) as daemon:
        workers = daemon.workers()
        assert len(workers) == 3
        await daemon.stop(signal.SIGKILL)
    assert survivors(workers) == []
    assert (tmp_path / "run/admin.sock").exists()
    async with running(config) as again:
        status, body, _ = await post(again.url + "/v1/chat/completions", chat("echo", "hello"))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "hello")


async def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = echo(options={"ignore_sigterm": True, "fault": "hang", "fault_after": 3})
    config = write_config(tmp_path, stubborn, extra="[limits]\ndrain = 0.1")
    async with running(config) as daemon, aiohttp.ClientSession() as session:
        workers = daemon.workers()
        async with session.post(
            daemon.url + "/v1/chat/completions", json=chat("echo", "hello", stream=True)
        ) as response:
            await response.content.readline()
            assert await daemon.stop() == 0
    assert survivors(workers) == []


async def test_a_second_daemon_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo())
    async with running(config):
        second = await asyncio.create_subprocess_exec(
            *Daemon.command(config), stderr=asyncio.subprocess.PIPE
        )
        _, said = await second.communicate()
        assert second.returncode == 78
        assert b"another hxd is running" in said

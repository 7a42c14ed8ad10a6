"""A worker that is on its way to fail is replaced before it does, the new one first."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp

from tests.support import Daemon, chat, echo, get, running, write_config

TOKENS = 2500


async def streamed(session: aiohttp.ClientSession, daemon: Daemon) -> tuple[str, list[str]]:
    """Text of a long stream, and the replicas that worked on it."""
    text, replicas = "", []
    body = chat("echo", "tick ", stream=True, ignore_eos=True, max_tokens=TOKENS)
    async with session.post(daemon.url + "/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                [choice] = event["choices"]
                text += choice["delta"].get("content") or ""
                if choice["finish_reason"]:
                    replicas = event["hxd"]["replicas"]
    return text, replicas


async def test_a_leaking_worker_is_replaced_before_its_limit_and_its_stream_goes_on(
    tmp_path: Path,
) -> None:
    leaky = echo(
        "echo",
        memory_limit="600MB",
        options={"rate": 100, "leak": 400_000},
        context=TOKENS + 100,
    )
    config = write_config(tmp_path, leaky, extra='[limits]\ndrain = "1s"')
    async with running(config) as daemon, aiohttp.ClientSession() as session:
        stream = asyncio.create_task(streamed(session, daemon))
        seen = await daemon.wait_log(r"replica=echo-1 replaced_by=echo-2 why='(.*)'")
        assert "memory grows" in seen[1]
        _, conditions = await get(daemon.url + "/admin/v1/conditions")
        assert "replica-drifting" in {found["code"] for found in conditions}  # type: ignore[index]
        await daemon.wait_log("replica=echo-1 from=draining to=stopped")
        text, replicas = await stream
        assert text == ("tick " * TOKENS)[:TOKENS]
        assert replicas[:2] == ["echo-1", "echo-2"]
        assert "event=died" not in daemon.log

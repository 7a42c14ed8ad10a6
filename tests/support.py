"""What tests share: a real daemon in a folder of its own, and ways to talk to it and look at it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from hxd import wire
from hxd.daemon.supervise.link import Link, Loss

ROOT = Path(__file__).parents[1]
HXD = (sys.executable, "-m", "hxd")
HXCTL = "from hxd.cli.ctl import hxctl; hxctl()"
DEMO = """
[models.hxd-demo]
source = "builtin:demo"
replicas = {replicas}
slots = 4
context = 2048
"""


def echo(name: str = "echo", **settings: Any) -> str:
    """A `[models.NAME]` table for the echo plugin; `options` becomes its inline table."""
    options = settings.pop("options", {})
    lines = [f"[models.{name}]", 'plugin = "echo"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return "\n".join([*lines, f"options = {{ {inline} }}", ""])


def write_config(folder: Path, models: str, *, auth: bool = False, extra: str = "") -> Path:
    """`hxd.toml` in `folder`, with every path below it and a port that the kernel picks."""
    file = folder / "hxd.toml"
    file.write_text(
        f"""
[listen]
http = "127.0.0.1:0"
[auth]
required = {str(auth).lower()}
[paths]
state = "state"
runtime = "run"
logs = "logs"
cache = "cache"
{extra}
{models}
"""
    )
    return file


class Daemon:
    """A running `hxd serve`. `log` is all that it has written to standard error so far."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.log = ""
        self.url = ""
        self._grown = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @staticmethod
    def command(config: Path) -> tuple[str, ...]:
        return (*HXD, "serve", "--config", str(config))

    @classmethod
    async def start(cls, config: Path, *, seconds: float = 60) -> Daemon:
        """Started and listening; its models may still load."""
        process = await asyncio.create_subprocess_exec(
            *cls.command(config),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        daemon = cls(process, config.parent)
        match = await daemon.wait_log(r"listening on (http://\S+)", seconds=seconds)
        daemon.url = match[1]
        return daemon

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(1 << 16):
            async with self._grown:
                self.log += data.decode()
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()

    async def wait_log(self, pattern: str, *, seconds: float = 60) -> re.Match[str]:
        """The first match in the log, once there is one."""
        async with asyncio.timeout(seconds), self._grown:
            while not (match := re.search(pattern, self.log)):
                assert not self._ended(), f"the daemon ended without {pattern!r}:\n{self.log}"
                await self._grown.wait()
        return match

    def _ended(self) -> bool:
        return self._reader.done() or self.process.returncode is not None

    async def ready(self, *, seconds: float = 60) -> Daemon:
        """Waits until every required model can answer."""
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
            while True:
                async with session.get(self.url + "/readyz") as response:
                    if response.status == 200:
                        return self
                # Readiness has no event that a client could wait for; this is how probes do it.
                await asyncio.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send `number` and wait; a second SIGTERM ends a daemon at once."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self, *, seconds: float = 60) -> int:
        """The exit code, once the daemon has ended by itself."""
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await self._reader
        return code

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader


@contextlib.asynccontextmanager
async def running(config: Path, *, ready: bool = True) -> AsyncIterator[Daemon]:
    daemon = await Daemon.start(config)
    try:
        yield await daemon.ready() if ready else daemon
    finally:
        await daemon.kill()


async def post(
    url: str, body: Any, *, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of a POST; a `bytes` body goes out as it is."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url, data=raw, headers={"Content-Type": "application/json", **(headers or {})}
        ) as response,
    ):
        return response.status, await response.json(), dict(response.headers)


async def get(url: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.json()


def chat(model: str, text: str, **settings: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **settings}


def usage(prompt: int, completion: int, *, cached: int = 0) -> dict[str, Any]:
    """The `usage` of an answer."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Owner:
    """Owns a worker's link, and collects what the worker says of itself."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    def received(self, frame: wire.Tidings) -> None:
        self.said.put_nowait(frame)

    def verdict(self) -> tuple[Loss, str]:
        return Loss.KILLED, "the worker closed its link"

    def lost(self, reason: str, *, at_fault: bool) -> None:
        self.said.put_nowait(reason)


async def ping(link: Link) -> wire.Pong:
    """The worker's pong, with all that it measures."""
    answered: asyncio.Future[wire.Pong] = asyncio.get_running_loop().create_future()
    link.ping(answered.set_result, gauges=True)
    async with asyncio.timeout(60):
        return await answered


async def hxctl(daemon: Daemon, *arguments: str) -> Any:
    """What `hxctl --json` says over the admin socket."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, "--socket", str(daemon.folder / "run" / "admin.sock")),
        *("--json", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def run_hxctl(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of `hxctl` over the admin socket."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, "--socket", str(daemon.folder / "run" / "admin.sock")),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def run_hxd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`hxd ARGUMENTS`, finished within a minute."""
    return subprocess.run(
        [*HXD, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
    )

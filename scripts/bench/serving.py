"""A server's process on loopback: started, known to be ready, stopped; not which server it is.

Its files lie in a temporary folder, and nothing of it is left afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil

READY_SECONDS = 120
STOP_SECONDS = 60
T = TypeVar("T")


class DidNotStart(Exception):
    """The message has the end of what the server said."""


@dataclass(frozen=True)
class Kind:
    """`command(port, folder)` may write files to `folder`. `ready` answers 200 when the server
    does; `busy` tells from the text at `busy_path` how many sequences run or wait. `extra` goes
    into each request. `together`: whether it runs several sequences at a time."""

    name: str
    command: Callable[[int, Path], list[str]]
    ready: str
    extra: dict[str, Any] = field(default_factory=dict)
    busy_path: str = ""
    busy: Callable[[str], int] | None = None
    together: bool = True


@dataclass(frozen=True)
class Running:
    """`folder` has its files; `started_in` is how many seconds it took until it was ready."""

    kind: Kind
    port: int
    session: aiohttp.ClientSession
    process: psutil.Process
    folder: Path
    started_in: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        """The end of what the server wrote."""
        return _end(self.folder)

    def memory(self) -> int:
        """Bytes that belong to the server's processes alone; mapped model files don't count."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_full_info().uss for process in tree)

    async def busy(self) -> int | None:
        """Sequences that run or wait; None where the server doesn't tell."""
        if self.kind.busy is None:
            return None
        async with self.session.get(self.url + self.kind.busy_path) as response:
            return self.kind.busy(await response.text())


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, but SIGTERM too ends it in order, so that no server is left behind."""

    async def guarded() -> T:
        task = asyncio.ensure_future(main)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None

    return asyncio.run(guarded())


@contextlib.asynccontextmanager
async def serving(kind: Kind) -> AsyncIterator[Running]:
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="hxd-bench-") as name:
        folder = Path(name)
        command = kind.command(port, folder)
        began = time.perf_counter()
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=folder,
            )
        try:
            # Connections are not kept: a server may close one just as the next request goes out.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                await _ready(process, session, f"http://127.0.0.1:{port}{kind.ready}", folder)
                started_in = time.perf_counter() - began
                watched = psutil.Process(process.pid)
                yield Running(kind, port, session, watched, folder, started_in)
        finally:
            await _stop(process)


async def _ready(
    process: asyncio.subprocess.Process, session: aiohttp.ClientSession, url: str, folder: Path
) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                # Readiness has no event that a client could wait for.
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise DidNotStart(f"not ready within {READY_SECONDS} s: {_end(folder)}") from None
    raise DidNotStart(f"it ended with status {process.returncode}: {_end(folder)}")


def _end(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-1500:].strip()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL to all that it started."""
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""One worker process: spawn it on a socketpair, keep its last words, end its group, reap it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from hxd.daemon.supervise.link import Link, Loss, Owner
from hxd.daemon.supervise.procfs import Proc

log = logging.getLogger("hxd.supervise")

TAIL_LINES = 20
_DUMPED = 0x80  # of a wait status: a core was written
LINE_LIMIT = 500
# What every worker may know of the daemon's environment: nothing that could be a secret.
# CREDENTIALS_DIRECTORY is a path; systemd's modes of the files decide who reads them.
ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "TZ", "HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_WAIT_POLICY",
    "GGML_CUDA_NO_PINNED", "CUDA_VISIBLE_DEVICES", "CREDENTIALS_DIRECTORY",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Which plugin a worker runs: its folder, and the sha256 of its plugin.toml. `environment`
    names the daemon's variables that it may see besides `ENVIRONMENT`; `python` is the interpreter
    of the plugin's own virtual environment, None for the daemon's."""

    plugin: str
    folder: Path
    digest: str
    memory_limit: int | None = None
    environment: tuple[str, ...] = ()
    python: Path | None = None


class WorkerProcess:
    """A spawned worker. `link` is open from the start; `tail` holds its last lines of output."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link) -> None:
        self._process = process
        self._output: asyncio.Task[None] | None = None
        self.link = link
        self.pid = process.pid
        self.proc = Proc(process.pid)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    @classmethod
    async def spawn(cls, program: Program, owner: Owner) -> WorkerProcess:
        """Raises `OSError` when the process can't be started."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link: Link | None = None
        try:
            link = await Link.open(ours, owner)
            process = await asyncio.create_subprocess_exec(
                str(program.python or sys.executable),
                *("-I", "-B", "-m", "hxd.worker"),
                *("--fd", str(theirs.fileno())),
                *("--plugin", str(program.folder)),
                *("--digest", program.digest),
                *("--parent", str(os.getpid())),
                *(("--memory-limit", str(program.memory_limit)) if program.memory_limit else ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env={
                    name: os.environ[name]
                    for name in (*ENVIRONMENT, *program.environment)
                    if name in os.environ
                },
                start_new_session=True,
            )
        except BaseException:
            if link is None:
                ours.close()
            else:
                link.close("the worker could not be started", loss=Loss.CRASHED)
            raise
        finally:
            theirs.close()
        worker = cls(process, link)
        worker._output = asyncio.create_task(worker._keep_tail(), name=f"output-{process.pid}")
        return worker

    async def _keep_tail(self) -> None:
        """Reads until the pipe ends, so that a talkative worker never blocks on it."""
        stream = self._process.stdout
        assert stream is not None
        rest = ""
        while data := await stream.read(1 << 14):
            *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
            rest = rest[-LINE_LIMIT:]
            for line in filter(str.strip, lines):
                self.tail.append(line[:LINE_LIMIT])
                log.debug("pid=%d said %r", self.pid, line[:LINE_LIMIT])
        if rest.strip():
            self.tail.append(rest)

    async def wait(self) -> int:
        """The exit code, negative for a signal; all output has been read by then."""
        code = await self._process.wait()
        if self._output is not None:
            with contextlib.suppress(TimeoutError):
                # A grandchild that keeps the pipe open must not keep the worker unreaped.
                await asyncio.wait_for(asyncio.shield(self._output), 1.0)
            self._output.cancel()
        self.proc.close()
        return code

    def exit_code(self) -> int | None:
        """How the process ends, as soon as the kernel knows, though it may be far from gone: the
        status, negative for a signal. None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        look = self.proc.look()
        if look is None or not look.exiting:
            return None
        return os.waitstatus_to_exitcode(look.status & ~_DUMPED)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """The whole process group, so that nothing the plugin spawned outlives it."""
        self._signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """End what the worker left behind; for after its own end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """To the process alone, as somebody outside would; for drills."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"was killed by {name}"

"""One order to a worker that does nothing else: it makes a file, says so, and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from hxd import gguf, wire
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.supervise.courtesy import LOW, prioritize
from hxd.daemon.supervise.link import Loss
from hxd.daemon.supervise.process import Program, WorkerProcess, describe_exit
from hxd.daemon.supervise.workers import PrepareError
from hxd.errors import Fault

DEADLINE = 3600.0  # seconds
LAST_WORDS = 2.0
Told = Callable[[float, str], None]


class ErrandError(PrepareError):
    """What the worker said, or how it ended. `refused`: what it was given is at fault. `code`: the
    name of the errno, where the system refused something."""

    def __init__(self, message: str, *, refused: bool = False, code: str | None = None) -> None:
        super().__init__(message)
        self.refused, self.code = refused, code


async def run(
    plugin: Plugin,
    order: wire.Quantize | wire.Convert,
    told: Told,
    memory_limit: int | None = None,
    *,
    aside: bool = False,
    deadline: float = DEADLINE,
) -> list[str]:
    """What the worker notes. The order's target is whole by its header when this returns, and in
    the page cache; what is there when it raises `ErrandError` or is cancelled is nothing yet.
    `told` gets shares from 0 to 1 and notes; `memory_limit` bounds the worker's private memory in
    bytes. `aside`: nobody waits for it to serve, so others go first."""
    owner = _Told(told)
    program = Program(
        plugin.manifest.name, plugin.folder, plugin.digest, memory_limit, python=plugin.python
    )
    worker = await WorkerProcess.spawn(program, owner)
    try:
        if aside:
            prioritize(worker.pid, LOW)
        async with asyncio.timeout(deadline):
            await owner.hello.wait()
            worker.link.send(order)
            code = await worker.wait()
        with contextlib.suppress(TimeoutError):
            # Its last words may still be on the way.
            await asyncio.wait_for(owner.ended.wait(), LAST_WORDS)
    except TimeoutError:
        raise ErrandError(f"it took over {deadline:g} s") from None
    finally:
        worker.kill()
        await worker.wait()
        worker.kill_group()
    if owner.failed is not None:
        raise ErrandError(owner.failed, refused=owner.refused, code=owner.code)
    if code != 0:
        raise ErrandError(f"the worker {describe_exit(code)}")
    try:
        await asyncio.to_thread(gguf.read_header, Path(order.target))
    except gguf.ModelFileError as error:
        raise ErrandError(f"a bad file was written: {error}") from None
    return owner.notes


class _Told:
    """What the worker says."""

    def __init__(self, note: Told) -> None:
        self._note = note
        self.hello = asyncio.Event()
        self.ended = asyncio.Event()
        self.failed: str | None = None
        self.refused = False
        self.code: str | None = None
        self.notes: list[str] = []

    def received(self, frame: wire.Tidings) -> None:
        match frame:
            case wire.Hello():
                self.hello.set()
            case wire.Failed():
                self.failed = frame.message
                self.refused, self.code = frame.fault == Fault.CALLER, frame.code
            case wire.Progress():
                self._note(frame.share, frame.note)
            case wire.Converted():
                self.notes = frame.notes

    def verdict(self) -> tuple[Loss, str]:
        return Loss.KILLED, "the worker closed its link"

    def lost(self, reason: str, *, at_fault: bool) -> None:
        # A worker that died before its hello must not be waited for.
        self.hello.set()
        self.ended.set()
        if at_fault:
            self.failed = reason

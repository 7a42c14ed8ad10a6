"""Makes a quantized file of another one, in a worker that does nothing else and then ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from hxd import gguf, wire
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.supervise.link import Loss
from hxd.daemon.supervise.process import Program, WorkerProcess, describe_exit
from hxd.daemon.supervise.workers import PrepareError

DEADLINE = 3600.0
# Private memory beyond the tensors that are at work: the library, and buffers of its threads.
_BESIDES = 1 << 30


async def quantize(
    plugin: Plugin,
    source: Path,
    target: Path,
    variant: str,
    told: Callable[[float, str], None],
    memory_limit: int | None = None,
) -> None:
    """`target` is whole by its header when this returns, and in the page cache; what is there when
    it raises `PrepareError` or is cancelled is nothing yet. `told` gets shares from 0 to 1 and
    notes; `memory_limit` bounds the worker's private memory in bytes."""
    owner = _Told(told)
    program = Program(
        plugin.manifest.name, plugin.folder, plugin.digest, memory_limit, python=plugin.python
    )
    worker = await WorkerProcess.spawn(program, owner)
    try:
        async with asyncio.timeout(DEADLINE):
            await owner.hello.wait()
            threads = len(os.sched_getaffinity(0))
            worker.link.send(wire.Quantize(str(source), str(target), variant, threads))
            code = await worker.wait()
    except TimeoutError:
        raise PrepareError(f"quantizing to {variant} took over {DEADLINE:g} s") from None
    finally:
        worker.kill()
        await worker.wait()
    if code != 0 or owner.failed is not None:
        why = owner.failed or f"the worker {describe_exit(code)}"
        raise PrepareError(f"can't make the variant {variant}: {why}")
    try:
        await asyncio.to_thread(gguf.read_header, target)
    except gguf.ModelFileError as error:
        raise PrepareError(f"the quantizer wrote a bad file: {error}") from None


def memory_for(size: int) -> int:
    """A bound in bytes for a model of `size` bytes. llama.cpp maps its source and holds a few
    tensors as float32 at a time, which is less than twice the file unless it is tiny."""
    return 2 * size + _BESIDES


class _Told:
    """What a quantizing worker says."""

    def __init__(self, note: Callable[[float, str], None]) -> None:
        self._note = note
        self.hello = asyncio.Event()
        self.failed: str | None = None

    def received(self, frame: wire.Hello | wire.Loaded | wire.Failed | wire.Progress) -> None:
        match frame:
            case wire.Hello():
                self.hello.set()
            case wire.Failed():
                self.failed = frame.message
            case wire.Progress():
                self._note(frame.share, frame.note)

    def verdict(self) -> tuple[Loss, str]:
        return Loss.KILLED, "the worker closed its link"

    def lost(self, reason: str, *, at_fault: bool) -> None:
        # A worker that died before its hello must not be waited for.
        self.hello.set()
        if at_fault:
            self.failed = reason

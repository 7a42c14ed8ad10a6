"""The tutorial backend, and the one that misbehaves on request.

It answers with the text of the last message, one byte per token, at a settable rate, always the
same. `[models.NAME.options]`:

    rate         tokens per second and sequence; 0 (default) is as fast as possible
    reply        text to answer with instead of the prompt
    fault        crash | hang | raise | garbage | memory: what to do when its time comes; or
                 refuse: fail each new request, and live on
    fault_at     step (default) | load
    fault_after  tokens that this worker generates before a fault at a step; default 0
    leak         bytes that each step keeps for ever; default 0
    creep        seconds that each step takes longer than the one before it; default 0
    ignore_sigterm   true: only SIGKILL ends the worker
"""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any, NoReturn

from hxd.hookspecs import (
    Advance,
    Backend,
    Description,
    LoadRequest,
    ModelInfo,
    RequestRefused,
    Sequence,
    hookimpl,
)
from hxd.wire import Constraint

END = 256
OPTIONS = {
    "rate", "reply", "fault", "fault_at", "fault_after", "leak", "creep", "ignore_sigterm",
}  # fmt: skip
FAULTS = ("crash", "hang", "raise", "garbage", "memory", "refuse")


@hookimpl
def hxd_describe() -> Description:
    return Description(formats=frozenset({"none"}))


@hookimpl
def hxd_backend(options: dict[str, Any]) -> Backend:
    unknown = options.keys() - OPTIONS
    if unknown:
        raise ValueError(f"unknown option {min(unknown)!r}; there are {', '.join(sorted(OPTIONS))}")
    if options.get("fault") not in (None, *FAULTS):
        raise ValueError(f"fault {options['fault']!r} is not one of {', '.join(FAULTS)}")
    return Echo(options)


class Echo:
    """Token ids 0-255 are bytes, 256 ends a sequence."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._rate = float(options.get("rate", 0))
        self._reply = str(options["reply"]).encode() if "reply" in options else None
        self._running: dict[int, tuple[Sequence, list[int]]] = {}
        self._position: dict[int, int] = {}
        self._generated = 0
        self._next_step = 0.0
        self._leak = int(options.get("leak", 0))
        self._leaked: list[bytes] = []
        self._creep = float(options.get("creep", 0))
        self._late = 0.0

    def load(self, request: LoadRequest) -> ModelInfo:
        if self._options.get("ignore_sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._options.get("fault_at") == "load":
            self._misbehave()
        return ModelInfo(
            context=request.context,
            vocab="bytes",
            chat_template="{{ messages[-1].content }}",
            details={"rate": self._rate},
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode("utf-8"))

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if 0 <= token < END else b""

    def add(self, sequence: Sequence) -> None:
        if self._options.get("fault") == "refuse" and self._due():
            raise RuntimeError("told to refuse")
        if not all(0 <= token <= END for token in sequence.prompt):
            raise RequestRefused(f"token ids of this model go from 0 to {END}", param="prompt")
        answer = list(self._reply) if self._reply is not None else sequence.prompt
        self._running[sequence.id] = sequence, answer
        self._position[sequence.id] = len(sequence.produced)

    def remove(self, id: int) -> None:
        del self._running[id], self._position[id]

    def step(self) -> list[Advance]:
        self._wait()
        self._age()
        if self._due():
            self._misbehave()
        advances = []
        for id, (sequence, answer) in self._running.items():
            at = self._position[id]
            self._position[id] += 1
            self._generated += 1
            if at < len(answer) or sequence.sampling.ignore_eos:
                advances.append(Advance(id, [answer[at % len(answer)]]))
            else:
                advances.append(Advance(id, [END], ended=True))
        return advances

    def compile(self, constraint: Constraint) -> NoReturn:
        raise RequestRefused("this model can't be held to a grammar")

    def gauges(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._running.clear()

    def _wait(self) -> None:
        if self._rate > 0:
            now = time.monotonic()
            time.sleep(max(0.0, self._next_step - now))
            self._next_step = max(now, self._next_step) + 1 / self._rate

    def _due(self) -> bool:
        """Whether the time of the fault has come."""
        return "fault" in self._options and self._generated >= self._options.get("fault_after", 0)

    def _age(self) -> None:
        """What a worker does that fails slowly."""
        if self._leak:
            self._leaked.append(b"x" * self._leak)
        if self._creep:
            self._late += self._creep
            time.sleep(self._late)

    def _misbehave(self) -> None:
        match self._options.get("fault"):
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                _hang()
            case "raise":
                raise RuntimeError("told to raise")
            case "memory":
                _exhaust_memory()
            case "garbage":
                _garble()
                _hang()


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _exhaust_memory() -> NoReturn:
    hoard = []
    while True:
        hoard.append(b"x" * (16 << 20))


def _garble() -> None:
    """Write nonsense to the daemon: a length of 4 GiB, and bytes that decode to nothing."""
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"\xff\xff\xff\xff" + b"garbage" * 64)
        except OSError:
            continue

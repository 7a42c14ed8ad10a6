"""What the kernel says of one process, from files of /proc that stay open: a descriptor names the
process for good, where a process id may be another's by the next look.

A read takes some 10 µs. Nothing here waits.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

_EXITING = 0x4  # PF_EXITING, in the kernel's include/linux/sched.h
_STAT_BYTES = 2048
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Look:
    """`exiting`: the process will never run a line of its own again, though its memory may take
    long to be freed. `status`: how it ends, as `waitpid` will tell. `stopped`: by a signal or a
    debugger."""

    exiting: bool
    stopped: bool
    status: int


class Proc:
    """One process. `close` it in the end; the readers give None when the process is gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stat = _open(pid, "stat")
        self._memory = _open(pid, "statm")

    def look(self) -> Look | None:
        data = _read(self._stat)
        if data is None:
            return None
        # The name, in brackets, may hold anything; fields 3, 9 and 52 of proc_pid_stat(5).
        fields = data[data.rindex(b")") + 2 :].split()
        state, flags, status = fields[0], int(fields[6]), int(fields[-1])
        return Look(
            exiting=bool(flags & _EXITING) or state in b"ZX",
            stopped=state in b"Tt",
            status=status,
        )

    def private(self) -> int | None:
        """Bytes of resident memory that are not of a file: what a leak makes grow."""
        data = _read(self._memory)
        if data is None:
            return None
        fields = data.split()
        return (int(fields[1]) - int(fields[2])) * _PAGE

    def waited(self) -> dict[str, float] | None:
        """Seconds that each of its threads has been ready to run and got no core, so far."""
        waits = {}
        try:
            with os.scandir(f"/proc/{self._pid}/task") as threads:
                for thread in threads:
                    said = Path(thread.path, "schedstat").read_bytes().split()
                    waits[thread.name] = int(said[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return None
        return waits

    def close(self) -> None:
        for descriptor in (self._stat, self._memory):
            if descriptor is not None:
                os.close(descriptor)
        self._stat = self._memory = None


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since the start of the box."""
    return _counted("/proc/vmstat", b"oom_kill ") or 0


def available() -> float:
    """Bytes that the box can still give away; no bound where it does not tell."""
    kib = _counted("/proc/meminfo", b"MemAvailable:")
    return math.inf if kib is None else kib * 1024.0


def _counted(file: str, name: bytes) -> int | None:
    try:
        for line in Path(file).read_bytes().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _open(pid: int, name: str) -> int | None:
    try:
        return os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(descriptor: int | None) -> bytes | None:
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, _STAT_BYTES, 0) or None
    except OSError:
        return None

"""What a worker gives up before it imports a plugin.

Protects: the daemon's life (it dies with it, and goes first when memory runs out), privileges (no
set-uid program gives them back), secrets in a core dump (none is written). Does not protect: files
that the service user may read or write, and the network.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
MAX_FILES = 1024


def confine(parent: int, memory_limit: int | None) -> None:
    """Apply to this process. `memory_limit` bounds private memory in bytes (RLIMIT_DATA)."""
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The daemon died between its fork and the line above: no signal will ever come.
        os._exit(1)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError as error:
        # Some containers mount /proc read-only. The model is served all the same.
        sys.stderr.write(f"worker: not first for the OOM killer: {error}\n")


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")

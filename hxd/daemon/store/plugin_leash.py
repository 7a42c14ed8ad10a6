"""Runs a command that does not outlive the daemon: `plugin_leash.py PARENT COMMAND...`, as the
leader of a process group. When the process PARENT dies, the whole group is killed, with all that
the command has started; otherwise the status is the command's.

Else pip would write on into folders that the next daemon clears. A file that runs by itself: it
imports nothing of hxd's. Does not protect: from what leaves the group.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> int:
    signal.signal(signal.SIGTERM, _end)
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.stderr.write("leash: the kernel has no PR_SET_PDEATHSIG\n")
    if os.getppid() != parent:
        # It died before the line above: no signal will ever come.
        _end(signal.SIGTERM, None)
    code = subprocess.call(command)
    return code if code >= 0 else 128 - code


def _end(number: int, frame: FrameType | None) -> None:
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

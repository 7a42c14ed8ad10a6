"""Workers that come up make way for those that serve.

A worker that starts takes a second or two of processor time, and it starts at the very moment when
its former requests are read anew elsewhere. At the same priority it made the pause that clients saw
three times as long on two cores; at a lower one the start takes hardly longer.

Two things hold a process back: its nice value, and that of its autogroup, in which Linux puts every
session of a box without control groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from hxd.daemon.supervise.lifecycle import COMING, State
from hxd.daemon.supervise.process import WorkerProcess
from hxd.daemon.supervise.replica import Replica

LOW = 5
AGAIN = 0.15  # seconds
USUAL = 0
_CAP_SYS_NICE = 23


class Courtesy:
    """`replicas` gives all that there are, `missed` whether sequences of a model wait for one more
    of its replicas. Does nothing where a priority once lowered could not be raised again."""

    def __init__(
        self, replicas: Callable[[], Iterable[Replica]], missed: Callable[[str], bool]
    ) -> None:
        self._replicas = replicas
        self._missed = missed
        self._able = may_raise()
        self._low: set[int] = set()

    def changed(self, replica: Replica, old: State, new: State) -> None:
        """A transition; the supervisor's listener calls it."""
        self.arrange()

    def arrange(self) -> None:
        """While any replica serves, those that come up and are not missed are held back."""
        if not self._able:
            return
        replicas = list(self._replicas())
        serving = any(replica.takes for replica in replicas)
        alive = set()
        for replica in replicas:
            worker = replica.worker
            if worker is None or worker.link.closed:
                continue
            alive.add(worker.pid)
            coming = serving and replica.state in COMING
            self._set(worker, low=coming and not self._missed(replica.source.key))
        self._low &= alive

    def _set(self, worker: WorkerProcess, *, low: bool) -> None:
        if low == (worker.pid in self._low):
            return
        if not prioritize(worker.pid, LOW if low else USUAL):
            # The kernel takes one change of an autogroup in a tenth of a second from whom it does
            # not trust.
            asyncio.get_running_loop().call_later(AGAIN, self.arrange)
            return
        (self._low.add if low else self._low.discard)(worker.pid)


def may_raise() -> bool:
    """Whether this process may set nice values back to the usual one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    # The limit is 20 less the best nice value: getrlimit(2).
    if soft == resource.RLIM_INFINITY or soft >= 20 - USUAL:
        return True
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


def prioritize(group: int, nice: int) -> bool:
    """The process group's threads, and the autogroup of its leader; False if the kernel wants to be
    asked again."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, group, nice)
    try:
        Path(f"/proc/{group}/autogroup").write_text(str(nice))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True

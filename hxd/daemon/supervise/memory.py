"""How much memory hxd may plan with, the smallest cgroup limit up the tree or else a share of RAM,
and what of it is taken by estimate."""

from __future__ import annotations

from pathlib import Path

import psutil

from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.supervisor import Supervisor

SHARE_OF_RAM = 0.85
_ROOT = Path("/sys/fs/cgroup")


def automatic_budget() -> int:
    """Bytes."""
    limit = _cgroup_limit()
    ram = int(psutil.virtual_memory().total * SHARE_OF_RAM)
    return ram if limit is None else min(limit, ram)


class Room:
    """What fits into `budget` bytes beside all replicas that there are. Weights are mapped once and
    shared, so counting each replica whole errs on the safe side."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._supervisor: Supervisor | None = None

    def of(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @property
    def left(self) -> int:
        """Bytes; below 0 where more was planned than there is."""
        replicas = self._supervisor.all() if self._supervisor is not None else ()
        return self.budget - sum(replica.source.estimate for replica in replicas)

    def spare(self, source: Source) -> bool:
        """Whether one more replica fits."""
        return source.estimate <= self.left


def _cgroup_limit() -> int | None:
    """Lowest `memory.max` from the own cgroup (v2) to the root; None without any."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return None
    limits = []
    group = _ROOT / own.lstrip("/")
    while group.is_relative_to(_ROOT):
        try:
            text = (group / "memory.max").read_text().strip()
        except OSError:
            text = "max"
        if text.isdecimal():
            limits.append(int(text))
        group = group.parent
    return min(limits, default=None)

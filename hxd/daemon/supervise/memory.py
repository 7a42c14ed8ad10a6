"""How much memory hxd may plan with: the smallest cgroup limit up the tree, else a share of RAM."""

from __future__ import annotations

from pathlib import Path

import psutil

SHARE_OF_RAM = 0.85
_ROOT = Path("/sys/fs/cgroup")


def automatic_budget() -> int:
    """Bytes."""
    limit = _cgroup_limit()
    ram = int(psutil.virtual_memory().total * SHARE_OF_RAM)
    return ram if limit is None else min(limit, ram)


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

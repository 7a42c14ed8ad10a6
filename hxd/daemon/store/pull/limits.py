"""How patient a pull is and how much it does at a time. No settings: nobody would change them.
Tests pass others."""

from __future__ import annotations

from dataclasses import dataclass

from hxd.daemon.store import disk

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes."""

    # More connections than this gain little on a home line, and servers begin to refuse them.
    connections: int = 4
    piece: int = 16 * MIB
    connect: float = 15.0
    stall: float = 30.0  # without a byte; a trickle is no stall
    tries: int = 6  # in a row that brought nothing
    backoff: float = 0.5  # before the second try at most this, then at most twice as much, ...
    longest_wait: float = 60.0  # whatever Retry-After says
    redirects: int = 5
    # What a kill may cost: bytes that are written but not yet written down.
    save_seconds: float = 1.0
    save_bytes: int = 64 * MIB
    write: int = MIB
    tick: float = 0.2  # between looks whether the work was stopped
    reserve: int = disk.RESERVE


LIMITS = Limits()

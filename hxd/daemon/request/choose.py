"""Which replica takes the next sequence. Pure.

`pack`: replicas on one box share its memory bandwidth, and there one full batch beats two half
ones; so the fullest replica with room is taken, and the next stays a warm standby.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    @property
    def id(self) -> str: ...


C = TypeVar("C", bound=Candidate)


def pack(ready: Sequence[C], busy: Mapping[str, int], slots: int) -> C | None:
    """The busiest of `ready` that has one of its `slots` free; the earlier one when equal."""
    open_to = [candidate for candidate in ready if busy.get(candidate.id, 0) < slots]
    return max(open_to, key=lambda candidate: busy.get(candidate.id, 0), default=None)

"""A set of byte ranges: which parts of a file are there, and which are missing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Half-open, disjoint, sorted; neighbours are joined, so it stays as short as it can be."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    @property
    def total(self) -> int:
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        # Those that touch [start, end], at either side, become one with it.
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not there."""
        gaps = []
        for have, until in self:
            if have >= end:
                break
            if start < have:
                gaps.append((start, have))
            start = max(start, until)
        if start < end:
            gaps.append((start, end))
        return gaps

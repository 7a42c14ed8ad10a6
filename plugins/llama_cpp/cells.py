"""How many KV cells are in use, and by whom: a mirror of llama.cpp's unified cache.

Pure: counts, and never asks the library. A cell that several places share is free when the last of
them lets go. The ids here are not the library's; only their number is the same.
"""

from __future__ import annotations


class Cells:
    """`total` cells. A place is a sequence id inside the library's cache."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._holders = [0] * total
        self._held: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def length(self, place: int) -> int:
        return len(self._held.get(place, ()))

    def grow(self, place: int, count: int) -> None:
        """Give `place` so many more; there must be as many free."""
        taken = self._free[len(self._free) - count :] if count else []
        del self._free[len(self._free) - len(taken) :]
        for cell in taken:
            self._holders[cell] = 1
        self._held.setdefault(place, []).extend(taken)

    def share(self, source: int, target: int, count: int) -> None:
        """The first `count` cells of `source` now belong to `target` too, which may hold some of
        its beginning already."""
        held = self._held.setdefault(target, [])
        added = self._held[source][len(held) : count]
        for cell in added:
            self._holders[cell] += 1
        held.extend(added)

    def cut(self, place: int, keep: int) -> None:
        """`place` lets go of all but its first `keep` cells."""
        held = self._held.get(place)
        if held is None:
            return
        for cell in held[keep:]:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free.append(cell)
        del held[keep:]
        if not keep:
            del self._held[place]

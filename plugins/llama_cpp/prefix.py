"""Prompts that stay in the KV cache after their requests have ended, for later ones to share.

Pure: knows tokens and places, not the library. An entry is a place whose cells nobody computes on;
whoever has a prompt with the same beginning copies that part of it. The least recently used one
goes first when cells or places run out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

# A shorter beginning is not worth a place of its own.
LEAST = 16


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens at the beginning of `a` and `b` are the same."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass(eq=False)
class Entry:
    """`tokens` are in the KV cache at `place`. Only requests of the same `cache` may use them."""

    place: int
    tokens: Tokens
    cache: str


class PrefixCache:
    """At most `limit` entries, in order of use."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def find(self, tokens: Tokens, cache: str) -> tuple[Entry | None, int]:
        """The entry that shares the longest beginning with `tokens`, and its length. It counts as
        used."""
        best, length = None, 0
        for entry in self._entries:
            if entry.cache == cache:
                shared = common_prefix(entry.tokens, tokens)
                if shared > length:
                    best, length = entry, shared
        if best is not None:
            self._entries.remove(best)
            self._entries.append(best)
        return best, length

    def keep(self, entry: Entry) -> list[Entry]:
        """Take `entry` in. Returns the entries that it makes superfluous or pushes out, itself
        among them when it adds nothing; their places are the caller's again."""
        if not self.limit or len(entry.tokens) < LEAST:
            return [entry]
        dropped = []
        for other in [other for other in self._entries if other.cache == entry.cache]:
            shared = common_prefix(other.tokens, entry.tokens)
            if shared == len(entry.tokens):
                return [entry]
            if shared == len(other.tokens):
                dropped.append(other)
        for other in dropped:
            self._entries.remove(other)
        self._entries.append(entry)
        while len(self._entries) > self.limit:
            dropped.append(self.evict())
        return dropped

    def drop(self, entry: Entry) -> None:
        """Somebody goes on in its place."""
        self._entries.remove(entry)

    def evict(self) -> Entry:
        """Drop the least recently used entry; there must be one."""
        self.evictions += 1
        return self._entries.pop(0)

"""Whose turn it is, and what the one KV cache holds. Pure: knows tokens, not the library.

First come, first served, each sequence to its end. The library has one cache, so to change between
two sequences is to read one of them anew: time slices would pay for fairness with the throughput
of everybody, and the answer that ends first would end later. Nobody starves, since every answer is
bounded by its context. Requests beyond the first wait here instead of in the worker's queue, which
is why the next one can go on from what the last one left in the cache.

What the cache holds is used again as far as the next sequence begins alike and belongs to the same
`Sequence.cache`. Falcon's cache can't be cut, since its values lie in rows as long as all that was
read: it is used whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Turn:
    """One sequence. `tokens`: all that the model has read of it or must still read; `fed` of them
    are in the cache, of which `cached` were there before. `alone`: the cache's content is not
    for it, since it wants to see every token evaluated."""

    id: int
    tokens: list[int]
    cache: str = ""
    alone: bool = False
    fed: int = 0
    cached: int = 0
    started: bool = field(default=False, repr=False)

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.fed


class Turns:
    """`cuttable`: whether a part of the cache's content can be kept without the rest."""

    def __init__(self, *, cuttable: bool) -> None:
        self._cuttable = cuttable
        self._waiting: dict[int, Turn] = {}
        self._held: list[int] = []
        self._cache = ""

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return len(self._held)

    def add(self, turn: Turn) -> None:
        self._waiting[turn.id] = turn

    def remove(self, id: int) -> None:
        del self._waiting[id]

    def first(self) -> Turn | None:
        """Whose turn it is; its `fed` says what need not be read."""
        turn = next(iter(self._waiting.values()), None)
        if turn is not None and not turn.started:
            turn.started = True
            turn.fed = turn.cached = self._shared(turn)
            del self._held[turn.fed :]
            self._cache = turn.cache
        return turn

    def read(self, turn: Turn, count: int) -> None:
        """The next `count` tokens of the first turn are in the cache now."""
        self._held += turn.tokens[turn.fed : turn.fed + count]
        turn.fed += count

    def _shared(self, turn: Turn) -> int:
        if turn.alone or turn.cache != self._cache:
            return 0
        # One token is always read: the logits of the last are not kept.
        most = min(len(self._held), len(turn.tokens) - 1)
        same = 0
        while same < most and self._held[same] == turn.tokens[same]:
            same += 1
        return same if self._cuttable or same == len(self._held) else 0

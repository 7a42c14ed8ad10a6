"""Which sequences run, where they are in the KV cache, and what each decode step reads.

Pure: decides, and tells a `Memory` what to copy and to forget. Running sequences' next tokens come
first, then chunks of prompts; a prompt whose beginning is cached, or being read by another, does
not read it again.

The cache is one of two kinds (docs/decisions/0008). *Unified*: all places draw cells from one
buffer and can share them; when they run out, cached prompts go first and then the youngest sequence
is paused, and reads itself again later. *Split*: each place has cells enough for a whole context, a
shared beginning is copied, and places that run should lie side by side, since llama.cpp computes
each row of neighbours in one go.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .batch import Chunk, divide
from .cells import Cells
from .prefix import Entry, PrefixCache, Tokens, common_prefix

# A prompt waits for another that is reading the same beginning, if at least so much is saved.
WORTH_WAITING = 32
# A cached prompt of which a new one leaves at most so many tokens is its own past: the new one
# goes on in its place.
TAIL = 32
# Between the parts of a split cache a copy moves a whole part; fewer tokens are read sooner.
WORTH_COPYING = 32
# Cells that must be free beyond its own need before a paused sequence goes on.
HEADROOM = 32


class Memory(Protocol):
    """The library's side of the cache."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Positions from `start` up to `end` of `source` belong to `target` too."""
        ...

    def forget(self, place: int, start: int) -> None:
        """Drop `place` from position `start` on."""
        ...


@dataclass(eq=False)
class Slot:
    """One running sequence. `tokens` is all that the model has read or must still read, `fed` how
    many of them are in the KV cache, at `place`; None while paused. `cached`: how many came from
    other prompts. `guess`: tokens to try after the last one in this step. `hurry`: it goes on with
    an answer that another worker began, which somebody is reading."""

    id: int
    tokens: list[int]
    arrival: int
    cache: str
    share: bool
    prompt: Tokens
    hurry: bool = False
    place: int | None = None
    fed: int = 0
    cached: int = 0
    guess: list[int] = field(default_factory=list)
    paused: bool = False
    matched: bool = False
    leader: Slot | None = None
    leading: int = 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.fed


class Slots:
    """`limit` sequences at once in a cache of `cells`, with room for `entries` prompts more.

    `share` False: no prompt is kept or shared.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        limit: int,
        cells: int,
        entries: int,
        unified: bool = True,
        share: bool = True,
    ) -> None:
        self._memory = memory
        self._unified = unified
        self._least = 1 if unified else WORTH_COPYING
        self._share_prompts = share
        self._places = list(range(limit + entries))[::-1]
        self._arrivals = itertools.count()
        self._turn = 0
        self.cells = Cells(cells)
        # A split cache can keep a prompt wherever nothing runs.
        kept = entries if unified else entries + limit
        self.cache = PrefixCache(kept if share else 0)
        self.running: dict[int, Slot] = {}
        self.pauses = 0
        self.hit_tokens = 0
        self.miss_tokens = 0

    def add(
        self, id: int, tokens: list[int], *, cache: str, share: bool, hurry: bool = False
    ) -> Slot:
        slot = Slot(
            id,
            tokens,
            next(self._arrivals),
            cache,
            share and self._share_prompts,
            np.array(tokens, dtype=np.int32),
            hurry,
        )
        self.running[id] = slot
        return slot

    def remove(self, id: int) -> None:
        """The sequence is over; what it has read stays for others if it may."""
        slot = self.running.pop(id)
        for other in self.running.values():
            if other.leader is slot:
                other.leader, other.matched = None, False
        if slot.place is None:
            return
        if not slot.share:
            self._release(slot.place)
            return
        read = np.array(slot.tokens[: slot.fed], dtype=np.int32)
        for dropped in self.cache.keep(Entry(slot.place, read, slot.cache)):
            self._release(dropped.place)

    def plan(
        self,
        reading: Callable[[int, int], int],
        limit: int,
        hurried: Callable[[], int] | None = None,
    ) -> list[Chunk]:
        """What the next step reads, `limit` tokens at most; `reading` gives the prompt tokens that
        fit beside so many running sequences when so many prompts wait, `hurried` those for answers
        that were cut off. Empty only when nothing runs."""
        order = sorted(self.running.values(), key=lambda slot: slot.arrival)
        for slot in order:
            self._place(slot)
        decoding = [slot for slot in order if slot.place is not None and slot.pending == 1]
        chunks = []
        spare = limit - len(decoding)
        for slot in decoding:
            if slot.place is None or not self._room(1, slot):
                slot.guess = []
                continue
            slot.guess = slot.guess[: max(0, min(self.cells.free - 1, spare))]
            chunks.append(self._take(slot, 1 + len(slot.guess)))
            spare -= len(slot.guess)
        prompts = [
            slot
            for slot in order
            if slot.place is not None and slot.pending > 1 and not self._waits(slot)
        ]
        if hurried is not None and (cut_off := [slot for slot in prompts if slot.hurry]):
            prompts, budget = cut_off, min(spare, hurried())
        else:
            budget = min(spare, reading(len(chunks), len(prompts)))
        self._turn += bool(prompts)
        for slot, count in divide(prompts, budget, self._turn):
            if slot.place is not None and (count := self._room(count, slot)):
                chunks.append(self._take(slot, count))
        # llama.cpp takes neighbours into one computation only where they follow in this order.
        return sorted(
            (chunk for chunk in chunks if chunk.slot.place == chunk.place),
            key=lambda chunk: chunk.place,
        )

    def read(self, chunk: Chunk) -> None:
        """The step with `chunk` is done."""
        chunk.slot.fed = chunk.start + chunk.count

    def cut(self, slot: Slot, keep: int) -> None:
        """Forget what the slot has read behind its first `keep` tokens: wrong guesses."""
        if slot.place is not None and slot.fed > keep:
            self._memory.forget(slot.place, keep)
            self.cells.cut(slot.place, keep)
            slot.fed = keep

    def shrink(self) -> bool:
        """The library found no room in spite of the count: give something up. False when there is
        nothing left to give."""
        if len(self.cache):
            self._release(self.cache.evict().place)
            return True
        placed = [slot for slot in self.running.values() if slot.place is not None]
        if len(placed) < 2:
            return False
        self._pause(max(placed, key=lambda slot: slot.arrival))
        return True

    def undo(self, chunks: list[Chunk]) -> None:
        """The step did not happen: give back the cells that it was to fill."""
        for chunk in chunks:
            if chunk.slot.place == chunk.place:
                self._memory.forget(chunk.place, chunk.start)
                self.cells.cut(chunk.place, chunk.start)

    def _place(self, slot: Slot) -> None:
        """A place for a new or paused sequence, and what others have read of its beginning."""
        if slot.place is None:
            if self._unified:
                if self._paused_before(slot) or not self._placeable(slot):
                    return
                if not self._places:
                    self._release(self.cache.evict().place)
                slot.place = self._places.pop()
            else:
                self._settle(slot)
            slot.paused = slot.matched = False
        if slot.share and slot.fed < len(slot.prompt) - 1:
            self._share(slot)

    def _settle(self, slot: Slot) -> None:
        """Finds a place in a split cache: that of its own past, or one beside the others."""
        most = len(slot.prompt) - 1
        found, length = self.cache.find(slot.prompt[:most], slot.cache) if slot.share else (None, 0)
        others = len(self._places) + len(self.cache) - 1
        if found is not None and (length >= len(found.tokens) - TAIL or not others):
            self.cache.drop(found)
            self._memory.forget(found.place, length)
            self.cells.cut(found.place, length)
            slot.place, slot.fed = found.place, length
            slot.cached += length
            return
        holders: dict[int, Entry] = {
            entry.place: entry for entry in self.cache if entry is not found or not others
        }
        taken = {other.place for other in self.running.values() if other.place is not None}
        # Beside the others first; then an empty one; then the least recently used prompt's.
        ages = {place: age for age, place in enumerate(holders, 1)}
        place = min(
            [*self._places, *holders],
            key=lambda place: (_rows(taken | {place}), ages.get(place, 0), place),
        )
        if place in holders:
            self.cache.drop(holders[place])
            self.cache.evictions += 1
            self._release(place)
        self._places.remove(place)
        slot.place = place

    def _paused_before(self, slot: Slot) -> bool:
        return any(
            other.place is None and other.arrival < slot.arrival for other in self.running.values()
        )

    def _placeable(self, slot: Slot) -> bool:
        """A sequence that was paused waits until there is room for all of it."""
        if all(other.place is None for other in self.running.values()):
            return True
        need = slot.pending + HEADROOM if slot.paused else 1
        while self.cells.free < need and len(self.cache):
            self._release(self.cache.evict().place)
        return self.cells.free >= need

    def _share(self, slot: Slot) -> None:
        assert slot.place is not None
        most = len(slot.prompt) - 1
        if not slot.matched:
            slot.matched = True
            entry, length = self.cache.find(slot.prompt[:most], slot.cache)
            if entry is not None and length - slot.fed >= self._least:
                self._copy(entry.place, slot, length)
            slot.leader, slot.leading = self._leader(slot, most)
        leader = slot.leader
        if leader is None:
            return
        ready = min(leader.fed, slot.leading)
        if leader.place is not None and slot.leading - ready >= WORTH_WAITING:
            return
        if leader.place is not None and ready - slot.fed >= self._least:
            self._copy(leader.place, slot, ready)
        slot.leader = None

    def _leader(self, slot: Slot, most: int) -> tuple[Slot | None, int]:
        """An older sequence that has read, or is reading, more of the same beginning."""
        best, length = None, slot.fed
        for other in self.running.values():
            if other.arrival < slot.arrival and other.share and other.cache == slot.cache:
                shared = common_prefix(other.prompt, slot.prompt[:most])
                ready = min(shared, other.fed)
                worth = ready - slot.fed >= self._least or shared - slot.fed >= WORTH_WAITING
                if shared > length and worth:
                    best, length = other, shared
        return best, length

    def _copy(self, source: int, slot: Slot, length: int) -> None:
        assert slot.place is not None
        self._memory.copy(source, slot.place, slot.fed, length)
        if self._unified:
            self.cells.share(source, slot.place, length)
        else:
            self.cells.grow(slot.place, length - slot.fed)
        slot.cached += length - slot.fed
        slot.fed = length

    def _waits(self, slot: Slot) -> bool:
        return slot.leader is not None

    def _room(self, count: int, slot: Slot) -> int:
        """How many of `count` cells there are for `slot`, after others have made room."""
        while self.cells.free < count and len(self.cache):
            self._release(self.cache.evict().place)
        while not self.cells.free:
            placed = [other for other in self.running.values() if other.place is not None]
            youngest = max(placed, key=lambda other: other.arrival)
            self._pause(youngest)
            if youngest is slot:
                return 0
        return min(count, self.cells.free)

    def _take(self, slot: Slot, count: int) -> Chunk:
        assert slot.place is not None
        self.cells.grow(slot.place, count)
        complete = slot.fed + count >= len(slot.tokens)
        return Chunk(slot, slot.place, slot.fed, count, complete)

    def _pause(self, slot: Slot) -> None:
        assert slot.place is not None
        self._release(slot.place)
        slot.place, slot.fed, slot.guess, slot.leader = None, 0, [], None
        slot.paused = True
        self.pauses += 1

    def _release(self, place: int) -> None:
        self._memory.forget(place, 0)
        self.cells.cut(place, 0)
        self._places.append(place)


def _rows(places: set[int]) -> int:
    """How many rows of neighbours there are."""
    return sum(place - 1 not in places for place in places)

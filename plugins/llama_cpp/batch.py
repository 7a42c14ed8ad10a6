"""What goes into the next decode step. Pure: knows slots and numbers, not the library.

The running sequences' next tokens come first, then chunks of prompts fill the rest in order of
arrival, so that a long prompt can't stall those that already talk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Slot:
    """One running sequence. `tokens` is all that the model has read or must still read; `fed` how
    many of them are in the KV cache; `place` is the sequence id inside the cache."""

    id: int
    place: int
    tokens: list[int]
    fed: int = 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.fed


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of `slot` from position `start`; the last one's logits are wanted when
    nothing of the sequence is left to read after it."""

    slot: Slot
    start: int
    count: int
    complete: bool


def plan(slots: Iterable[Slot], budget: int) -> list[Chunk]:
    """Chunks of at most `budget` tokens together. Never empty while a slot has pending tokens."""
    ordered = sorted(slots, key=lambda slot: slot.pending > 1)
    chunks = []
    for slot in ordered:
        count = min(slot.pending, budget)
        if count:
            chunks.append(Chunk(slot, slot.fed, count, count == slot.pending))
            budget -= count
    return chunks

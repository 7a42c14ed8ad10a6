"""How a decode step's room is divided among prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .slots import Slot

# The oldest prompt gets at least one part in so many, however short the others are.
OLDEST_SHARE = 4


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of `slot` from position `start`, at `place` in the KV cache. `complete`: all
    that the slot has to read is read with it, so its next token can be drawn."""

    slot: Slot
    place: int
    start: int
    count: int
    complete: bool


def divide(prompts: Sequence[Slot], budget: int) -> list[tuple[Slot, int]]:
    """Tokens for each of `prompts`, which are in order of arrival; `budget` together.

    The one with the least left comes first, which is best for the time to the first token on
    average; a share for the oldest keeps a long one from waiting for ever.
    """
    if not prompts or budget <= 0:
        return []
    oldest = prompts[0]
    given = {oldest.id: min(oldest.pending, max(1, budget // OLDEST_SHARE))}
    budget -= given[oldest.id]
    for slot in sorted(prompts, key=lambda slot: slot.pending):
        count = min(slot.pending - given.get(slot.id, 0), budget)
        if count > 0:
            given[slot.id] = given.get(slot.id, 0) + count
            budget -= count
    return [(slot, given[slot.id]) for slot in prompts if given.get(slot.id)]

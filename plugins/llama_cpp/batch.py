"""How a decode step's room is divided among prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .slots import Slot

# Every so many turns the oldest prompt comes first, however short the others are.
OLDEST_TURN = 4


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of `slot` from position `start`, at `place` in the KV cache. `complete`: all
    that the slot has to read is read with it, so its next token can be drawn."""

    slot: Slot
    place: int
    start: int
    count: int
    complete: bool


def divide(prompts: Sequence[Slot], budget: int, turn: int) -> list[tuple[Slot, int]]:
    """Tokens for each of `prompts`, which are in order of arrival; `budget` together.

    The one with the least left comes first, which is best for the time to the first token on
    average; a turn for the oldest now and then keeps a long one from waiting for ever. One by one,
    and not a little for each: in a split cache each sequence's part of a batch is computed by
    itself.
    """
    order = sorted(prompts, key=lambda slot: slot.pending)
    if prompts and turn % OLDEST_TURN == 0:
        order.remove(prompts[0])
        order.insert(0, prompts[0])
    given = []
    for slot in order:
        count = min(slot.pending, budget)
        if count > 0:
            given.append((slot, count))
            budget -= count
    return given

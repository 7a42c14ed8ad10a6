"""How many prompt tokens a decode step may carry, so that nobody waits long for the next token.

Pure: learns from the steps' durations. A step with `decoding` running sequences and `reading`
prompt tokens is taken to last base(decoding) + reading * cost.
"""

from __future__ import annotations

# A mixed step may last so many pure decode steps. The bound that must hold is 4; the measured
# times scatter.
STRETCH = 3.0
# Without running sequences a step may last so long (s): cancels and new requests wait for it.
LONGEST = 0.4
LEAST = 4
FIRST = 64
HURRIED = 256
_WEIGHT = 0.2


class Pace:
    """`limit`: prompt tokens in one step at most."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.step_seconds = 0.0
        self._base: dict[int, float] = {}
        self._cost: float | None = None
        self._guess: float | None = None

    def budget(self, decoding: int, waiting: int) -> int:
        """Prompt tokens for the next step, when `decoding` sequences run and `waiting` prompts are
        to be read."""
        if self._cost is None:
            return min(FIRST, self.limit)
        room = LONGEST
        if decoding:
            # What counts as a step is one with all who are here: that is the pace that the running
            # ones will have as soon as the others have been read.
            base = self.base(decoding + waiting) or LEAST * self._cost
            room = STRETCH * base - (self.base(decoding) or 0.0)
        return max(LEAST, min(self.limit, int(room / self._cost)))

    def hurried(self) -> int:
        """Prompt tokens for the next step when a client that had begun to read an answer waits for
        it to go on: the running sequences can spare one long step, and it none."""
        if self._cost is None:
            return min(HURRIED, self.limit)
        return max(LEAST, min(self.limit, int(LONGEST / self._cost)))

    def base(self, decoding: int) -> float | None:
        """Seconds of a pure decode step with so many sequences, from the nearest number seen."""
        if not self._base:
            return None
        nearest = min(self._base, key=lambda known: abs(known - decoding))
        # More sequences cost at least what their tokens cost in a prompt.
        more = max(0, decoding - nearest) * (self._cost or 0.0) / 2
        return self._base[nearest] + more

    @property
    def guess(self) -> float | None:
        """Seconds that one guessed token adds to a step; its logits are wanted, other than a prompt
        token's."""
        return self._guess or self._cost

    def observe(self, decoding: int, reading: int, guessed: int, seconds: float) -> None:
        """A step of `decoding` sequences, `reading` prompt tokens and `guessed` ones took
        `seconds`."""
        self.step_seconds = _blend(self.step_seconds or None, seconds)
        if guessed:
            base = self.base(decoding)
            if base is not None and not reading and seconds > base:
                self._guess = _blend(self._guess, (seconds - base) / guessed)
        elif not reading:
            self._base[decoding] = _blend(self._base.get(decoding), seconds)
        elif not decoding or self._base:
            base = (self.base(decoding) or 0.0) if decoding else 0.0
            # A step that was quicker than its decoding part says nothing of the other part.
            if seconds > base and reading >= LEAST:
                self._cost = _blend(self._cost, (seconds - base) / reading)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)

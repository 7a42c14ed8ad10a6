"""Guesses the next tokens from what stands in the text already (prompt lookup), where it pays.

Pure. Answers that quote their prompt (code, extraction, summaries) repeat runs of tokens; reading
a guess along with the last token costs a lone sequence little, since a decode step waits for
memory. Every guess is checked against the model's own draw, so it never changes the answer.
"""

from __future__ import annotations

NGRAM = 3
LONGEST = 8
_WEIGHT = 0.1
# A guess must be worth this many times what it costs: both are estimates.
MARGIN = 1.3
# A sequence whose guesses fail is tried again after so many tokens, since texts change.
RETRY = 64


class Guesser:
    """Guesses for one sequence."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._hope = 0.6
        self._silent = 0

    def guess(self, tokens: list[int], room: int, price: float) -> list[int]:
        """Up to `room` tokens that may follow `tokens`. `price`: what reading one more token costs,
        as a share of what a right one saves."""
        self._index(tokens)
        at = self._places.get(tuple(tokens[-NGRAM:]))
        length = min(self._length(price * MARGIN), room)
        if at is None or length <= 0:
            return []
        # A repetition that reaches to the end goes on with itself.
        period = len(tokens) - at
        return [tokens[at + i % period] for i in range(length)]

    def _length(self, least: float) -> int:
        """So many tokens that the last one is still right with a probability over `least`."""
        if self._hope > least:
            length = 1
            while length < LONGEST and self._hope ** (length + 1) > least:
                length += 1
            return length
        self._silent += 1
        if self._silent < RETRY:
            return 0
        self._silent = 0
        return 1

    def learn(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were drawn."""
        if guessed:
            # Tokens behind the first wrong one were never judged.
            judged = min(guessed, right + 1)
            self._hope += (1 - (1 - _WEIGHT) ** judged) * (right / judged - self._hope)

    def _index(self, tokens: list[int]) -> None:
        """Where each run of `NGRAM` tokens was last followed by another token."""
        for end in range(max(self._indexed, NGRAM), len(tokens)):
            self._places[tuple(tokens[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(tokens))

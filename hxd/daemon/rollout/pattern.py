"""Regular expressions that cannot keep the daemon busy: what a search may cost, before it is made.

Protects against a pattern from an operator's file that backtracks for minutes over what a model
wrote. Does not protect against one that is merely wrong.
"""

from __future__ import annotations

import re
import warnings

MOST_PATTERN = 200  # characters
MOST_TEXT = 4096  # characters that are searched
# A search tries every start and, from there, every way in which the repeats can share the text.
# The worst
# that was found below this bound takes 0.3 s. One `.*` costs 4,097 squared, which is just below.
MOST_STEPS = 2e7
_REPEAT = re.compile(r"\{(?!\})(\d*)(?:(,)(\d*))?\}")
_GROUP = re.compile(r"\(\?(?::|P<\w+>)|\((?!\?)")
_FLAGS = re.compile(r"\(\?[aims]+\)")


class PatternError(ValueError):
    """The pattern can't be used; the message says why, and what to write instead."""


class Pattern:
    """A pattern that may be searched for in text that others wrote."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_PATTERN:
            raise PatternError(f"pattern is longer than {MOST_PATTERN} characters")
        try:
            # It warns of sets that a later Python may read differently.
            with warnings.catch_warnings(action="error"):
                self._compiled = re.compile(text)
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise PatternError(f"pattern {text!r}: {error}") from None
        self.text = text
        if not steps(text) <= MOST_STEPS:
            raise PatternError(
                f"pattern {text!r} could take minutes: use at most one '*' or '+', none of them "
                "around another or around '|', and bounds such as {0,40} for the others"
            )

    def found_in(self, text: str) -> bool:
        """Whether it occurs anywhere in the first `MOST_TEXT` characters."""
        return self._compiled.search(text[:MOST_TEXT]) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def steps(pattern: str) -> float:
    """An upper bound for the ways that a search tries; infinite if it is far too many.

    The ways of a sequence are the product of those of its parts, of alternatives their sum, and of
    a repeat the sum over how often. `pattern` is one that `re` has accepted. Raises `PatternError`
    for what this doesn't count: look-around, conditions, back references, verbose patterns.
    """
    reader = _Reader(pattern)
    if flags := _FLAGS.match(pattern):
        reader.at = flags.end()
    ways = reader.alternatives()
    if reader.at != len(pattern):  # no pattern that `re` accepts gets here
        raise PatternError(f"pattern {pattern!r}: not understood from character {reader.at}")
    return (MOST_TEXT + 1) * ways


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def alternatives(self) -> float:
        ways = self._sequence()
        while self.text.startswith("|", self.at):
            self.at += 1
            ways += self._sequence()
        return ways

    def _sequence(self) -> float:
        ways = 1.0
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            ways *= self._repeated(self._item())
        return ways

    def _item(self) -> float:
        char = self.text[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._one_of()
        if char == "\\":
            if self.text[self.at + 1] in "123456789":
                raise PatternError(f"pattern {self.text!r}: back references are not allowed")
            self.at += 1
        self.at += 1
        return 1.0

    def _group(self) -> float:
        opened = _GROUP.match(self.text, self.at)
        if not opened:
            raise PatternError(
                f"pattern {self.text!r}: of the groups with '?', only (?:…) and (?P<name>…) are "
                "allowed, and (?i) at the start"
            )
        self.at = opened.end()
        ways = self.alternatives()
        self.at += 1
        return ways

    def _one_of(self) -> float:
        # A "]" that comes first stands for itself.
        self.at += 2 if self.text.startswith("[^", self.at) else 1
        self.at += self.text.startswith("]", self.at)
        while self.text[self.at] != "]":
            self.at += 2 if self.text[self.at] == "\\" else 1
        self.at += 1
        return 1.0

    def _repeated(self, ways: float) -> float:
        match self.text[self.at : self.at + 1]:
            case "?":
                most, end = 1, self.at + 1
            case "*" | "+":
                most, end = MOST_TEXT, self.at + 1
            case "{" if found := _REPEAT.match(self.text, self.at):
                low, comma, high = found.groups()
                most, end = int((high if comma else low) or MOST_TEXT), found.end()
            case _:
                return ways
        self.at = end + (self.text[end : end + 1] in ("?", "+"))
        # The least number of times saves nothing: to get there takes steps as well.
        total, term = 1.0, 1.0
        for _ in range(min(most, MOST_TEXT)):
            term *= ways
            total += term
            if total > MOST_STEPS:
                return float("inf")
        return total

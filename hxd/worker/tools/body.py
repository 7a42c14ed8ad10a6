"""Reads tool calls out of one JSON value: a call, an array of calls, such an array inside of
`{"tool_calls": …}`, or the arguments of a call whose name is known already."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from hxd.worker.tools.family import WRAPPER
from hxd.worker.tools.scan import MAX_DEPTH, Event, Scanner

MAX_HELD = 16 << 10
ARGUMENTS = frozenset({"arguments", "parameters"})
KEYS = ARGUMENTS | {"name", "type", "id"}


class Outcome(Enum):
    MORE = "the text is used up"
    ENDED = "the value is complete, and held calls"
    BROKEN = "calls don't go on like this"


class Calls(Protocol):
    """Who is told of what has been read."""

    def begin(self, name: str) -> bool:
        """A call begins; false refuses it."""
        ...

    def argue(self, piece: str) -> None:
        """The arguments go on."""
        ...


class Body:
    """One value. `held`: what has been read and not been told, the beginning of a call perhaps.

    `pending`: whether that beginning would be lost if it were dropped; false inside of a call that
    has begun, and between two calls.
    """

    def __init__(self, calls: Calls, *, wrapped: bool = False, name: str | None = None) -> None:
        self._calls = calls
        self._scanner = Scanner()
        self._wrapped = wrapped
        # How deep the object lies whose keys are a call's; 0 where the value is the arguments.
        self._depth = 1 if name is None else 0
        self._in_call = name is not None
        self._in_arguments = False
        self._begun = False
        self._any = False
        self._name = name
        self._key = ""
        self._early = ""
        self.held = ""

    @property
    def pending(self) -> bool:
        return not self._begun and (self._in_call or not self._any)

    def read(self, text: str, at: int) -> tuple[Outcome, int]:
        """Reads from `at`: what came of it, and where reading stopped."""
        while True:
            end = len(text)
            if not self._begun:
                end = min(end, at + MAX_HELD - len(self.held))
            # Of the arguments nothing matters but where they end.
            level = self._depth if self._in_arguments else MAX_DEPTH
            event, after = self._scanner.advance(text, at, end, level)
            piece, at = text[at:after], after
            if not self._begun:
                self.held += piece
            if self._in_arguments:
                self._argue(piece)
            if event is Event.MORE and not self._begun and len(self.held) >= MAX_HELD:
                return Outcome.BROKEN, at
            if event is Event.MORE:
                return Outcome.MORE, at
            if event is Event.BROKEN or not self._goes_on(event):
                return Outcome.BROKEN, at
            if self._scanner.depth == 0:
                return (Outcome.ENDED if self._any else Outcome.BROKEN), at

    def _goes_on(self, event: Event) -> bool:
        if event is Event.OPEN:
            return self._opened()
        if event is Event.CLOSE:
            return self._closed()
        is_own = self._in_call and self._scanner.depth == self._depth
        if self._begun or not is_own:
            return self._begun or self._any
        if event is Event.KEY:
            self._key = self._scanner.text or ""
            return self._key in KEYS or (self._may_wrap() and self._key == WRAPPER)
        if event is Event.STRING and self._key == "name":
            self._name = self._scanner.text or ""
            return not self._early or self._begin()
        return event is Event.STRING and self._key not in ARGUMENTS

    def _opened(self) -> bool:
        depth, is_object = self._scanner.depth, self._scanner.opened == "{"
        if depth == 1 and self._depth == 1:
            self._in_call = is_object
            self._depth = 1 if is_object else 2
            return True
        if not self._in_call and depth == self._depth and is_object:
            self._in_call, self._name, self._key, self._early = True, None, "", ""
            if self._any:
                self.held = "{"
            return True
        if self._in_call and depth == self._depth + 1 and not self._begun:
            if is_object and not self._early and (self._depth == 0 or self._key in ARGUMENTS):
                self._in_arguments = True
                self._early = "{"
                return self._name is None or self._begin()
            if not is_object and self._may_wrap() and self._key == WRAPPER:
                self._depth, self._in_call = 3, False
                return True
        return self._begun or (self._any and not self._in_call)

    def _may_wrap(self) -> bool:
        return self._wrapped and self._depth == 1 and self._name is None and not self._early

    def _closed(self) -> bool:
        depth = self._scanner.depth
        if self._in_arguments:
            self._in_arguments = False
            return True
        if self._in_call and depth == self._depth - 1:
            if not self._begun:
                self._early = "{}"
                if self._name is None or not self._begin():
                    return False
            self._in_call = self._begun = False
            self.held = ""
        return True

    def _begin(self) -> bool:
        if self._name is None or not self._calls.begin(self._name):
            return False
        self._begun = self._any = True
        self.held = ""
        self._calls.argue(self._early)
        return True

    def _argue(self, piece: str) -> None:
        if self._begun:
            self._calls.argue(piece)
        else:
            self._early += piece

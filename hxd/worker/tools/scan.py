"""Follows JSON as its characters come, and says where its parts begin and end.

Keeps the open brackets and the last short text, nothing else. Stricter than need be nowhere:
control characters inside texts, which models write unescaped, are let through.
"""

from __future__ import annotations

import re
from enum import Enum

MAX_DEPTH = 256
MAX_TEXT = 128
_MAX_SCALAR = 512

_PLAIN = re.compile(r'[^"\\]*')
_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_CLOSES = {"{": "}", "[": "]"}


class Event(Enum):
    MORE = "the text is used up"
    OPEN = "an object or array has begun"
    CLOSE = "an object or array has ended"
    KEY = "a key is complete"
    STRING = "a text is complete"
    SCALAR = "a number, true, false or null is complete"
    BROKEN = "this is no JSON"


class _Expect(Enum):
    VALUE = "a value"
    FIRST_VALUE = "a value or ]"
    KEY = "a key"
    FIRST_KEY = "a key or }"
    COLON = "a colon"
    NEXT = "a comma or the end"


class Scanner:
    """One value, an object or an array. `depth`: how many are open. `text`: the last key or text
    as it was spelled, None if longer than `MAX_TEXT`."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expect = _Expect.VALUE
        self._in_string = False
        self._is_key = False
        self._escape = ""
        self._scalar = ""
        self.text: str | None = None

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def opened(self) -> str:
        """The bracket of what was opened last and is still open."""
        return self._open[-1] if self._open else ""

    def advance(self, given: str, at: int, end: int, level: int = MAX_DEPTH) -> tuple[Event, int]:
        """Reads from `at`, at most to `end`: the next event that leaves no more than `level` open,
        and the position behind what made it, or that of the character which broke it. Not to be
        called after the outermost `CLOSE`."""
        while at < end:
            if self._in_string:
                event, at = self._string(given, at, end)
            elif self._scalar:
                event, at = self._word(given, at, end)
            else:
                space = _SPACE.match(given, at, end)
                at = space.end() if space else at
                if at == end:
                    break
                event, at = self._structure(given[at], at)
            if event is not Event.MORE and (len(self._open) <= level or event is Event.BROKEN):
                return event, at
        return Event.MORE, at

    def _string(self, given: str, at: int, end: int) -> tuple[Event, int]:
        if self._escape:
            return self._escaped(given[at], at)
        plain = _PLAIN.match(given, at, end)
        stop = plain.end() if plain else at
        self._keep(given[at:stop])
        if stop == end:
            return Event.MORE, stop
        if given[stop] == "\\":
            self._escape = "\\"
            self._keep("\\")
            return Event.MORE, stop + 1
        self._in_string = False
        self._expect = _Expect.COLON if self._is_key else _Expect.NEXT
        return (Event.KEY if self._is_key else Event.STRING), stop + 1

    def _escaped(self, character: str, at: int) -> tuple[Event, int]:
        if self._escape == "\\":
            if character not in '"\\/bfnrtu':
                return Event.BROKEN, at
            self._escape = "u" if character == "u" else ""
        elif character not in "0123456789abcdefABCDEF":
            return Event.BROKEN, at
        else:
            self._escape = "" if len(self._escape) == 4 else self._escape + "x"
        self._keep(character)
        return Event.MORE, at + 1

    def _keep(self, part: str) -> None:
        if self.text is not None:
            self.text = self.text + part if len(self.text) + len(part) <= MAX_TEXT else None

    def _word(self, given: str, at: int, end: int) -> tuple[Event, int]:
        word = _WORD.match(given, at, end)
        stop = min(word.end() if word else at, at + _MAX_SCALAR - len(self._scalar))
        self._scalar += given[at:stop]
        if stop == end and len(self._scalar) < _MAX_SCALAR:
            return Event.MORE, stop
        if not _SCALAR.fullmatch(self._scalar):
            return Event.BROKEN, stop
        self._scalar = ""
        self._expect = _Expect.NEXT
        return Event.SCALAR, stop

    def _structure(self, character: str, at: int) -> tuple[Event, int]:
        expect = self._expect
        if expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return (Event.MORE, at + 1) if character == ":" else (Event.BROKEN, at)
        if expect is _Expect.NEXT and character == ",":
            self._expect = _Expect.KEY if self.opened == "{" else _Expect.VALUE
            return Event.MORE, at + 1
        if character == _CLOSES.get(self.opened) and expect in (
            _Expect.NEXT,
            _Expect.FIRST_VALUE if character == "]" else _Expect.FIRST_KEY,
        ):
            self._open.pop()
            self._expect = _Expect.NEXT
            return Event.CLOSE, at + 1
        if expect in (_Expect.KEY, _Expect.FIRST_KEY):
            return self._begin_string(at, key=True) if character == '"' else (Event.BROKEN, at)
        if expect is _Expect.NEXT:
            return Event.BROKEN, at
        return self._value(character, at)

    def _value(self, character: str, at: int) -> tuple[Event, int]:
        if character in "{[":
            if len(self._open) == MAX_DEPTH:
                return Event.BROKEN, at
            self._open.append(character)
            self._expect = _Expect.FIRST_KEY if character == "{" else _Expect.FIRST_VALUE
            return Event.OPEN, at + 1
        if character == '"':
            return self._begin_string(at, key=False)
        if character in "-0123456789tfn" and self._open:
            self._scalar = character
            return Event.MORE, at + 1
        return Event.BROKEN, at

    def _begin_string(self, at: int, *, key: bool) -> tuple[Event, int]:
        self._in_string, self._is_key, self.text = True, key, ""
        return Event.MORE, at + 1

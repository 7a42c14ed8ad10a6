"""Finds the tool calls in an answer while it is being written.

Text before and between calls passes through; a call's name comes with its first part, its
arguments as the model writes them. An unconstrained model may write anything, so:

- What can't be a call is content: from its opening to where that showed, and reading goes on
  there. Such are an unknown name, a second call where only one is allowed, a missing name, a key
  that calls don't have before the name and the arguments have begun, and what the answer's end
  cuts off before that.
- What was sent as a call stays one. Where it stops being JSON it ends, complete or not, and what
  follows is content again.
- Nothing else is lost but white space around calls (before one, the last 32 characters at most)
  and what stands around and between calls to open, close and part them.

However the answer is cut into pieces, the joined results are the same. Held back are at most
`body.MAX_HELD` characters and an opening.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from hxd.wire import CallDelta, Tools
from hxd.worker.tools.body import MAX_HELD, Body, Outcome
from hxd.worker.tools.family import ARGS, CALL_ID, Family, Layout
from hxd.worker.tools.ids import call_id

MAX_SPACE = 32
# A call may begin behind a thought as it may begin the answer.
_THOUGHT = "</think>"
_SPACE = re.compile(r"[ \t\r\n]*")
_SHORT_SPACE = re.compile(r"[ \t\r\n]{0,32}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9]{0,64}")


@dataclass
class Parsed:
    """What may be sent since the last time."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class _State(Enum):
    SEEK = "content, perhaps with a call to come"
    LEAD = "an opening has been read"
    NAME = "a name that stands before its arguments"
    BODY = "JSON with calls in it"
    AFTER = "calls have ended, what closes them may follow"


class Parser:
    """One answer. `called`: whether a call has begun."""

    def __init__(self, family: Family, tools: Tools, seed: int) -> None:
        self._family = family
        self._known = frozenset(tool.name for tool in tools.functions)
        self._several = tools.parallel
        self._seed = seed
        thought = _THOUGHT if family.bare else ""
        self._openers = tuple(text for text in (family.opening, thought) if text)
        self._opener = re.compile("|".join(map(re.escape, self._openers)) or "(?!)")
        self._separator = ";" if family.bare and family.layout is Layout.OBJECT else ""
        self._text = ""
        self._at = 0
        self._state = _State.SEEK
        # Whether a bare call may begin here: nothing but white space since the beginning.
        self._fresh = family.bare
        # An opening and the white space around it; content if no call follows.
        self._held = ""
        self._count = 0
        self._parsed = Parsed()
        self._body = Body(self)
        self._steps = {
            _State.SEEK: self._seek,
            _State.LEAD: self._lead,
            _State.NAME: self._name,
            _State.BODY: self._read,
            _State.AFTER: self._after,
        }

    @property
    def called(self) -> bool:
        return self._count > 0

    def feed(self, text: str) -> Parsed:
        self._text = self._text[self._at :] + text
        self._at = 0
        while self._at < len(self._text) and self._steps[self._state]():
            pass
        return self._take()

    def finish(self) -> Parsed:
        """The answer has ended: what was held back is content, unless it was to close a call."""
        if self._state is not _State.AFTER:
            self._not_a_call(self._state is _State.BODY)
            self._release(len(self._text))
        return self._take()

    def begin(self, name: str) -> bool:
        """For `Body`: a call begins."""
        if name not in self._known or (self._count and not self._several):
            return False
        id = call_id(self._seed, self._count, short=self._family.short_ids)
        self._parsed.calls.append(CallDelta(self._count, id, name, ""))
        self._count += 1
        self._held = ""
        return True

    def argue(self, piece: str) -> None:
        """For `Body`: the call's arguments go on."""
        last = self._parsed.calls[-1] if self._parsed.calls else None
        if last is not None and last.id is None and last.index == self._count - 1:
            last.arguments += piece
        elif piece:
            self._parsed.calls.append(CallDelta(self._count - 1, None, None, piece))

    def _take(self) -> Parsed:
        parsed, self._parsed = self._parsed, Parsed()
        return parsed

    # Each step reads on from `_at` and says whether the next one may: it may not where what comes
    # next depends on text that isn't there yet.

    def _seek(self) -> bool:
        text = self._text
        if self._fresh:
            start = _end(_SPACE, text, self._at)
            if start == len(text) or text[start] == "{":
                self._release(self._space_before(start))
                return start < len(text) and self._enter(start, _State.BODY)
            self._fresh = False
        found = self._opener.search(text, self._at)
        if found is None:
            self._release(self._space_before(len(text) - self._possible_opener()))
            return False
        if found.group() == self._family.opening:
            self._release(self._space_before(found.start()))
            return self._enter(found.end(), _State.LEAD)
        self._release(found.end())
        self._fresh = True
        return True

    def _lead(self) -> bool:
        start = _end(_SPACE, self._text, self._at)
        start = min(start, self._at + MAX_HELD - len(self._held))
        if start == len(self._text):
            return self._enter(start, _State.LEAD)
        if self._text[start] in "{[":
            return self._enter(start, _State.BODY)
        if self._family.layout is Layout.NAMED:
            return self._enter(start, _State.NAME)
        self._enter(start, _State.LEAD)
        return self._not_a_call()

    def _name(self) -> bool:
        rest = self._text[self._at :]
        named = _NAME.match(rest)
        if named is None:
            return self._not_a_call()
        at = named.end()
        if at == len(rest):
            return False
        for marker, value in ((CALL_ID, _ID), (ARGS, _SHORT_SPACE)):
            following = rest[at : at + len(marker)]
            if following == marker:
                at = _end(value, rest, at + len(marker))
            elif marker.startswith(following):
                return False
        at = _end(_SHORT_SPACE, rest, at)
        if at == len(rest):
            return False
        if rest[at] != "{":
            return self._not_a_call()
        return self._enter(self._at + at, _State.BODY, name=named.group())

    def _read(self) -> bool:
        outcome, self._at = self._body.read(self._text, self._at)
        if outcome is Outcome.MORE:
            return False
        if outcome is Outcome.BROKEN and self._body.pending:
            return self._not_a_call(True)
        self._state = _State.AFTER
        return True

    def _after(self) -> bool:
        self._at = _end(_SPACE, self._text, self._at)
        rest = self._text[self._at :]
        if not rest:
            return False
        for text in (self._family.closing, self._separator):
            if text and rest.startswith(text):
                self._at += len(text)
                return True
            if text and text.startswith(rest):
                return False
        self._state = _State.SEEK
        self._fresh = self._family.bare
        return True

    def _enter(self, end: int, state: _State, *, name: str | None = None) -> bool:
        """Hold what stands before `end` and go on there."""
        self._held += self._text[self._at : end]
        self._at = end
        self._state = state
        if state is _State.BODY:
            wrapped = self._family.layout is Layout.WRAPPED
            self._body = Body(self, wrapped=wrapped, name=name)
        return True

    def _not_a_call(self, has_body: bool = False) -> bool:
        self._parsed.text += self._held
        if has_body and self._body.pending:
            self._parsed.text += self._body.held
        self._held = ""
        self._state = _State.SEEK
        self._fresh = False
        return True

    def _release(self, end: int) -> None:
        """What stands before `end` is content."""
        self._parsed.text += self._text[self._at : end]
        self._at = max(self._at, end)

    def _space_before(self, end: int) -> int:
        """Where the white space begins that would be dropped if a call came at `end`."""
        part = self._text[self._at : end]
        return end - min(len(part) - len(part.rstrip(" \t\r\n")), MAX_SPACE)

    def _possible_opener(self) -> int:
        """Length of the longest end of the text with which an opener begins."""
        rest = self._text[self._at :]
        longest = max(map(len, self._openers), default=1)
        for length in range(min(longest - 1, len(rest)), 0, -1):
            if any(opener.startswith(rest[-length:]) for opener in self._openers):
                return length
        return 0


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at

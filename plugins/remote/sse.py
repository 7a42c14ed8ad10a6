"""Server-sent events out of bytes, however the network cuts them. Knows nothing of what they say.

After the WHATWG's "Interpreting an event stream": lines end with CR, LF or both; an empty line ends
an event; `data` lines of one event are joined by LF. Other fields and comments are skipped.
"""

from __future__ import annotations

import re

EVENT_LIMIT = 1 << 20  # bytes of one line, and of one event
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class EventError(Exception):
    """What came is no stream of events, or one of them is too long."""


class Events:
    """`feed` gives the data of each event that is complete."""

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._limit = limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises `EventError`; holds no more than one line and one event of `limit` bytes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        events = []
        *lines, rest = _LINE_END.split(chunk)
        for part in lines:
            line = part
            if self._line:
                self._grow(part)
                line = bytes(self._line)
                self._line.clear()
            if (event := self._take(line)) is not None:
                events.append(event)
        self._after_cr = chunk.endswith(b"\r")
        self._grow(rest)
        return events

    def _grow(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._limit:
            raise EventError(f"a line is longer than {self._limit} bytes")

    def _take(self, line: bytes) -> bytes | None:
        """The data of the event that `line` ends, if it ends one."""
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._size += len(value) + 1
            if self._size > self._limit:
                raise EventError(f"an event is longer than {self._limit} bytes")
            self._data.append(value)
        return None

    @property
    def pending(self) -> bytes:
        """What has come of an event whose end has not: some servers leave the last empty line
        out."""
        name, _, value = bytes(self._line).partition(b":")
        last = [value.removeprefix(b" ")] if name == b"data" else []
        return b"\n".join([*self._data, *last])

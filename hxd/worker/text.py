"""From tokens' bytes to text that may be sent: whole characters, and nothing past a stop string.

Pure: knows neither models nor frames. Feeding the same tokens always gives the same pieces, which
is what lets another worker take over in the middle of a stream.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Joins the bytes of one sequence's tokens.

    Text is held back while it might be the beginning of a stop string, and bytes while they might
    be the beginning of a character; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [stop for stop in stops if stop]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.stopped = False

    @property
    def held(self) -> int:
        """Characters held back."""
        return len(self._held)

    @property
    def holds(self) -> bool:
        """Whether anything is held back, be it part of a character."""
        return bool(self._held or self._decoder.getstate()[0])

    def feed(self, data: bytes) -> str:
        """Text that is safe to send now. Sets `stopped` when a stop string was completed: the text
        ends before the earliest one, and nothing may follow."""
        text = self._decoder.decode(data)
        if not self._stops:
            return text
        return self._release(self._held + text, final=False) if text else ""

    def finish(self) -> str:
        """The rest, when the sequence ends; nothing after a stop string."""
        if self.stopped:
            return ""
        return self._release(self._held + self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = 0 if final else self._possible_start(text)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0

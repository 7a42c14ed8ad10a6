"""What one sequence says: from its tokens to text and tool calls that may be sent.

Feeding the same tokens always gives the same pieces, which is what lets another worker take over
in the middle of a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hxd.wire import CallDelta
from hxd.worker.text import TextAssembler
from hxd.worker.tools.parse import Parser


@dataclass
class Released:
    """What may be sent since the last time."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class Output:
    """`spell` gives a token's bytes. `parser` finds the tool calls, where tools were offered."""

    def __init__(
        self, spell: Callable[[int], bytes], stops: Sequence[str], parser: Parser | None
    ) -> None:
        self._spell = spell
        self._assembler = TextAssembler(stops)
        self._parser = parser
        # Tokens that wait for their text, each as the number of characters before it.
        self._waiting: deque[int] = deque()
        self._released = 0
        self._ready = Released()

    @property
    def stopped(self) -> bool:
        """A stop string was completed; nothing may follow."""
        return self._assembler.stopped

    @property
    def held(self) -> int:
        """How many of the last tokens have not had any of their text released; their logprobs
        wait for it."""
        return len(self._waiting)

    @property
    def called(self) -> bool:
        return self._parser is not None and self._parser.called

    def feed(self, token: int) -> None:
        self._waiting.append(self._released + self._assembler.held)
        self._release(self._assembler.feed(self._spell(token)))

    def finish(self) -> None:
        """The sequence has ended: what was held back may go, unless a stop string came."""
        self._release(self._assembler.finish())
        if self._parser is not None:
            parsed = self._parser.finish()
            self._ready.text += parsed.text
            self._ready.calls += parsed.calls

    def take(self) -> Released:
        ready, self._ready = self._ready, Released()
        return ready

    def _release(self, text: str) -> None:
        self._released += len(text)
        while self._waiting and (
            self._waiting[0] < self._released
            or not (self._assembler.holds or self._assembler.stopped)
        ):
            self._waiting.popleft()
        if self._parser is None:
            self._ready.text += text
        elif text:
            parsed = self._parser.feed(text)
            self._ready.text += parsed.text
            self._ready.calls += parsed.calls

"""One completion as it arrives: chunks in, deltas out, and at its end the `Done`. Pure."""

from __future__ import annotations

from itertools import zip_longest
from typing import TypeVar

from hxd import wire

from . import logprobs
from .calls import Calls, TooManyCalls
from .faults import Failure, Reader
from .shape import Choice, Completion, Said, ShapeError, completion

DONE = b"[DONE]"
TEXT_PART = 100_000  # characters of a delta: 400 kB at most, so that it fits into a frame
LOGPROBS_PART = 256  # tokens of a delta, each with some twenty alternatives
ANSWER_LIMIT = 16 << 20  # characters; longer than any context, so the server has run away

_FINISHES = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    # Spellings of others.
    "function_call": "tool_calls", "max_tokens": "length", "eos": "stop", "eos_token": "stop",
    "end_turn": "stop", "stop_sequence": "stop",
}  # fmt: skip
_BROKEN = frozenset({"error", "abort", "cancelled", "canceled"})


P = TypeVar("P", str, list[wire.Logprob])


class Answer:
    """`finish` is set once the server has said why the answer ends, `closed` once nothing more will
    come. `progress` counts what arrived that has a meaning: emptiness is no sign of life."""

    def __init__(self, id: int, reader: Reader) -> None:
        self._id = id
        self._reader = reader
        self._calls = Calls()
        self._size = 0
        self._deltas = 0
        self._prompt = 0
        self._cached = 0
        self._completion: int | None = None
        self.finish: str | None = None
        self.closed = False
        self.progress = 0

    def event(self, data: bytes) -> list[wire.Delta]:
        """Deltas of one event's data. Raises `Failure` or `Refused`."""
        if data.strip() == DONE:
            self.closed = True
            return []
        return self.take(self.decode(data))

    def decode(self, data: bytes) -> Completion:
        try:
            return completion(data)
        except ShapeError as error:
            raise Failure(
                f"the remote server {self._reader.place} sent what is no completion: {error}"
            ) from None

    def take(self, chunk: Completion) -> list[wire.Delta]:
        if chunk.error is not None:
            raise self._reader.event(chunk.error)
        deltas: list[wire.Delta] = []
        for choice in chunk.choices or ():
            if choice.index == 0:
                deltas += self._choice(choice)
        self._usage(chunk)
        self._deltas += len(deltas)
        self.progress += len(deltas)
        return deltas

    def _choice(self, choice: Choice) -> list[wire.Delta]:
        if choice.finish_reason is not None:
            if choice.finish_reason in _BROKEN:
                raise Failure(
                    f"the remote server {self._reader.place} gave the answer up: "
                    f"finish_reason {choice.finish_reason}"
                )
            self.finish = _FINISHES.get(choice.finish_reason, "stop")
            self.progress += 1
        said = choice.delta or choice.message or Said()
        text = choice.text or said.text
        try:
            calls = [self._calls.take(call) for call in said.tool_calls or ()]
        except TooManyCalls as error:
            raise Failure(f"the remote server {self._reader.place} sent {error}") from None
        self._grow(len(text) + len(said.thought) + sum(len(call.arguments) for call in calls))
        return deltas(self._id, text, said.thought, calls, logprobs.read(choice.logprobs))

    def _grow(self, more: int) -> None:
        self._size += more
        if self._size > ANSWER_LIMIT:
            raise Failure(
                f"the remote server {self._reader.place} sent over {ANSWER_LIMIT} characters; "
                "the answer was ended"
            )

    def _usage(self, chunk: Completion) -> None:
        usage = chunk.usage
        if usage is None:
            return
        self._prompt = _count(usage.prompt_tokens) or self._prompt
        if usage.completion_tokens is not None:
            self._completion = _count(usage.completion_tokens)
        if usage.prompt_tokens_details is not None:
            self._cached = _count(usage.prompt_tokens_details.cached_tokens)

    def done(self) -> wire.Done:
        """Where the server counts nothing, each delta counts as a token."""
        completion = self._deltas if self._completion is None else self._completion
        return wire.Done(self._id, self.finish or "stop", self._prompt, completion, self._cached)


def _count(value: int | None) -> int:
    return min(max(0, value or 0), 1 << 31)


def deltas(
    id: int,
    text: str,
    reasoning: str,
    calls: list[wire.CallDelta],
    scores: list[wire.Logprob],
) -> list[wire.Delta]:
    """As many deltas as it takes for each to fit into a frame: one, nearly always."""
    made = [
        wire.Delta(id, [], part or "", [], scores_part or [], thought or "")
        for part, thought, scores_part in zip_longest(
            _parts(text, TEXT_PART), _parts(reasoning, TEXT_PART), _parts(scores, LOGPROBS_PART)
        )
    ]
    for call in calls:
        first, *rest = _parts(call.arguments, TEXT_PART) or [""]
        pieces = [wire.CallDelta(call.index, call.id, call.name, first)]
        pieces += [wire.CallDelta(call.index, None, None, part) for part in rest]
        made += [wire.Delta(id, [], "", [piece]) for piece in pieces]
    return made


def _parts(whole: P, size: int) -> list[P]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]

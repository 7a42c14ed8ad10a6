"""However often a sequence is cut, its client reads every part once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hxd import wire
from hxd.daemon.request.told import Told

ECHO = ["The quick ", "brown", " fox"]
ANSWER = ["jumps ", "over", "", " the ", "dog"]


def logprob(token: int) -> wire.Logprob:
    return wire.Logprob(token, b"x", -float(token))


def said(resume: list[int]) -> list[wire.Delta]:
    """What a worker says that is given these tokens: the echo and the prompt's logprobs first, if
    nothing has been generated yet; then a token each. The third one's text comes with the fourth's,
    and its logprob waits for it."""
    deltas = []
    if not resume:
        deltas += [wire.Delta(1, [], text) for text in ECHO]
        deltas += [wire.Delta(1, [], "", [], [logprob(100), logprob(101)])]
        deltas += [wire.Delta(1, [], "", [], [logprob(102)])]
    for number in range(len(resume), len(ANSWER)):
        held = 1 if number == 2 else 0
        deltas.append(wire.Delta(1, [number], ANSWER[number], [], [logprob(number)], held=held))
    return deltas


def read(cuts: list[int]) -> tuple[str, list[int]]:
    """Text and logprobs that the client has in the end, when each worker but the last is lost after
    so many deltas."""
    told = Told()
    shown: list[wire.Delta] = []
    for cut in [*cuts, 1000]:
        shown += [told.take(delta) for delta in said(told.tokens)[:cut]]
        told.again()
    text = "".join(delta.text for delta in shown)
    return text, [one.token for delta in shown for one in delta.logprobs]


WHOLE = "".join(ECHO + ANSWER), [100, 101, 102, *range(len(ANSWER))]


def test_an_undisturbed_sequence_is_told_as_it_is_said() -> None:
    assert read([]) == WHOLE


@given(st.lists(st.integers(0, 12), max_size=6))
def test_cuts_lose_nothing_and_double_nothing(cuts: list[int]) -> None:
    assert read(cuts) == WHOLE


def test_who_begins_from_nothing_has_nothing() -> None:
    told = Told()
    for delta in said([]):
        told.take(delta)
    told.forget()
    assert told == Told()

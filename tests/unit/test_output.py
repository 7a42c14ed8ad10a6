"""What one sequence says: text, calls and logprobs come together, however tokens cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.wire import CallDelta, Tool, Tools
from hxd.worker.output import Output
from hxd.worker.tools.family import GENERIC, HERMES, Family
from hxd.worker.tools.parse import Parser

TOOLS = Tools([Tool("f")])


@dataclass
class Told:
    """What a client may read since the last time; `tokens` are those whose logprobs it gets."""

    text: str
    calls: list[CallDelta]
    tokens: list[int]


class Listener:
    """Does with `held` what the daemon does."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pending: list[int] = []

    def heard(self, *tokens: int) -> Told:
        self._pending += tokens
        shown = len(self._pending) - self._output.held
        told, self._pending = self._pending[:shown], self._pending[shown:]
        released = self._output.take()
        return Told(released.text, released.calls, told)


def spoken(
    pieces: Sequence[bytes],
    *,
    stops: Sequence[str] = (),
    family: Family | None = None,
    finish: bool = True,
) -> tuple[list[Told], Output]:
    """What was released after each piece, and at the end."""
    parser = None if family is None else Parser(family, TOOLS, seed=1)
    output = Output(lambda token: pieces[token], stops, parser)
    listener = Listener(output)
    released = []
    for token in range(len(pieces)):
        output.feed(token)
        released.append(listener.heard(token))
        if output.stopped:
            break
    if finish:
        output.finish()
        released.append(listener.heard())
    return released, output


def joined(released: Sequence[Told]) -> tuple[str, str, list[int]]:
    """Text, the calls' arguments, and the tokens whose logprobs came."""
    return (
        "".join(one.text for one in released),
        "".join(call.arguments for one in released for call in one.calls),
        [token for one in released for token in one.tokens],
    )


def test_a_logprob_comes_with_the_text_of_its_token() -> None:
    released, _ = spoken([b"one", b" two", b""], finish=False)
    assert [one.text for one in released] == ["one", " two", ""]
    assert [one.tokens for one in released] == [[0], [1], [2]]


def test_logprobs_wait_while_a_character_is_not_complete() -> None:
    released, _ = spoken(["é".encode()[:1], "é".encode()[1:], b"x"])
    assert [one.text for one in released] == ["", "é", "x", ""]
    assert [one.tokens for one in released] == [[], [0, 1], [2], []]


def test_logprobs_wait_while_a_stop_string_may_have_begun() -> None:
    released, _ = spoken([b"a", b"S", b"T", b"x"], stops=["STOP"])
    assert [one.text for one in released] == ["a", "", "", "STx", ""]
    assert [one.tokens for one in released] == [
        [0],
        [],
        [],
        [1, 2, 3],
        [],
    ]


def test_a_stop_string_takes_the_logprobs_of_its_own_tokens_with_it() -> None:
    released, output = spoken([b"ab", b"c ST", b"O", b"P"], stops=["STOP"])
    assert output.stopped
    # The second token has text before the stop string.
    assert joined(released) == ("abc ", "", [0, 1])


def test_an_end_in_the_middle_of_a_character_releases_what_waits() -> None:
    released, _ = spoken([b"a", "é".encode()[:1]])
    assert joined(released) == ("a\ufffd", "", [0, 1])


@given(
    st.text(max_size=30),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
    st.lists(st.text("abST", min_size=1, max_size=3), max_size=2),
)
def test_no_logprob_is_lost_or_doubled_however_the_text_is_cut(
    text: str, sizes: list[int], stops: list[str]
) -> None:
    data = text.encode("utf-8", "replace")
    pieces, at = [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
    released, output = spoken(pieces, stops=stops)
    said, _, tokens = joined(released)
    assert tokens == list(range(len(tokens)))
    covered = b"".join(pieces[: len(tokens)])
    if not output.stopped:
        assert len(tokens) == len(pieces)
        assert said == data.decode()
    elif said:
        assert covered.decode("utf-8", "replace").startswith(said)
        assert not b"".join(pieces[: len(tokens) - 1]).decode("utf-8", "replace").startswith(said)
    else:
        assert tokens == []


@pytest.mark.parametrize(
    ("family", "spelled"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"x": [1]}}\n</tool_call>'),
        (GENERIC, '{"tool_calls": [{"name": "f", "arguments": {"x": [1]}}]}'),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_is_no_text_and_keeps_its_logprobs(family: Family, spelled: str, size: int) -> None:
    data = spelled.encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    released, output = spoken(pieces, family=family)
    assert joined(released) == ("", '{"x": [1]}', list(range(len(pieces))))
    assert output.called
    first = next(call for one in released for call in one.calls)
    assert (first.index, first.name) == (0, "f")


def test_an_answer_without_a_call_has_not_called() -> None:
    released, output = spoken([b'{"tool', b'": 5}'], family=GENERIC)
    assert joined(released) == ('{"tool": 5}', "", [0, 1])
    assert not output.called


def test_another_worker_gets_to_the_same_state_from_the_same_tokens() -> None:
    pieces = [
        b"say ",
        b"<tool",
        b"_call>",
        b'{"name": "f"',
        b', "arguments": {"x"',
        b": 1}}",
        b"</",
    ]
    family = HERMES
    for cut in range(len(pieces) + 1):
        first = Output(lambda token: pieces[token], ["STOP"], Parser(family, TOOLS, seed=1))
        second = Output(lambda token: pieces[token], ["STOP"], Parser(family, TOOLS, seed=1))
        told = Listener(first)
        released = []
        for token in range(cut):
            first.feed(token)
            second.feed(token)
            released.append(told.heard(token))
        # What the first one sent is not sent again.
        second.take()
        assert second.held == first.held
        told._output = second
        for token in range(cut, len(pieces)):
            second.feed(token)
            released.append(told.heard(token))
        second.finish()
        released.append(told.heard())
        text, arguments, tokens = joined(released)
        assert tokens == list(range(len(pieces)))
        assert (text, arguments) == ("say", '{"x": 1}')
        starts = [call for one in released for call in one.calls if call.id is not None]
        assert [type(call) for call in starts] == [CallDelta]

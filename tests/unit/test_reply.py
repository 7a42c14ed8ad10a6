"""OpenAI's words for what workers say about single tokens and calls."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from hxd import wire
from hxd.daemon.request.call import Piece
from hxd.daemon.request.reply import Choice, Chunks, Logprobs, Offsets, Shape, Usage


def offsets(text: str, pieces: list[bytes]) -> list[int]:
    found = Offsets()
    found.feed(text)
    return [found.of(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("one two", [b"one", b" two"], [0, 3]),
        ("né!", [b"n", b"\xc3", b"\xa9", b"!"], [0, 1, 1, 2]),
        ("a\ufffdb", [b"a", b"\xff", b"b"], [0, 1, 2]),
        # A start token has no part in the text, and its tokenizer puts a blank before the word.
        ("What is", [b"<s>", b" What", b" is"], [0, 0, 4]),
        ("ab", [b"a", b"</s>", b"b"], [0, 1, 1]),
        ("", [b"<s>"], [0]),
    ],
)
def test_an_offset_counts_the_characters_of_the_text(
    text: str, pieces: list[bytes], expected: list[int]
) -> None:
    assert offsets(text, pieces) == expected


def test_offsets_go_on_through_a_stream() -> None:
    found = Offsets()
    got = []
    for text, piece in [("né", b"n"), ("", "é".encode()), ("", b""), ("x", b"x"), ("yz", b"yz")]:
        found.feed(text)
        got.append(found.of(piece))
    assert got == [0, 1, 2, 2, 3]


def text_logprobs(*found: wire.Logprob, text: str = "") -> dict[str, Any]:
    rendered = Logprobs(chat=False).render(found, text)
    assert rendered is not None
    return rendered


def test_of_alternatives_with_the_same_text_the_likelier_stays() -> None:
    top = [(1, b"a", -0.1), (2, b"b", -1.0), (3, b"a", -5.0)]
    rendered = text_logprobs(wire.Logprob(1, b"a", -0.1, top))
    assert rendered["top_logprobs"] == [{"a": -0.1, "b": -1.0}]


def test_alternatives_that_are_parts_of_characters_stay_apart() -> None:
    top = [(1, b"\xc3", -0.1), (2, b"\xe2", -1.0)]
    rendered = text_logprobs(wire.Logprob(1, b"\xc3", -0.1, top))
    assert rendered["tokens"] == [r"bytes:\xc3"]
    assert rendered["top_logprobs"] == [{r"bytes:\xc3": -0.1, r"bytes:\xe2": -1.0}]


@pytest.mark.parametrize("chat", [True, False])
def test_a_probability_of_nothing_is_a_number_in_json(chat: bool) -> None:
    nothing = wire.Logprob(1, b"a", -math.inf, [(1, b"a", -math.inf)])
    rendered = Logprobs(chat=chat).render([nothing], "a")
    assert json.loads(json.dumps(rendered, allow_nan=False)) == rendered
    assert "-9999.0" in json.dumps(rendered)


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]


def test_parts_of_one_call_in_one_chunk_come_as_one() -> None:
    calls = [
        wire.CallDelta(0, "id0", "f", ""),
        wire.CallDelta(0, None, None, '{"a"'),
        wire.CallDelta(0, None, None, ": 1}"),
        wire.CallDelta(1, "id1", "g", ""),
        wire.CallDelta(1, None, None, "{}"),
    ]
    shape = Shape(chat=True, id="1", created=0, model="m")
    chunks = Chunks(shape, Usage(1), with_usage=False, disclose=dict)
    _, chunk = events(chunks.of([Piece(0, "", calls=calls)]))
    assert chunk["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "id": "id0", "type": "function",
         "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"index": 1, "id": "id1", "type": "function",
         "function": {"name": "g", "arguments": "{}"}},
    ]  # fmt: skip
    # What was told goes into the whole answer as it came.
    choice = Choice(0)
    choice.add(Piece(0, "", calls=calls))
    assert [call["function"]["arguments"] for call in choice.message()["tool_calls"]] == [
        '{"a": 1}',
        "{}",
    ]


def test_a_later_part_of_a_call_names_nothing_again() -> None:
    shape = Shape(chat=True, id="1", created=0, model="m")
    chunks = Chunks(shape, Usage(1), with_usage=False, disclose=dict)
    chunks.of([Piece(0, "", calls=[wire.CallDelta(0, "id", "f", "{")])])
    [chunk] = events(chunks.of([Piece(0, "", calls=[wire.CallDelta(0, None, None, "}")])]))
    assert chunk["choices"][0]["delta"] == {
        "tool_calls": [{"index": 0, "function": {"arguments": "}"}}]
    }


def test_the_cached_tokens_of_several_choices_are_those_of_the_first_reader() -> None:
    usage = Usage(choices_per_prompt=2)
    for index, cached in ((0, 0), (1, 90), (2, 40), (3, 100)):
        usage.add(Piece(index, "", "stop", 100, 5, cached))
    assert usage.body() == {
        "prompt_tokens": 200,
        "completion_tokens": 20,
        "total_tokens": 220,
        "prompt_tokens_details": {"cached_tokens": 40},
    }

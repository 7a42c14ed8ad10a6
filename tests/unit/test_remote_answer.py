"""What a remote server's chunks, vectors and tokens become."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd import wire
from plugins.remote import tokens, vectors
from plugins.remote.answer import Answer, deltas
from plugins.remote.calls import MAX_CALLS, Calls, TooManyCalls
from plugins.remote.faults import Failure, Reader, Refused
from plugins.remote.shape import Call, Function, ShapeError

READER = Reader("h:1", "there", str)


def chunk(answer: Answer, value: Any) -> list[wire.Delta]:
    return answer.event(json.dumps(value).encode())


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **fields}]}


def one(**fields: Any) -> wire.Delta:
    """The only delta of an answer with only this choice."""
    (delta,) = chunk(Answer(3, READER), choice(**fields))
    return delta


@pytest.mark.parametrize(
    "fields",
    [
        {"delta": {"content": "hi"}},
        {"delta": {"refusal": "hi", "content": None}},
        {"delta": {"content": [{"type": "thinking"}, {"type": "text", "text": "hi"}]}},
        {"message": {"role": "assistant", "content": "hi"}},
        {"text": "hi"},
        {"text": "hi", "finish_reason": None, "logprobs": None, "new": {"x": 1}},
    ],
)
def test_text_is_found_wherever_servers_put_it(fields: dict[str, Any]) -> None:
    assert one(**fields) == wire.Delta(3, [], "hi")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_two_names(name: str) -> None:
    assert one(delta={name: "hm", "content": ""}).reasoning == "hm"


def test_nothing_gives_no_delta_and_counts_as_no_progress() -> None:
    answer = Answer(3, READER)
    for value in (
        {},
        {"choices": None},
        {"choices": []},
        choice(delta={"role": "assistant", "content": ""}),
        choice(delta={"content": None}),
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        {"usage": {"prompt_tokens": 5}},
    ):
        assert chunk(answer, value) == []
    assert answer.progress == 0


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"),
     ("content_filter", "content_filter"), ("eos", "stop"), ("max_tokens", "length"),
     ("function_call", "tool_calls"), ("something new", "stop")],
)  # fmt: skip
def test_reasons_of_the_end(reason: str, finish: str) -> None:
    answer = Answer(3, READER)
    chunk(answer, choice(delta={}, finish_reason=reason))
    assert answer.done() == wire.Done(3, finish, 0, 0)


def test_counts_are_the_servers_last_ones() -> None:
    answer = Answer(3, READER)
    chunk(answer, {**choice(text="a"), "usage": {"prompt_tokens": 5, "completion_tokens": 1}})
    details = {"cached_tokens": 4}
    chunk(
        answer,
        {
            **choice(text="b", finish_reason="stop"),
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 9, "prompt_tokens_details": details,
            },
        },
    )  # fmt: skip
    chunk(answer, {"choices": [], "usage": None})
    assert answer.done() == wire.Done(3, "stop", 5, 9, 4)


def test_counts_that_make_no_sense_are_bounded() -> None:
    answer = Answer(3, READER)
    usage = {"prompt_tokens": -5, "completion_tokens": 1 << 60, "prompt_tokens_details": {}}
    chunk(answer, {"usage": usage})
    assert answer.done() == wire.Done(3, "stop", 0, 1 << 31)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'"x"', b'{"choices": {}}', b'{"choices": [{"delta": 5}]}',
     b'{"choices": [{"delta": {"content": 5}}]}', b'{"usage": {"prompt_tokens": "x"}}',
     b'{"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]}', b"\xff",
     b'{"choices": [{"text": NaN}]}'],
)  # fmt: skip
def test_what_is_no_completion_says_so(data: bytes) -> None:
    with pytest.raises(Failure, match=r"the remote server h:1 sent what is no completion"):
        Answer(3, READER).event(data)


@given(st.binary())
def test_no_bytes_raise_anything_but_a_failure(data: bytes) -> None:
    with contextlib.suppress(Failure, Refused):
        Answer(3, READER).event(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "index", "error", "message", "code",
                 "usage", "logprobs", "tokens", "top_logprobs", "finish_reason", "function"]
            ),
            inner,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_json_raises_anything_but_a_failure(value: Any) -> None:
    with contextlib.suppress(Failure, Refused):
        for delta in chunk(Answer(3, READER), value):
            wire.encode(wire.Step([delta]))


# Logprobs.


def test_logprobs_of_a_chat() -> None:
    scores = {
        "content": [
            {
                "token": "ä",
                "logprob": -0.25,
                "bytes": [195],
                "top_logprobs": [
                    {"token": "b", "logprob": -2.0, "bytes": None},
                    {"token": "ä", "logprob": -0.25, "bytes": [195]},
                ],
            },
            {"token": "x", "logprob": -12345.0, "bytes": [999]},
        ]
    }
    assert one(delta={"content": "ä"}, logprobs=scores).logprobs == [
        wire.Logprob(-1, b"\xc3", -0.25, [(-1, b"\xc3", -0.25), (-1, b"b", -2.0)]),
        wire.Logprob(-1, b"x", -12345.0),
    ]


def test_logprobs_of_a_text_completion() -> None:
    scores = {
        "tokens": ["a", "bytes:\\xc3\\xa4", "c"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"x": -3.0, "y": -1.0}],
        "text_offset": [0, 1, 2],
    }
    assert one(text="aäc", logprobs=scores).logprobs == [
        wire.Logprob(-1, b"a", None),
        wire.Logprob(-1, b"\xc3\xa4", -1.0, [(-1, b"y", -1.0), (-1, b"x", -3.0)]),
        wire.Logprob(-1, b"c", None),
    ]


# Tool calls.


def part(
    index: int | None = None, id: str | None = None, name: str | None = None, text: Any = None
) -> Call:
    return Call(index, id, Function(name, text))


def test_calls_grow_by_index() -> None:
    calls = Calls()
    assert calls.take(part(0, "a", "f", "")) == wire.CallDelta(0, "a", "f", "")
    assert calls.take(part(0, None, None, "{}")) == wire.CallDelta(0, None, None, "{}")
    assert calls.take(part(1, "b", "g", "{")) == wire.CallDelta(1, "b", "g", "{")
    assert calls.take(part(1, "", "", "}")) == wire.CallDelta(1, None, None, "}")
    assert calls.take(part(0, "a", "f", " ")) == wire.CallDelta(0, None, None, " ")


def test_calls_that_all_have_the_index_0_are_told_apart_by_their_ids() -> None:
    calls = Calls()
    taken = [calls.take(part(0, id, "f", {"n": 1})) for id in "abc"]
    assert [(call.index, call.id) for call in taken] == [(0, "a"), (1, "b"), (2, "c")]
    assert {call.arguments for call in taken} == {'{"n":1}'}


def test_calls_without_index_and_id_get_both() -> None:
    calls = Calls()
    first = calls.take(part(None, None, "f", "{"))
    assert calls.take(part(None, None, None, "}")) == wire.CallDelta(0, None, None, "}")
    second = calls.take(part(None, None, "g", "{}"))
    assert (first.index, second.index) == (0, 1)
    assert first.id
    assert second.id
    assert first.id != second.id


def test_calls_have_a_bound() -> None:
    calls = Calls()
    for number in range(MAX_CALLS):
        calls.take(part(number, f"c{number}", "f"))
    with pytest.raises(TooManyCalls):
        calls.take(part(None, "one more", "f"))


# Frames.


@given(
    st.text(max_size=20),
    st.integers(1, 60_000),
    st.integers(0, 600),
    st.lists(st.integers(0, 250_000), max_size=3),
)
def test_deltas_fit_into_frames_and_lose_nothing(
    text: str, times: int, scored: int, lengths: list[int]
) -> None:
    scores = [wire.Logprob(-1, b"abcdefgh", -1.0, [(-1, b"abcdefgh", -1.0)] * 20)] * scored
    calls = [wire.CallDelta(i, f"c{i}", "f", "x" * size) for i, size in enumerate(lengths)]
    made = deltas(3, text * times, text * times, calls, scores)
    for delta in made:
        assert len(wire.encode(wire.Step([delta]))) < wire.TO_DAEMON_LIMIT
    assert "".join(delta.text for delta in made) == text * times
    assert "".join(delta.reasoning for delta in made) == text * times
    assert [score for delta in made for score in delta.logprobs] == scores
    for call in calls:
        parts = [one for delta in made for one in delta.calls if one.index == call.index]
        assert "".join(one.arguments for one in parts) == call.arguments
        assert [(one.id, one.name) for one in parts] == [
            (call.id, call.name), *[(None, None)] * (len(parts) - 1),
        ]  # fmt: skip


# Vectors.


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def packed(*values: float) -> str:
    return base64.b64encode(floats(*values)).decode()


def test_vectors_come_as_numbers_or_base64_in_any_order() -> None:
    answer = {
        "data": [
            {"index": 1, "embedding": packed(0.5, -1.0)},
            {"index": 0, "embedding": [1, 2.5]},
        ],
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    rows, count = vectors.embeddings(json.dumps(answer).encode(), 2)
    assert (rows, count) == ([floats(1, 2.5), floats(0.5, -1.0)], 6)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "0 vectors for 2 inputs"),
        ([{"index": 0, "embedding": [1]}], "1 vectors for 2 inputs"),
        ([{"index": 0, "embedding": [1]}] * 2, "input 0"),
        ([{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}], "input 2"),
        ([{"index": 0, "embedding": [1]}, {"index": -1, "embedding": [1]}], "input -1"),
        ([{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}], "dimensions"),
        ([{"embedding": []}, {"embedding": []}], "dimension 0"),
        ([{"embedding": [1e300]}, {"embedding": [1]}], "not finite"),
        ([{"embedding": packed(math.nan)}, {"embedding": packed(1)}], "not finite"),
        ([{"embedding": "!!"}, {"embedding": "!!"}], "not base64"),
        ([{"embedding": "AAA="}, {"embedding": "AAA="}], "2 bytes"),
        ([{"embedding": [0] * 70_000}] * 2, "dimension 70000"),
        ([{"embedding": {}}] * 2, "Expected"),
    ],
)
def test_vectors_that_are_none_are_refused(rows: list[Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        vectors.embeddings(json.dumps({"data": rows}).encode(), 2)


def test_scores_are_put_into_the_order_of_the_documents() -> None:
    for name, key in (("results", "relevance_score"), ("data", "score")):
        answer = {name: [{"index": 1, key: 0.5}, {"index": 0, key: -2}]}
        assert vectors.ranking(json.dumps(answer).encode(), 2) == ([floats(-2), floats(0.5)], 0)


@pytest.mark.parametrize(
    "results",
    [[], [{"index": 0, "score": 1}], [{"index": 0, "score": 1}] * 2,
     [{"index": 0, "score": 1}, {"index": 1}], [{"index": 0, "score": 1}, {"index": 9, "score": 1}],
     [{"index": 0, "score": 1}, {"index": 1, "score": 1e300}]],
)  # fmt: skip
def test_scores_that_are_none_are_refused(results: list[Any]) -> None:
    with pytest.raises(ShapeError):
        vectors.ranking(json.dumps({"results": results}).encode(), 2)


@given(st.integers(1, 3000), st.sampled_from([1, 384, 4096, 65536]))
def test_vectors_fit_into_frames_in_their_order(count: int, dimension: int) -> None:
    count = min(count, 1 + (1 << 20) // dimension)
    row = bytes(4 * dimension)
    start = 0
    for frame in vectors.frames(3, [row] * count):
        assert len(wire.encode(frame)) < wire.TO_DAEMON_LIMIT
        assert (frame.start, frame.dimension) == (start, dimension)
        start += len(frame.data) // (4 * dimension)
    assert start == count


# Tokens.


def test_tokens_come_with_pieces_where_the_server_tells_them() -> None:
    llama = {"tokens": [{"id": 5, "piece": "hä"}, {"id": 6, "piece": [195]}]}
    assert tokens.tokenized(json.dumps(llama).encode()) == ([5, 6], ["hä".encode(), b"\xc3"])
    vllm = b'{"count": 2, "max_model_len": 9, "tokens": [5, 6], "token_strs": null}'
    assert tokens.tokenized(vllm) == ([5, 6], [b"", b""])
    assert tokens.tokenized(b'{"tokens": []}') == ([], [])


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"tokens": [-1]}', b'{"tokens": ["a"]}', b'{"tokens": [4294967296]}',
     b'{"tokens": [{"id": 1, "piece": [256]}]}',
     b'{"tokens": [{"id": 1, "piece": "' + b"x" * 2000 + b'"}]}'],
)  # fmt: skip
def test_tokens_that_are_none_are_refused(body: bytes) -> None:
    with pytest.raises(ShapeError):
        tokens.tokenized(body)


@pytest.mark.parametrize("name", ["content", "prompt", "text"])
def test_a_text_of_tokens_has_several_names(name: str) -> None:
    assert tokens.detokenized(json.dumps({name: "hi"}).encode()) == "hi"
    with pytest.raises(ShapeError):
        tokens.detokenized(b'{"other": "hi"}')


@given(st.integers(0, 100_000), st.sampled_from([0, 3, 1024]))
def test_tokens_fit_into_frames(count: int, size: int) -> None:
    pieces = [b"x" * size] * count
    frames = list(tokens.frames(3, [7] * count, pieces))
    assert frames
    assert all(len(wire.encode(frame)) < wire.TO_DAEMON_LIMIT for frame in frames)
    assert sum(len(frame.tokens) for frame in frames) == count
    assert [piece for frame in frames for piece in frame.pieces] == pieces

"""What may stand in `input`, and what a client reads when something else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hxd.daemon.request import receive_inputs
from hxd.errors import CallerError

GOOD = {
    "text": ("x", ["x"]),
    "empty text": ("", [""]),
    "texts": (["a", "b"], ["a", "b"]),
    "token ids": ([1, 2], [[1, 2]]),
    "lists of token ids": ([[1], [2, 3]], [[1], [2, 3]]),
    "texts and token ids": (["a", [2, 3]], ["a", [2, 3]]),
    "named text": ({"prompt_string": "a"}, ["a"]),
    "text in parts": (
        ["a", {"content": [{"type": "text", "text": "b "}, {"type": "text", "text": "c"}]}],
        ["a", "b c"],
    ),
}
BAD = {
    "nothing": ([], "must not be empty"),
    "no tokens": ([[1], []], r"input\[1\]: must not be empty"),
    "null": (None, "expected"),
    "number": (3, "expected"),
    "fraction": ([1, 2.5], r"input\[1\]: expected"),
    "truth": ([True], "expected"),
    "negative id": ([-1], "-?1|>= 0"),
    "id over 31 bits": ([1 << 31], "<"),
    "ids and a text": ([1, "a"], "nothing else"),
    "a text and an id": (["a", 1], r"input\[1\]: expected a string or a list"),
    "a text inside ids": ([[1, "a"]], "expected an integer"),
    "too many": (["a"] * 2049, "2049 inputs; the limit is 2048"),
    "ten thousand": (["a"] * 10_000, "10000 inputs; the limit is 2048"),
    "too many ids": ([1] * 300_001, "300001 token ids; the limit is 300000"),
    "image": ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type text"),
    "object": ({"text": "a"}, "prompt_string or content"),
}


def parse(value: Any, **more: Any) -> list[Any]:
    body = json.dumps({"input": value, **more}).encode()
    return list(receive_inputs.inputs(receive_inputs.parse_embeddings(body)))


@pytest.mark.parametrize("name", GOOD)
def test_an_input_may_have_any_of_the_known_shapes(name: str) -> None:
    given, inputs = GOOD[name]
    assert parse(given) == inputs


@pytest.mark.parametrize("name", BAD)
def test_another_input_is_refused_by_its_name(name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(CallerError, match=words) as caught:
        parse(given)
    assert (caught.value.status, caught.value.param) == (400, "input")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimensions", 0), ("dimensions", -3), ("dimensions", "x"), ("encoding_format", "hex"),
     ("encoding_format", 1), ("model", 5)],
)  # fmt: skip
def test_another_field_that_is_wrong_is_named(field: str, value: Any) -> None:
    with pytest.raises(CallerError) as caught:
        parse("x", **{field: value})
    assert caught.value.param == field


def test_documents_are_texts_or_objects_with_one() -> None:
    body = json.dumps({"query": "q", "documents": ["a", {"text": "b", "id": 7}]}).encode()
    assert receive_inputs.documents(receive_inputs.parse_rerank(body)) == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [{"query": "q"}, {"documents": ["a"]}, {"query": "q", "documents": []},
     {"query": "q", "documents": None}, {"query": "q", "documents": 123},
     {"query": "q", "documents": [1, 2]}, {"query": 1, "documents": ["a"]},
     {"query": "q", "documents": ["a"], "top_n": 0}, {"query": "q", "documents": ["a"] * 2049}],
)  # fmt: skip
def test_a_wrong_ranking_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(CallerError):
        receive_inputs.parse_rerank(json.dumps(body).encode())

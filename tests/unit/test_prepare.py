"""From requests to sequences, with a backend that records."""

from __future__ import annotations

from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import ModelInfo, RequestRefused
from hxd.worker.prepare import Prepared, Preparer, Refused

BOS, BEFORE, BEHIND, MIDDLE = 256, 257, 258, 259


class Bytes:
    """Bytes are tokens, and there are four control tokens."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [BOS] * add_special + list(text.encode())

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token]) if token < BOS else b""


def prepared(**fields: Any) -> Prepared:
    given = {"id": 1, "seed": 1, "max_tokens": 9} | fields
    info = ModelInfo(
        context=1000,
        vocab="bytes",
        infill=(BEFORE, BEHIND, MIDDLE),
        capabilities=frozenset({"generate", "logprobs", "constrain"}),
    )
    return Preparer(Bytes(), info).prepare(wire.Generate(**given))  # type: ignore[arg-type]


def test_a_suffix_puts_both_sides_behind_their_tokens() -> None:
    prompt = prepared(text="ab", suffix="c").sequence.prompt
    assert prompt == [BOS, BEFORE, *b"ab", BEHIND, *b"c", MIDDLE]


def test_an_infill_that_fits_only_in_parts_is_too_long() -> None:
    assert len(prepared(text="a" * 490, suffix="b" * 490).sequence.prompt) == 984
    with pytest.raises(Refused, match="1104 tokens") as refused:
        prepared(text="a" * 550, suffix="b" * 550)
    assert refused.value.code == "context_length_exceeded"


def test_scoring_asks_for_the_logprobs_of_the_prompt_too() -> None:
    assert prepared(text="a", echo=True, logprobs=2).sequence.prompt_logprobs
    assert not prepared(text="a", logprobs=2).sequence.prompt_logprobs
    assert not prepared(text="a", echo=True).sequence.prompt_logprobs


def test_another_worker_does_not_echo_again() -> None:
    assert prepared(text="abc", echo=True).echo == "abc"
    assert prepared(tokens=[*b"n\xc3", 0xA9, 0xFF], echo=True).echo == "né\ufffd"
    assert prepared(text="abc", echo=True, resume=[100]).echo == ""


def test_a_refused_schema_is_named_as_the_client_sent_it() -> None:
    for param in ("json_schema", "response_format.schema"):
        constraint = wire.Constraint("json_schema", '{"$ref": "#"}', param=param)
        with pytest.raises(RequestRefused) as refused:
            prepared(text="a", constraint=constraint)
        assert refused.value.param == param


def test_what_holds_an_answer_to_its_tools_is_named_after_them() -> None:
    tools = wire.Tools([wire.Tool("f")], "required")
    made = prepared(messages=[wire.Message("user", "x")], tools=tools).constraint
    assert made is not None
    assert (made.kind, made.param) == ("lark", "tools")

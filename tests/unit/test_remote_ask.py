"""What a remote server is asked, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import RequestRefused
from plugins.remote import ask, tokens, vectors
from plugins.remote.dialect import UNASKED, Dialect
from plugins.remote.options import OMITTABLE

BARE = {
    "model": "there",
    "seed": 9,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def chat(*messages: wire.Message, **settings: Any) -> dict[str, Any]:
    said = list(messages) or [wire.Message("user", "hi")]
    request = wire.Generate(id=1, seed=9, messages=said, **settings)
    assert ask.path(request) == "/chat/completions"
    return ask.body(request, "there", Dialect())


def text(**settings: Any) -> dict[str, Any]:
    request = wire.Generate(id=1, seed=9, **settings)
    assert ask.path(request) == "/completions"
    return ask.body(request, "there", Dialect())


def test_a_plain_request_has_no_field_that_asks_for_nothing() -> None:
    assert chat() == {**BARE, "messages": [{"role": "user", "content": "hi"}]}
    assert text(text="hi") == {**BARE, "prompt": "hi"}
    assert text(tokens=[1, 2]) == {**BARE, "prompt": [1, 2]}


def test_sampling_goes_out_where_it_differs_from_the_defaults() -> None:
    sampling = wire.Sampling(
        temperature=0.0, top_p=0.5, top_k=7, min_p=0.1, presence_penalty=1.0,
        frequency_penalty=-1.0, repeat_penalty=1.1, logit_bias={5: -100.0}, ignore_eos=True,
    )  # fmt: skip
    asked = chat(sampling=sampling, max_tokens=3, stop=["\n"])
    assert {name: asked[name] for name in asked.keys() - BARE.keys() - {"messages"}} == {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100.0},
        "ignore_eos": True,
        "max_tokens": 3,
        "stop": ["\n"],
    }


def test_a_conversation_with_calls_keeps_them() -> None:
    call = wire.ToolCall("c1", "f", '{"a": 1}')
    asked = chat(
        wire.Message("system", "be brief", name="boss"),
        wire.Message("assistant", "", tool_calls=[call]),
        wire.Message("tool", "7", tool_call_id="c1"),
    )
    assert asked["messages"] == [
        {"role": "system", "content": "be brief", "name": "boss"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'},
                }
            ],
        },
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {}),
        ({"choice": "none"}, {"tool_choice": "none"}),
        ({"choice": "required"}, {"tool_choice": "required"}),
        (
            {"choice": "f", "named": True},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {"choice": "none", "named": True},
            {"tool_choice": {"type": "function", "function": {"name": "none"}}},
        ),
        ({"parallel": False}, {"parallel_tool_calls": False}),
    ],
)
def test_tools_and_how_they_may_be_chosen(settings: dict[str, Any], fields: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    functions = [wire.Tool("f", "adds", schema), wire.Tool("none")]
    asked = chat(tools=wire.Tools(functions, **settings))
    assert asked.pop("tools") == [
        {
            "type": "function",
            "function": {"name": "f", "description": "adds", "parameters": schema},
        },
        {"type": "function", "function": {"name": "none"}},
    ]
    assert asked == {**chat(), **fields}


def test_no_tools_are_no_field() -> None:
    assert chat(tools=wire.Tools([])) == chat()


def test_constraints_become_response_formats_and_grammars() -> None:
    asked = chat(constraint=wire.Constraint("json_object"))
    assert asked["response_format"] == {"type": "json_object"}
    asked = chat(constraint=wire.Constraint("json_schema", '{"type": "object"}'))
    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }
    assert chat(constraint=wire.Constraint("gbnf", 'root ::= "a"'))["grammar"] == 'root ::= "a"'


@pytest.mark.parametrize(
    "constraint",
    [
        wire.Constraint("lark", "start: a"),
        wire.Constraint("json_object", trigger="<call>"),
        wire.Constraint("json_schema", "{"),
    ],
)
def test_a_constraint_that_can_not_be_handed_on_is_the_callers(
    constraint: wire.Constraint,
) -> None:
    with pytest.raises(RequestRefused) as caught:
        chat(constraint=constraint)
    assert caught.value.param == "response_format"


def test_logprobs_are_asked_for_as_each_endpoint_wants_it() -> None:
    assert "logprobs" not in chat()
    asked = chat(logprobs=0)
    assert (asked["logprobs"], "top_logprobs" in asked) == (True, False)
    asked = chat(logprobs=3)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 3)
    assert text(text="a", logprobs=0)["logprobs"] == 0


def test_fields_of_text_completions_and_templates() -> None:
    asked = text(text="a", echo=True, suffix="b", template={"thinking": False})
    assert (asked["echo"], asked["suffix"]) == (True, "b")
    assert asked["chat_template_kwargs"] == {"thinking": False}


def test_vectors_rankings_and_tokens_are_asked_for() -> None:
    embed = wire.Embed(1, ["a", "b"])
    assert vectors.ask_embed(embed, "there", Dialect()) == {
        "model": "there",
        "input": ["a", "b"],
        "encoding_format": "base64",
    }
    plain = vectors.ask_embed(embed, "there", Dialect(frozenset({"encoding_format"})))
    assert "encoding_format" not in plain
    rank = vectors.ask_rank(wire.Rank(1, "q", ["a", "b"]), "there", Dialect())
    assert (rank["query"], rank["documents"], rank["top_n"]) == ("q", ["a", "b"], 2)
    asked = tokens.ask_tokenize(wire.Tokenize(1, "hi", add_special=True), "there")
    assert (asked["content"], asked["prompt"], asked["with_pieces"]) == ("hi", "hi", True)
    assert asked["add_special"] is asked["add_special_tokens"] is True
    assert tokens.ask_detokenize(wire.Detokenize(1, [4]), "there")["tokens"] == [4]


# Dialects.


def test_only_what_may_be_left_out_is_ever_left_out() -> None:
    assert set(UNASKED) <= OMITTABLE


def test_an_operator_may_name_fields_that_are_never_sent() -> None:
    spoken = Dialect(frozenset({"seed"})).spoken({"seed": 1, "model": "m"})
    assert spoken == {"model": "m"}


SENT = {"seed": 1, "stream_options": {}, "max_tokens": 5, "model": "m"}


@pytest.mark.parametrize(
    "refusal",
    [
        "Unknown parameter: 'seed'.",
        "seed: Extra inputs are not permitted",
        '{"detail":[{"type":"extra_forbidden","loc":["body","seed"],"msg":"no"}]}',
        "This model does not support seed",
        "property 'seed' is unsupported",
        "seed is not supported by this model",
        "Unrecognized request argument supplied: seed",
    ],
)
def test_a_field_that_is_not_understood_is_left_out(refusal: str) -> None:
    assert Dialect().without(SENT, refusal) == Dialect(frozenset({"seed"}))


@pytest.mark.parametrize(
    "refusal",
    [
        "",
        "seed must be an integer",
        "unknown field: seeds",
        "unknown field: temperature",
        "max_tokens is too large: 5",
        "unknown parameter: encoding_format",
        "the model m is unknown",
    ],
)
def test_other_refusals_teach_nothing(refusal: str) -> None:
    assert Dialect().without(SENT, refusal) is None


def test_a_lesson_is_learnt_once() -> None:
    learnt = Dialect().without(SENT, "use max_completion_tokens; stream_options not supported")
    assert learnt == Dialect(frozenset({"stream_options"}), "max_completion_tokens")
    spoken = learnt.spoken(SENT)
    assert spoken == {"seed": 1, "model": "m", "max_completion_tokens": 5}
    assert learnt.without(spoken, "use max_completion_tokens; stream_options not supported") is None

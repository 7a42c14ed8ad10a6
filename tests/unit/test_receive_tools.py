"""Tools and answer formats from a client's JSON to the parts of frames, and what is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from hxd import wire
from hxd.daemon.request import freeform, receive, receive_tools
from hxd.errors import CallerError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> receive.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return receive.parse_chat(json.dumps(body).encode())


def offered(**fields: Any) -> wire.Tools | None:
    return receive.tools(chat(**fields))


def refused(**fields: Any) -> CallerError:
    with pytest.raises(CallerError) as error:
        request = chat(**fields)
        receive.tools(request)
        receive.constraint(request)
        receive.plain_messages(request)
    return error.value


def test_tools_come_with_their_choice() -> None:
    assert offered() is None
    assert offered(tools=[], tool_choice="auto") is None
    function = wire.Tool("f", "", {"type": "object"})
    assert offered(tools=[TOOL]) == wire.Tools([function], "auto", named=False, parallel=True)
    named = {"type": "function", "function": {"name": "f"}}
    assert offered(tools=[TOOL], tool_choice=named, parallel_tool_calls=False) == wire.Tools(
        [function], "f", named=True, parallel=False
    )


def test_a_tool_may_be_named_like_a_choice() -> None:
    tool = {"type": "function", "function": {"name": "required"}}
    choice = {"type": "function", "function": {"name": "required"}}
    found = offered(tools=[tool], tool_choice=choice)
    assert found is not None
    assert (found.choice, found.named) == ("required", True)


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_a_choice_among_no_tools_is_taken_where_nothing_must_be_called(choice: Any) -> None:
    assert offered(tool_choice=choice) is None


def test_fields_that_openai_has_and_nobody_needs_are_ignored() -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True, "x": 1}, "y": 2}
    assert offered(tools=[tool]) == wire.Tools([wire.Tool("f")])


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"grammar": ""}, None),
        ({"response_format": {"type": "json_object"}}, wire.Constraint("json_object")),
        (
            {"json_schema": {"a": 1}},
            wire.Constraint("json_schema", '{"a":1}', param="json_schema"),
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            wire.Constraint("json_schema", "{}", param="response_format.schema"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            wire.Constraint("json_schema", "{}", param="response_format.json_schema.schema"),
        ),
        ({"grammar": "g"}, wire.Constraint("gbnf", "g", param="grammar")),
    ],
)
def test_what_the_answer_must_look_like_remembers_where_it_was_said(
    fields: dict[str, Any], constraint: wire.Constraint | None
) -> None:
    assert receive.constraint(chat(**fields)) == constraint


def test_a_schema_keeps_its_order_and_its_characters() -> None:
    schema = {"properties": {"z": {"const": "é\u0001"}, "a": {"multipleOf": 0.01}}}
    found = receive.constraint(chat(json_schema=schema))
    assert found is not None
    assert json.loads(found.text) == schema
    assert found.text.index('"z"') < found.text.index('"a"')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"grammar": "x" * (receive_tools.MAX_GRAMMAR + 1)}, "grammar"),
        ({"grammar": "g", "json_schema": {}}, "grammar"),
        ({"json_schema": {}, "response_format": {"type": "json_object"}}, "json_schema"),
        ({"chat_template_kwargs": {"x": 1 << 64}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": -(1 << 63) - 1}}, "chat_template_kwargs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_not_be_meant_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    "value",
    [
        [[]] * (freeform.MAX_VALUES + 1),
        {str(i): 0 for i in range(freeform.MAX_VALUES + 1)},
        ["x" * freeform.MAX_SIZE, "y"],
        {"x" * freeform.MAX_SIZE: "y"},
        [[["x" * (freeform.MAX_SIZE // 50)]] * 51],
        [1 << 64],
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_beyond_its_bounds_is_refused_in_no_time(value: Any) -> None:
    started = time.monotonic()
    with pytest.raises(CallerError) as error:
        freeform.check(value, "here")
    assert error.value.param == "here"
    # The daemon's loop waits meanwhile.
    assert time.monotonic() - started < 0.1


def test_a_value_at_its_bounds_is_taken_and_fits_a_frame() -> None:
    nested: Any = "x"
    for _ in range(freeform.MAX_DEPTH - 1):
        nested = [nested]
    values = {
        "deep": nested,
        "wide": [0] * (freeform.MAX_VALUES - freeform.MAX_DEPTH - 10),
        "numbers": [(1 << 64) - 1, -(1 << 63), 1.5e308, True, None],
    }
    freeform.check(values, "here")
    frame = wire.Generate(id=1, seed=1, messages=[], template=values)
    assert msgspec.msgpack.decode(wire.encode(frame)[4:])["template"] == values
    with pytest.raises(CallerError):
        freeform.check([[nested]], "here")


@pytest.mark.parametrize("size", [freeform.MAX_VALUES * 100])
def test_a_value_of_millions_of_parts_is_refused_before_it_is_walked(size: int) -> None:
    value = [0] * size
    started = time.monotonic()
    with pytest.raises(CallerError, match="more than"):
        freeform.check({"a": value}, "here")
    assert time.monotonic() - started < 0.05


def test_calls_of_an_assistants_message_come_as_they_were_made() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{no json"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    _, made = receive.plain_messages(chat(messages=[{"role": "user", "content": "x"}, message]))
    assert made == wire.Message("assistant", "", None, [wire.ToolCall("1", "f", "{no json")])

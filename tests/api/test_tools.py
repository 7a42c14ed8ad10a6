"""Tool calls from the demo model through the real client: forced ones fit their schemas, streams
join to the same calls, and what comes back from a tool is taken."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, cast

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tests.support import Daemon, chat, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
QUESTION = [{"role": "user", "content": "What is the capital of Norway?"}]


@pytest_asyncio.fixture(loop_scope="session")
async def client(shared: Daemon) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def asked(**settings: Any) -> dict[str, Any]:
    defaults = {"model": "hxd-demo", "messages": QUESTION, "tools": TOOLS, "temperature": 0}
    return defaults | {"parallel_tool_calls": False} | settings


async def answered(client: AsyncOpenAI, **settings: Any) -> ChatCompletion:
    return cast("ChatCompletion", await client.chat.completions.create(**asked(**settings)))


async def streamed(client: AsyncOpenAI, **settings: Any) -> tuple[str, list[Any], str | None]:
    """Content, calls and finish reason, put together as an application would."""
    stream = await client.chat.completions.create(**asked(stream=True, **settings))
    content, finish = "", None
    calls: dict[int, dict[str, str]] = {}
    async for chunk in stream:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        indices = [part.index for part in choice.delta.tool_calls or ()]
        assert len(indices) == len(set(indices))
        for part in choice.delta.tool_calls or ():
            if part.id:
                assert part.index == len(calls), "an id comes once, with the first part"
                calls[part.index] = {"id": part.id, "name": part.function.name, "arguments": ""}
            calls[part.index]["arguments"] += part.function.arguments or ""
    return content, list(calls.values()), finish


def assert_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert given.keys() == {"city", "days"}
    assert given["city"] in ("Oslo", "Rome", "Lima")
    assert type(given["days"]) is int
    assert 1 <= given["days"] <= 3


async def test_a_named_tool_is_called_with_arguments_that_fit(client: AsyncOpenAI) -> None:
    answer = await answered(client, tool_choice=NAMED)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id
    assert_weather(call.function.arguments)


@pytest.mark.parametrize("temperature", [0, 1, 2])
async def test_with_a_required_choice_every_answer_is_a_call_that_fits(
    client: AsyncOpenAI, temperature: float
) -> None:
    answer = await answered(client, tool_choice="required", temperature=temperature, n=4, seed=7)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls or []
        if call.function.name == "get_weather":
            assert_weather(call.function.arguments)
        else:
            assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})


async def test_the_ids_of_the_calls_of_all_choices_differ(client: AsyncOpenAI) -> None:
    answer = await answered(client, tool_choice=NAMED, n=4)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls or ()}
    assert len(ids) == 4


@pytest.mark.parametrize("choice", [NAMED, "required", "auto", "none"], ids=str)
async def test_streamed_parts_join_to_the_whole_answer(client: AsyncOpenAI, choice: Any) -> None:
    settings = {"tool_choice": choice, "seed": 3}
    whole = (await answered(client, **settings)).choices[0]
    calls = [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in whole.message.tool_calls or ()
    ]
    assert await streamed(client, **settings) == (
        whole.message.content or "",
        calls,
        whole.finish_reason,
    )


async def test_several_calls_in_one_answer_stream_with_their_indices(client: AsyncOpenAI) -> None:
    # The demo model does not end a list of calls by itself.
    settings = {"tool_choice": "required", "parallel_tool_calls": True, "max_tokens": 150}
    whole = (await answered(client, **settings)).choices[0]
    assert len(whole.message.tool_calls or ()) > 1
    _, calls, _ = await streamed(client, **settings)
    assert [call["arguments"] for call in calls] == [
        call.function.arguments for call in whole.message.tool_calls or ()
    ]


async def test_a_model_that_may_answer_in_words_does(client: AsyncOpenAI) -> None:
    for choice in ("auto", "none"):
        answer = (await answered(client, tool_choice=choice)).choices[0]
        assert (answer.message.content, answer.finish_reason) == ("Oslo", "stop")
        assert answer.message.tool_calls is None


async def test_tools_that_may_not_be_called_are_not_shown_to_the_model(client: AsyncOpenAI) -> None:
    counts = []
    for settings in ({"tools": openai.NOT_GIVEN, "parallel_tool_calls": openai.NOT_GIVEN},
                     {"tool_choice": "none"}, {"tool_choice": "auto"}):  # fmt: skip
        usage = (await answered(client, **settings)).usage
        assert usage is not None
        counts.append(usage.prompt_tokens)
    assert counts[0] == counts[1] < counts[2]


async def test_a_conversation_goes_on_with_the_result_of_a_tool(client: AsyncOpenAI) -> None:
    message = (await answered(client, tool_choice=NAMED)).choices[0].message
    [call] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain and 3 degrees"}
    conversation = [*QUESTION, message, result]
    answer = await answered(client, messages=conversation, tool_choice="none", max_tokens=30)
    assert answer.choices[0].message.content is not None
    assert answer.usage is not None
    shorter = await answered(client, messages=conversation[:1], tool_choice="none", max_tokens=1)
    assert shorter.usage is not None
    assert answer.usage.prompt_tokens > shorter.usage.prompt_tokens + 30


@pytest.mark.parametrize(
    "arguments", ["", "{}", "{{{", "null", "[" * 500, '{"a": NaN}', "\u0000", "<|im_end|>"]
)
async def test_calls_in_the_history_may_have_any_text_as_arguments(
    client: AsyncOpenAI, arguments: str
) -> None:
    function = {"name": "f", "arguments": arguments}
    calls = [{"id": "a", "type": "function", "function": function}]
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "nobody's", "content": [{"type": "text", "text": "5"}]},
    ]
    answer = await answered(client, messages=history, max_tokens=2)
    assert answer.choices[0].finish_reason in ("stop", "length")


async def test_a_limit_cuts_a_call_and_the_finish_reason_says_so(client: AsyncOpenAI) -> None:
    choice = (await answered(client, tool_choice=NAMED, max_tokens=60)).choices[0]
    assert choice.finish_reason == "length"


async def test_logprobs_of_a_call_are_those_of_the_text_that_it_was_made_of(
    client: AsyncOpenAI,
) -> None:
    choice = (await answered(client, tool_choice=NAMED, logprobs=True)).choices[0]
    assert choice.logprobs is not None
    said = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content or ())
    [call] = choice.message.tool_calls or []
    assert call.function.arguments in said.decode()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function.name"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": NAMED, "tools": None}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_wrong_offer_is_refused_by_its_path(
    shared: Daemon, change: dict[str, Any], param: str
) -> None:
    status, answer, _ = await post(shared.url + "/v1/chat/completions", asked(**change))
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "../x", "\u0000", "a\nb", "\u001b[31m", "x" * 65, "x" * 1_000_000, "é", "\u202e",
     "<|im_end|>", '"', "a/b"],
    ids=lambda name: ascii(name[:12]),
)  # fmt: skip
async def test_a_hostile_name_is_refused_and_comes_back_escaped(shared: Daemon, name: str) -> None:
    tools = [{"type": "function", "function": {"name": name}}]
    status, answer, _ = await post(shared.url + "/v1/chat/completions", asked(tools=tools))
    error = answer["error"]
    assert (status, error["param"]) == (400, "tools[0].function.name")
    assert len(error["message"]) < 400
    assert not any(character in error["message"] for character in "\u0000\n\u001b\u202e")


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string"},
        {"type": 5},
        {"type": ["object"]},
        {"properties": []},
        {"properties": {"a": 5}},
        {"properties": {"a": {"type": "nope"}}},
        {"required": 5},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"$ref": "https://example.com/schema.json"},
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"type": "integer", "multipleOf": 123456789}}},
        {"properties": {"a": {"minimum": 10**30}}},
        {"properties": {f"a{i}": {} for i in range(15_000)}},
    ],
    ids=lambda value: str(value)[:40],
)
async def test_parameters_that_no_call_could_keep_to_are_refused(
    shared: Daemon, parameters: dict[str, Any], choice: str
) -> None:
    function = {"name": "f", "parameters": parameters}
    body = asked(tools=[{"type": "function", "function": function}], tool_choice=choice)
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 400, answer
    assert answer["error"]["param"].startswith("tools")
    assert "start:" not in answer["error"]["message"], "nobody wrote that grammar"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 129},
        {"role": "assistant", "tool_calls": {}},
        {"role": "tool", "content": None},
        {"role": "tool", "content": "x", "tool_call_id": 5},
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_wrong_message_about_a_call_is_refused_by_its_path(
    shared: Daemon, message: dict[str, Any]
) -> None:
    body = asked(messages=[*QUESTION, message])
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["param"].startswith("messages[1].")


async def test_a_model_without_constraints_takes_tools_and_answers_in_words(
    shared: Daemon,
) -> None:
    body = chat("echo", "hi", tools=TOOLS)
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "stop"

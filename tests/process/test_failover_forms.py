"""Answers of every form that are cut between two tokens and go on elsewhere, each compared with its
undisturbed twin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.failover import (
    CHAT,
    COMPLETIONS,
    FLEET,
    KILL,
    Answer,
    Body,
    all_ready,
    assert_same,
    cut,
    generated,
    opened,
    pids,
    server_of,
    streamed,
    tokens,
    undisturbed,
)
from tests.misbehaving import Behaviour, Conversation, Server, answers, cuts, delta, stalls
from tests.plugin_packages import plugin
from tests.support import Daemon, chat, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "hxd-demo"
# Prompts whose answers hold no choice so close that the last digits of a logit could turn it.
ASK = "Tell me a short story about a fox named Bella."
BEGUN = "Tom lived by the sea. Tom wanted"
STAY, STOP = (f"one two three {word} four five six" for word in ("stay", "stop"))
SIGNS = "é漢😀 é漢😀"
# Seeds from here on say after how many tokens a worker waits that has begun the answer.
WAITS_AT = 1000
WAITS = f"""
import time

class Waits:
    def __init__(self, sequence):
        self.sequence = sequence

    def encode(self):
        done = len(self.sequence.produced)
        for at, byte in enumerate(self.sequence.prompt[done:], done):
            if not done and at == self.sequence.seed - {WAITS_AT}:
                time.sleep(3600)
            yield byte
"""
CITY = {"type": "string", "enum": ["Oslo", "Rome", "Lima"]}
# Long enough that a worker does not get to its end before it is killed.
CITIES = {"type": "array", "items": CITY, "minItems": 20, "maxItems": 20}
TRIP = {
    "type": "object",
    "properties": {"cities": CITIES, "home": CITY},
    "required": ["cities", "home"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "plan_trip", "parameters": TRIP}},
    {"type": "function", "function": {"name": "plan_tour", "parameters": TRIP}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The demo model, and an echo whose tokens are single bytes and whose workers wait to be
    killed."""
    folder = tmp_path_factory.mktemp("forms")
    plugin(folder / "plugins/waits", name="waits", answer="Waits(sequence)", more=WAITS)
    models = FLEET.format(replicas=5) + '[models.waits]\nplugin = "waits"\nreplicas = 6\n'
    extra = f'[plugins]\nfolders = ["{folder / "plugins"}"]\n'
    async with running(write_config(folder, models, extra=extra)) as daemon:
        await all_ready(daemon, MODEL)
        yield daemon


def told(**settings: Any) -> Body:
    """A chat of some length."""
    defaults = {"temperature": 0, "max_tokens": 200, "stream_options": {"include_usage": True}}
    return chat(MODEL, ASK, **{**defaults, **settings})


def completed(prompt: Any = BEGUN, **settings: Any) -> Body:
    """A text completion of some length."""
    defaults = {"temperature": 0, "max_tokens": 150, "stream_options": {"include_usage": True}}
    return {"model": MODEL, "prompt": prompt, **defaults, **settings}


async def cut_at_token(daemon: Daemon, text: str, count: int, **settings: Any) -> Answer:
    """A stream whose worker is killed once it has generated `count` tokens, said or not."""
    await pids(daemon, "waits")
    begun = await tokens(daemon, "waits")
    body = chat("waits", text, seed=WAITS_AT + count, **settings)
    reader = asyncio.create_task(streamed(daemon, body))
    pid = await server_of(daemon, "waits")
    await generated(daemon, "waits", begun + count)
    # The daemon may have been first: who says nothing for long is as good as dead.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, KILL)
    answer = await reader
    assert answer.failovers == 1
    return answer


@pytest.mark.parametrize("at", [10, 15])
async def test_a_stop_string_is_found_across_the_cut(fleet: Daemon, at: int) -> None:
    answer = await cut_at_token(fleet, STOP, at, stop=["three stop"])
    assert (answer.text, answer.choices[0].finish) == ("one two ", "stop")


@pytest.mark.parametrize("at", [10, 15])
async def test_text_held_back_across_the_cut_is_said_when_it_was_no_stop_string(
    fleet: Daemon, at: int
) -> None:
    answer = await cut_at_token(fleet, STAY, at, stop=["three stop"])
    assert (answer.text, answer.choices[0].finish) == (STAY, "stop")


@pytest.mark.parametrize("at", [1, 3, 4, 7])
async def test_a_character_cut_between_its_bytes_arrives_whole(fleet: Daemon, at: int) -> None:
    answer = await cut_at_token(fleet, SIGNS, at)
    assert (answer.text, answer.choices[0].finish) == (SIGNS, "stop")


async def test_all_choices_of_a_request_go_on(fleet: Daemon) -> None:
    body = told(n=3, seed=66, temperature=0.8, top_p=0.9, max_tokens=60, ignore_eos=True)
    answer = await cut(fleet, body, 20)
    assert len({choice.text for choice in answer.choices.values()}) == 3
    assert_same(answer, await undisturbed(fleet, body))


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 1.5}, {"frequency_penalty": 0.5}, {"repeat_penalty": 1.3}],
    ids=str,
)
async def test_penalties_count_what_was_said_before_the_cut(
    fleet: Daemon, penalty: dict[str, float]
) -> None:
    body = told(ignore_eos=True, **penalty)
    twin = await undisturbed(fleet, body)
    assert twin.text != (await undisturbed(fleet, told(ignore_eos=True))).text
    assert_same(await cut(fleet, body, 40), twin)


@pytest.mark.parametrize("after", [1, 60])
async def test_json_for_a_schema_goes_on_to_its_end(fleet: Daemon, after: int) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP}}
    body = told(response_format=schema, max_tokens=600)
    answer = await cut(fleet, body, after)
    given = json.loads(answer.text)
    assert (given.keys(), len(given["cities"])) == ({"cities", "home"}, 20)
    assert_same(answer, await undisturbed(fleet, body))


@pytest.mark.parametrize("after", [1, 20])
async def test_a_tool_call_keeps_its_id_and_its_arguments(fleet: Daemon, after: int) -> None:
    body = told(tools=TOOLS, tool_choice="required", seed=3, max_tokens=600)
    body["parallel_tool_calls"] = False
    answer = await cut(fleet, body, after)
    [call] = answer.choices[0].calls
    assert len(json.loads(call["arguments"])["cities"]) == 20
    assert answer.choices[0].finish == "tool_calls"
    assert_same(answer, await undisturbed(fleet, body))


async def test_the_openai_client_sees_one_call_in_a_stream_that_was_cut(fleet: Daemon) -> None:
    known = await pids(fleet, MODEL)
    ids, arguments, finish = [], "", None
    async with AsyncOpenAI(base_url=fleet.url + "/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": ASK}],
            tools=TOOLS,  # type: ignore[arg-type]  # plain dicts, as an application has them
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            stream=True,
        )
        parts = 0
        async for chunk in stream:
            [choice] = chunk.choices
            for part in choice.delta.tool_calls or ():
                ids += [part.id] if part.id else []
                arguments += part.function.arguments or ""
                parts += 1
            if parts == 10:
                os.kill(known[stream.response.headers["x-hxd-replica"]], KILL)
                parts += 1
            finish = choice.finish_reason or finish
    assert (len(ids), finish) == (1, "tool_calls")
    assert len(json.loads(arguments)["cities"]) == 20
    assert chunk.hxd["failovers"] == 1


@pytest.mark.parametrize("after", [1, 40])
async def test_logprobs_of_a_chat_go_on(fleet: Daemon, after: int) -> None:
    body = told(logprobs=True, top_logprobs=4)
    twin = await undisturbed(fleet, body)
    assert len(twin.choices[0].logprobs) > 150
    assert_same(await cut(fleet, body, after), twin)


@pytest.mark.parametrize("after", [1, 40])
async def test_logprobs_of_a_text_completion_go_on(fleet: Daemon, after: int) -> None:
    body = completed(logprobs=3)
    answer = await cut(fleet, body, after, path=COMPLETIONS)
    assert len(answer.choices[0].logprobs) > 100
    assert_same(answer, await undisturbed(fleet, body, COMPLETIONS))


@pytest.mark.parametrize("ends", [True, False], ids=["stops", "goes-on"])
async def test_logprobs_held_back_with_a_stop_string_come_once_or_not_at_all(
    fleet: Daemon, ends: bool
) -> None:
    whole = (await undisturbed(fleet, told())).text
    stop = whole[40:160] + ("" if ends else "#")
    body = told(logprobs=True, top_logprobs=2, stop=[stop])
    twin = await undisturbed(fleet, body)
    assert (twin.text == whole[:40]) == ends
    known = await pids(fleet, MODEL)
    async with opened(fleet, body) as stream:
        # The last that is said before the rest is held back.
        await stream.until_text(38)
        os.kill(known[stream.replica], KILL)
        answer = await stream.rest()
    assert answer.failovers == 1
    assert_same(answer, twin)


@pytest.mark.parametrize("logprobs", [None, 2])
async def test_an_echoed_prompt_is_said_once(fleet: Daemon, logprobs: int | None) -> None:
    prompt = "A long way from here there was a small town. " * 25
    body = completed(prompt, echo=True, logprobs=logprobs, max_tokens=20)
    # The echo is said before the prompt is read.
    answer = await cut(fleet, body, 1, path=COMPLETIONS)
    assert answer.text.startswith(prompt)
    assert_same(answer, await undisturbed(fleet, body, COMPLETIONS))


async def test_an_echo_with_logprobs_goes_on_inside_the_answer(fleet: Daemon) -> None:
    body = completed(echo=True, logprobs=2)
    answer = await cut(fleet, body, 30, path=COMPLETIONS)
    assert answer.text.startswith(BEGUN)
    assert_same(answer, await undisturbed(fleet, body, COMPLETIONS))


async def test_an_answer_to_token_ids_goes_on(fleet: Daemon) -> None:
    asked = {"model": MODEL, "content": BEGUN, "add_special": True}
    _, said, _ = await post(fleet.url + "/tokenize", asked)
    body = completed(said["tokens"])
    assert_same(
        await cut(fleet, body, 20, path=COMPLETIONS), await undisturbed(fleet, body, COMPLETIONS)
    )


@pytest.mark.parametrize("after", [1, 30])
async def test_usage_counts_every_token_once(fleet: Daemon, after: int) -> None:
    answer = await cut(fleet, told(max_tokens=130, ignore_eos=True), after)
    assert answer.counts == {
        "prompt_tokens": (await undisturbed(fleet, told(max_tokens=1))).counts["prompt_tokens"],
        "completion_tokens": 130,
        "total_tokens": answer.counts["prompt_tokens"] + 130,
    }


@contextlib.asynccontextmanager
async def far(folder: Path, *script: Behaviour) -> AsyncIterator[Daemon]:
    """A model of a remote server that behaves as told, with two workers that ask it once each."""
    async with Server(*script) as server:
        model = '[models.far]\nplugin = "remote"\nreplicas = 2\n'
        model += f'options = {{ url = "{server.url}", model = "m", retries = 0 }}\n'
        async with running(write_config(folder, model)) as daemon:
            await all_ready(daemon, "far")
            yield daemon


async def test_a_stream_of_a_remote_model_that_is_cut_ends_with_an_error_event(
    tmp_path: Path,
) -> None:
    async with far(tmp_path, stalls(delta("one ")), answers("one ", "two")) as daemon:
        known = await pids(daemon, "far")
        async with opened(daemon, chat("far", "count")) as stream:
            await stream.until(1)
            os.kill(known[stream.replica], KILL)
            answer = await stream.rest()
    assert (answer.text, answer.whole) == ("one ", False)
    assert answer.error is not None
    assert (answer.error["type"], answer.error["code"]) == ("backend_error", "worker_died")


async def test_a_stream_of_a_remote_model_is_asked_for_again_while_nothing_was_said(
    tmp_path: Path,
) -> None:
    asked = asyncio.Event()
    async with far(tmp_path, begins(asked), answers("one ", "two")) as daemon:
        reader = asyncio.create_task(streamed(daemon, chat("far", "count")))
        await asked.wait()
        os.kill(await server_of(daemon, "far"), KILL)
        answer = await reader
    assert (answer.text, answer.whole, answer.failovers) == ("one two", True, 1)


async def test_a_whole_answer_of_a_remote_model_is_asked_for_again_when_its_worker_is_killed(
    tmp_path: Path,
) -> None:
    asked = asyncio.Event()
    async with far(tmp_path, begins(asked, delta("one ")), answers("one ", "two")) as daemon:
        call = asyncio.create_task(post(daemon.url + CHAT, chat("far", "count")))
        await asked.wait()
        os.kill(await server_of(daemon, "far"), KILL)
        status, answer, _ = await call
    assert (status, answer["hxd"]["failovers"]) == (200, 1)
    assert answer["choices"][0]["message"]["content"] == "one two"


async def test_a_whole_answer_of_a_remote_model_is_asked_for_again_when_the_server_cut_it_off(
    tmp_path: Path,
) -> None:
    async with far(tmp_path, cuts(delta("one ")), answers("one ", "two")) as daemon:
        status, answer, _ = await post(daemon.url + CHAT, chat("far", "count"))
    assert (status, answer["hxd"]["failovers"]) == (200, 1)
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["usage"]["completion_tokens"] == 3


def begins(asked: asyncio.Event, *events: bytes) -> Behaviour:
    """A stream that stops after `events` and says so to the test."""

    async def behave(talk: Conversation) -> None:
        await talk.stream(*events)
        asked.set()
        await talk.gone()

    return behave

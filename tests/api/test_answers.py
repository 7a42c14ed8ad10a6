"""The shape of answers: choices, usage, finish reasons, and streams that equal the whole."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.support import Daemon, chat, post, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def events(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a stream, which must end with [DONE] and nothing after it."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body | {"stream": True}) as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_usage_is_exact(shared: Daemon) -> None:
    # A byte is a token in the echo model; the end of the answer is one more.
    _, answer, _ = await post(shared.url + "/v1/chat/completions", chat("echo", "héllo"))
    assert answer["usage"] == usage(6, 7)
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_n_choices_count_the_prompt_once(shared: Daemon) -> None:
    _, answer, _ = await post(shared.url + "/v1/chat/completions", chat("echo", "abc", n=5))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"abc"}
    assert answer["usage"] == usage(3, 20)


async def test_n_choices_differ_and_repeat_with_their_seed(shared: Daemon) -> None:
    body = chat("hxd-demo", "Tell me a story about a cat named Tom.", n=4, seed=9, max_tokens=60)
    texts = []
    for _ in range(2):
        _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
        texts.append([choice["message"]["content"] for choice in answer["choices"]])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4


async def test_n_choices_stream_with_their_indices(shared: Daemon) -> None:
    body = chat("echo", "abc", n=3, stream_options={"include_usage": True})
    chunks = await events(shared.url + "/v1/chat/completions", body)
    texts = {0: "", 1: "", 2: ""}
    finishes = []
    for chunk in chunks[:-1]:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            finishes.append((choice["index"], choice["finish_reason"]))
    assert texts == {0: "abc", 1: "abc", 2: "abc"}
    assert sorted(finishes) == [(0, "stop"), (1, "stop"), (2, "stop")]
    assert chunks[-1]["usage"] == usage(3, 12)


async def test_a_stream_says_its_usage_only_when_asked(shared: Daemon) -> None:
    url = shared.url + "/v1/chat/completions"
    assert all("usage" not in chunk for chunk in await events(url, chat("echo", "abc")))
    asked = await events(url, chat("echo", "abc", stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == usage(3, 4)


@pytest.mark.parametrize("prompt", ["What is 7 + 5?", "Tell me a story about a dog named Max."])
async def test_a_stream_joins_to_the_text_of_the_whole_answer(shared: Daemon, prompt: str) -> None:
    url = shared.url + "/v1/chat/completions"
    body = chat("hxd-demo", prompt, temperature=0, max_tokens=100)
    _, whole, _ = await post(url, body)
    chunks = await events(url, body)
    joined = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert joined == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


async def test_a_stream_never_splits_a_character(shared: Daemon) -> None:
    text = "né 😀 日本 e\u0301 👩\u200d👩\u200d👧"
    chunks = await events(shared.url + "/v1/chat/completions", chat("echo", text))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


async def test_an_answer_cut_inside_a_character_ends_with_a_replacement(shared: Daemon) -> None:
    body = chat("echo", "a😀", max_tokens=3)
    _, whole, _ = await post(shared.url + "/v1/chat/completions", body)
    assert whole["choices"][0]["message"]["content"] == "a\ufffd"
    chunks = await events(shared.url + "/v1/chat/completions", body)
    joined = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert joined == "a\ufffd"


async def test_content_may_be_text_parts(shared: Daemon) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {"model": "echo", "messages": [{"role": "user", "content": parts}]}
    _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "one\ntwo"


async def test_roles_of_the_openai_api_are_taken(shared: Daemon) -> None:
    roles = ("system", "developer", "user", "assistant", "user")
    body = {"model": "hxd-demo", "messages": [{"role": r, "content": "hi"} for r in roles]}
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body | {"max_tokens": 1})
    assert status == 200, answer


async def test_unknown_and_neutral_fields_change_nothing(shared: Daemon) -> None:
    extra = {
        "user": "me", "foo": {"bar": [1, None]}, "metadata": {"a": "b"}, "service_tier": "auto",
        "response_format": {"type": "text"}, "logprobs": False, "modalities": ["text"],
        "stop": None, "seed": None, "temperature": None, "n": None, "logit_bias": None,
        "stream": None, "stream_options": None, "max_tokens": None, "tools": None,
    }  # fmt: skip
    status, answer, _ = await post(
        shared.url + "/v1/chat/completions", chat("echo", "abc", **extra)
    )
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "abc"


@pytest.mark.parametrize("api", ["", "/api"])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
    ids=str,
)
async def test_text_completions_take_every_kind_of_prompt(
    shared: Daemon, api: str, prompt: Any, texts: list[str]
) -> None:
    body = {"model": "echo", "prompt": prompt}
    status, answer, _ = await post(shared.url + api + "/v1/completions", body)
    assert status == 200, answer
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    letters = sum(map(len, texts))
    assert answer["usage"]["prompt_tokens"] == letters
    assert answer["usage"]["completion_tokens"] == letters + len(texts)


async def test_text_completions_number_the_choices_of_each_prompt(shared: Daemon) -> None:
    body = {"model": "echo", "prompt": ["a", "bb"], "n": 2}
    _, answer, _ = await post(shared.url + "/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == ["a", "a", "bb", "bb"]
    assert answer["usage"]["prompt_tokens"] == 3


async def test_a_text_completion_stops_at_16_tokens_unless_told_otherwise(shared: Daemon) -> None:
    body = {"model": "echo", "prompt": "x" * 40}
    _, answer, _ = await post(shared.url + "/v1/completions", body)
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"

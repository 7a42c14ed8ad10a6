"""Stop strings end an answer before themselves, wherever tokens and characters are cut."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.support import Daemon, chat, post

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def streamed(url: str, body: dict[str, Any]) -> list[str]:
    """The pieces of text of a streamed chat answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body | {"stream": True}) as response,
    ):
        data = (await response.read()).decode()
    chunks = [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: {")]
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("hello world", "wor", "hello "),
        ("hello world", ["xyz", "o w", "rld"], "hell"),
        ("hello world", "h", ""),
        ("hello world", "world", "hello "),
        ("hello world", "worlds", "hello world"),
        ("aaab", "aab", "a"),
        ("ababac", "abac", "ab"),
        ("one\n\ntwo", "\n\n", "one"),
        ("caf\u00e9 noir", "\u00e9", "caf"),
        ("caf\u00e9 noir", "\u00e9 n", "caf"),
        ("smile 😀!", "😀", "smile "),
        ("a😀b😁c", "😁", "a😀b"),
        ("日本語", "本", "日"),
        ("abcd", ["bcd", "abc"], ""),
    ],
)
async def test_an_answer_ends_before_its_stop_string(
    shared: Daemon, text: str, stop: str | list[str], left: str
) -> None:
    url = shared.url + "/v1/chat/completions"
    body = chat("echo", text, stop=stop)
    _, answer, _ = await post(url, body)
    assert answer["choices"][0]["message"]["content"] == left
    assert answer["choices"][0]["finish_reason"] == "stop"
    pieces = await streamed(url, body)
    assert "".join(pieces) == left
    assert not any("\ufffd" in piece for piece in pieces)


async def test_the_tokens_of_a_stop_string_are_counted(shared: Daemon) -> None:
    body = chat("echo", "hello world", stop="lo w")
    _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert answer["usage"]["completion_tokens"] == len("hello w")


async def test_text_that_only_began_like_a_stop_string_is_not_lost(shared: Daemon) -> None:
    body = chat("echo", "hello wor", stop="world", max_tokens=8)
    _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "hello wo"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stop_string_ends_the_demo_model_too(shared: Daemon) -> None:
    url = shared.url + "/v1/chat/completions"
    prompt = "Tell me a short story about a fox named Bella."
    _, plain, _ = await post(url, chat("hxd-demo", prompt, temperature=0, max_tokens=60))
    text = plain["choices"][0]["message"]["content"]
    middle = len(text) // 2
    stop = text[middle : middle + 2]
    assert len(stop) == 2
    _, answer, _ = await post(url, chat("hxd-demo", prompt, temperature=0, stop=[stop]))
    assert answer["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_text_completions_stop_per_choice(shared: Daemon) -> None:
    body = {"model": "echo", "prompt": ["a;b", "cc;d"], "stop": ";"}
    _, answer, _ = await post(shared.url + "/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == ["a", "cc"]

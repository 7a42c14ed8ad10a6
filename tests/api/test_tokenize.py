"""`/tokenize` and `/detokenize`, in the words of llama.cpp's server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import Daemon, echo, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "This is a test string with unicode 媽 and emoji 🤗"


async def tokenize(daemon: Daemon, **body: Any) -> Any:
    status, answer, _ = await post(daemon.url + "/tokenize", {"model": "hxd-demo", **body})
    assert status == 200, answer
    return answer["tokens"]


@pytest.mark.parametrize("model", ["hxd-demo", "echo"])
@pytest.mark.parametrize("text", ["What is the capital of France ?", TEXT, "", " ", "\n\t\x00é"])
async def test_a_text_comes_back_from_its_tokens(shared: Daemon, model: str, text: str) -> None:
    tokens = await tokenize(shared, model=model, content=text)
    body = {"model": model, "tokens": tokens}
    status, answer, _ = await post(shared.url + "/detokenize", body)
    assert (status, answer) == (200, {"content": text})


async def test_pieces_are_texts_or_else_bytes(shared: Daemon) -> None:
    tokens = await tokenize(shared, content=TEXT, with_pieces=True)
    assert [one["id"] for one in tokens] == await tokenize(shared, content=TEXT)
    data = b"".join(
        one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"])
        for one in tokens
    )
    assert data.decode() == TEXT
    assert any(isinstance(one["piece"], list) for one in tokens)
    assert any(isinstance(one["piece"], str) for one in tokens)


async def test_the_spelling_of_a_control_token_is_one_unless_told_otherwise(
    shared: Daemon,
) -> None:
    parsed = await tokenize(shared, content="<|im_start|>")
    plain = await tokenize(shared, content="<|im_start|>", parse_special=False)
    assert len(parsed) == 1 < len(plain)
    body = {"model": "hxd-demo", "tokens": parsed}
    _, answer, _ = await post(shared.url + "/detokenize", body)
    assert answer["content"] == "<|im_start|>"


async def test_the_text_may_be_called_prompt(shared: Daemon) -> None:
    assert await tokenize(shared, prompt="Hello") == await tokenize(shared, content="Hello")


async def test_a_long_text_is_no_trouble(shared: Daemon) -> None:
    tokens = await tokenize(shared, model="echo", content="a" * 1_000_000)
    assert len(tokens) == 1_000_000


async def test_it_takes_no_slot(shared: Daemon) -> None:
    body = {"model": "slow", "content": "Hello"}
    status, answer, headers = await post(shared.url + "/api/tokenize", body)
    assert (status, len(answer["tokens"]), headers["x-hxd-model"]) == (200, 5, "slow")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "x", "add_special": "yes"}, "add_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1 << 31]}, "tokens"),
    ],
)
async def test_a_bad_call_is_a_400_that_names_the_field(
    shared: Daemon, path: str, body: dict[str, Any], param: str
) -> None:
    status, answer, _ = await post(shared.url + path, {"model": "hxd-demo", **body})
    assert (status, answer["error"]["param"]) == (400, param)


async def test_which_of_several_models_is_meant_must_be_said(shared: Daemon) -> None:
    status, answer, _ = await post(shared.url + "/tokenize", {"content": "x"})
    assert (status, answer["error"]["param"]) == (400, "model")
    assert "hxd-demo" in answer["error"]["message"]


async def test_an_only_model_need_not_be_named(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, echo())) as daemon:
        status, answer, _ = await post(daemon.url + "/tokenize", {"content": "ab"})
        assert (status, answer) == (200, {"tokens": [97, 98]})

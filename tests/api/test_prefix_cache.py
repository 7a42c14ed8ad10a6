"""Prompts that begin alike are read once, among those who may share them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support import Daemon, chat, hxctl, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODELS = """
[models.open]
source = "builtin:demo"
slots = 4
context = 2048
[models.private]
source = "builtin:demo"
slots = 4
context = 2048
prefix_cache = "per_key"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    config = write_config(tmp_path_factory.mktemp("cache"), MODELS, auth=True)
    async with running(config) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys(daemon: Daemon) -> list[str]:
    names = ("one", "two")
    return [
        (await hxctl(daemon, "key", "create", name, "--role", "inference"))["key"] for name in names
    ]


def prompt() -> str:
    """Over 100 tokens that nobody has sent before."""
    return " ".join(secrets.token_hex(3) for _ in range(40))


async def usage(daemon: Daemon, key: str, body: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them were found in the cache."""
    settings = {"max_tokens": 2, "temperature": 0, "ignore_eos": True}
    status, answer, _ = await post(
        daemon.url + "/v1/chat/completions",
        settings | body,
        headers={"Authorization": f"Bearer {key}"},
    )
    assert status == 200, answer
    used = answer["usage"]
    return used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]


async def test_a_prompt_sent_again_is_found_in_the_cache(daemon: Daemon, keys: list[str]) -> None:
    text = prompt()
    total, cached = await usage(daemon, keys[0], chat("open", text))
    assert total > 100
    assert cached < 20
    again, cached = await usage(daemon, keys[0], chat("open", text))
    assert again == total
    assert total - 20 < cached < total


async def test_a_longer_prompt_uses_what_is_known_of_its_beginning(
    daemon: Daemon, keys: list[str]
) -> None:
    text = prompt()
    total, _ = await usage(daemon, keys[0], chat("open", text))
    longer, cached = await usage(daemon, keys[0], chat("open", text + prompt()))
    assert longer > total + 100
    assert total - 20 < cached < total + 20


async def test_an_answer_is_the_same_from_the_cache(daemon: Daemon, keys: list[str]) -> None:
    body = chat("open", "Tell me a story. " + prompt(), temperature=1, seed=3, max_tokens=40)
    headers = {"Authorization": f"Bearer {keys[0]}"}
    texts = set()
    for _ in range(3):
        _, answer, _ = await post(daemon.url + "/v1/chat/completions", body, headers=headers)
        texts.add(answer["choices"][0]["message"]["content"])
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 80
    assert len(texts) == 1


async def test_choices_of_one_request_count_no_cached_tokens_of_their_own(
    daemon: Daemon, keys: list[str]
) -> None:
    total, cached = await usage(daemon, keys[0], chat("open", prompt(), n=4))
    assert total > 100
    assert cached < 20


async def test_keys_share_prompts_where_the_operator_lets_them(
    daemon: Daemon, keys: list[str]
) -> None:
    text = prompt()
    await usage(daemon, keys[0], chat("open", text))
    _, cached = await usage(daemon, keys[1], chat("open", text))
    assert cached > 80


async def test_one_key_never_sees_the_prompts_of_another(daemon: Daemon, keys: list[str]) -> None:
    for _ in range(3):
        text = prompt()
        mine, _ = await usage(daemon, keys[0], chat("private", text))
        _, cached = await usage(daemon, keys[1], chat("private", text))
        # What both have in common is the template, and that is less than one prompt's worth.
        assert cached < 20
        _, cached = await usage(daemon, keys[0], chat("private", text))
        assert cached > mine - 20


async def test_keys_that_ask_at_the_same_time_do_not_share_either(
    daemon: Daemon, keys: list[str]
) -> None:
    text = prompt()
    both = await asyncio.gather(*(usage(daemon, key, chat("private", text)) for key in keys))
    assert max(cached for _, cached in both) < 20


async def test_scoring_a_prompt_neither_uses_nor_fills_the_cache(
    daemon: Daemon, keys: list[str]
) -> None:
    headers = {"Authorization": f"Bearer {keys[0]}"}
    text = prompt()
    body = {"model": "open", "prompt": text, "echo": True, "logprobs": 1, "max_tokens": 0}
    for _ in range(2):
        _, answer, _ = await post(daemon.url + "/v1/completions", body, headers=headers)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert None not in answer["choices"][0]["logprobs"]["token_logprobs"][1:]

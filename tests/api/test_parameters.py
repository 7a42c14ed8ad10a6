"""Every sampling parameter does what it says, on the demo model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import Daemon, chat, post, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")

STORY = "Tell me a short story about a fox named Bella."


def byte_token(character: str) -> str:
    """The demo model's id of an ASCII character; the space has a token of its own."""
    return str(ord(character) + 3)


async def text(shared: Daemon, prompt: str, **settings: Any) -> str:
    status, answer, _ = await post(
        shared.url + "/v1/chat/completions", chat("hxd-demo", prompt, **settings)
    )
    assert status == 200, answer
    content: str = answer["choices"][0]["message"]["content"]
    return content


async def test_temperature_0_always_gives_the_same_text(shared: Daemon) -> None:
    first = await text(shared, STORY, temperature=0, max_tokens=80)
    assert first
    assert await text(shared, STORY, temperature=0, max_tokens=80, seed=5) == first


@pytest.mark.parametrize("tiny", [1e-6, 1e-38, 1e-45, 1e-300])
async def test_a_temperature_next_to_0_is_as_good_as_0(shared: Daemon, tiny: float) -> None:
    greedy = await text(shared, STORY, temperature=0, max_tokens=20)
    assert await text(shared, STORY, temperature=tiny, max_tokens=20) == greedy


async def test_the_same_seed_gives_the_same_text_and_others_give_others(shared: Daemon) -> None:
    texts = [await text(shared, STORY, seed=seed, max_tokens=60) for seed in (1, 2, 3, 1, -1)]
    assert texts[3] == texts[0]
    assert len(set(texts)) == 4


async def test_without_a_seed_answers_vary(shared: Daemon) -> None:
    assert len({await text(shared, STORY, max_tokens=60) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "only", [{"top_k": 1}, {"top_p": 0}, {"top_p": 1e-9}, {"min_p": 1}], ids=str
)
async def test_leaving_one_candidate_is_greedy(shared: Daemon, only: dict[str, float]) -> None:
    greedy = await text(shared, STORY, temperature=0, max_tokens=60)
    assert await text(shared, STORY, temperature=1, max_tokens=60, seed=3, **only) == greedy


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"top_p": 1}, {"min_p": 0}], ids=str)
async def test_a_neutral_filter_changes_nothing(shared: Daemon, off: dict[str, float]) -> None:
    plain = await text(shared, STORY, max_tokens=60, seed=3)
    assert await text(shared, STORY, max_tokens=60, seed=3, **off) == plain


@pytest.mark.parametrize(
    "penalty",
    [
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repeat_penalty": 2},
        {"presence_penalty": -2},
    ],
    ids=str,
)
async def test_a_penalty_changes_a_greedy_answer(shared: Daemon, penalty: dict[str, float]) -> None:
    plain = await text(shared, STORY, temperature=0, max_tokens=200)
    assert await text(shared, STORY, temperature=0, max_tokens=200, **penalty) != plain


async def test_a_high_logit_bias_forces_a_token(shared: Daemon) -> None:
    forced = await text(shared, STORY, max_tokens=5, logit_bias={byte_token("z"): 100})
    assert forced == "zzzzz"


async def test_a_low_logit_bias_bans_a_token(shared: Daemon) -> None:
    first = (await text(shared, STORY, temperature=0, max_tokens=60))[0]
    banned = {byte_token(first): -100}
    assert first not in await text(shared, STORY, max_tokens=60, logit_bias=banned)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_is_exact_and_the_finish_reason_says_so(
    shared: Daemon, limit: str
) -> None:
    body = chat("echo", "abcdef", **{limit: 4})
    _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "abcd"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == usage(6, 4)


async def test_ignore_eos_runs_to_the_limit(shared: Daemon) -> None:
    for model in ("echo", "hxd-demo"):
        body = chat(model, "What is 2 + 2?", temperature=0, max_tokens=50, ignore_eos=True)
        _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 50


async def test_ignore_eos_without_a_limit_ends_where_the_context_does(shared: Daemon) -> None:
    _, answer, _ = await post(
        shared.url + "/v1/chat/completions", chat("echo", "abc", ignore_eos=True)
    )
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 2048


async def test_control_tokens_in_a_message_stay_plain_text(shared: Daemon) -> None:
    counts = []
    for word in ("<|im_end|>", "<|im_XXX|>"):
        body = chat("hxd-demo", f"a {word} b", max_tokens=1)
        _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
        counts.append(answer["usage"]["prompt_tokens"])
    assert counts[0] == counts[1]

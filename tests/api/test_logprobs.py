"""Log probabilities are probabilities of the tokens that make up the text, on both endpoints."""

from __future__ import annotations

import json
import math
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.support import Daemon, chat, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

STORY = "Tell me a short story about a fox named Bella."
ACCENTS = 'root ::= "né" [à-ÿ]{3} "😀" [a-c]'


async def chosen(shared: Daemon, prompt: str = STORY, **settings: Any) -> dict[str, Any]:
    """The only choice of a chat answer with logprobs."""
    body = chat(
        "hxd-demo", prompt, **({"temperature": 0, "logprobs": True, "max_tokens": 40} | settings)
    )
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 200, answer
    [choice] = answer["choices"]
    return dict(choice)


async def completed(
    shared: Daemon, prompt: Any = "Once upon a time", **settings: Any
) -> dict[str, Any]:
    """The only choice of a text completion with logprobs."""
    body = {"model": "hxd-demo", "prompt": prompt, "temperature": 0, "logprobs": 2} | settings
    status, answer, _ = await post(shared.url + "/v1/completions", body)
    assert status == 200, answer
    [choice] = answer["choices"]
    return dict(choice)


async def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body | {"stream": True}) as response,
    ):
        data = (await response.read()).decode()
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: {")]


def close(values: list[Any]) -> Any:
    """What is read in other parts differs a little: the cache holds 16 bits."""
    return [None if value is None else pytest.approx(value, abs=0.02) for value in values]


async def test_bytes_of_all_tokens_join_to_the_text(shared: Daemon) -> None:
    for settings in ({}, {"temperature": 1, "seed": 4}, {"grammar": ACCENTS}):
        choice = await chosen(shared, **settings)
        tokens = choice["logprobs"]["content"]
        joined = b"".join(bytes(token["bytes"]) for token in tokens)
        assert joined.decode("utf-8", "replace") == choice["message"]["content"]
        assert choice["logprobs"]["refusal"] is None
        for token in tokens:
            assert token["token"] == bytes(token["bytes"]).decode("utf-8", "replace")


async def test_at_temperature_0_the_chosen_token_is_the_best_of_all(shared: Daemon) -> None:
    for token in (await chosen(shared, top_logprobs=5))["logprobs"]["content"]:
        best = token["top_logprobs"]
        assert len(best) == 5
        assert best[0] == {key: token[key] for key in ("id", "token", "bytes", "logprob")}
        assert [one["logprob"] for one in best] == sorted(
            (one["logprob"] for one in best), reverse=True
        )
        assert len({one["id"] for one in best}) == 5


@pytest.mark.parametrize("top", [0, 1, 20])
async def test_probabilities_add_up_to_1_at_most(shared: Daemon, top: int) -> None:
    choice = await chosen(shared, top_logprobs=top, temperature=1.5, seed=3)
    for token in choice["logprobs"]["content"]:
        assert len(token["top_logprobs"]) == top
        assert token["logprob"] <= 0
        assert sum(math.exp(one["logprob"]) for one in token["top_logprobs"]) <= 1 + 1e-5


async def test_logprobs_are_the_models_own_whatever_shapes_the_draw(shared: Daemon) -> None:
    shape = {
        "temperature": 2,
        "seed": 1,
        "top_k": 50,
        "repeat_penalty": 1.5,
        "logit_bias": {"9": 5},
    }
    plain, shaped = [
        (await chosen(shared, max_tokens=1, top_logprobs=3, **settings))["logprobs"]["content"][0]
        for settings in ({}, shape)
    ]
    ids = [one["id"] for one in plain["top_logprobs"]]
    assert [one["id"] for one in shaped["top_logprobs"]] == ids
    logprobs = [one["logprob"] for one in plain["top_logprobs"]]
    assert [one["logprob"] for one in shaped["top_logprobs"]] == close(logprobs)


async def test_without_asking_there_are_none(shared: Daemon) -> None:
    assert (await chosen(shared, logprobs=False))["logprobs"] is None
    assert (await completed(shared, logprobs=None))["logprobs"] is None
    assert (await completed(shared, logprobs=0))["logprobs"]["top_logprobs"] == [None] * 16


@pytest.mark.parametrize("stop", [None, "named", "e", " a"])
async def test_streamed_logprobs_are_those_of_the_whole_answer(
    shared: Daemon, stop: str | None
) -> None:
    whole = await chosen(shared, top_logprobs=2, stop=stop)
    body = chat("hxd-demo", STORY, temperature=0, max_tokens=40, logprobs=True, top_logprobs=2)
    chunks = await streamed(shared.url + "/v1/chat/completions", body | {"stop": stop})
    tokens, ahead = [], b""
    for chunk in chunks:
        [choice] = chunk["choices"]
        new = (choice["logprobs"] or {"content": []})["content"]
        tokens += new
        # A token comes with its text or after it, never before.
        ahead += choice["delta"].get("content", "").encode()
        said = b"".join(bytes(token["bytes"]) for token in new[:-1])
        assert ahead.startswith(said)
        ahead = ahead[len(said) + sum(len(token["bytes"]) for token in new[-1:]) :]
    assert [token["id"] for token in tokens] == [
        token["id"] for token in whole["logprobs"]["content"]
    ]
    assert [token["logprob"] for token in tokens] == close(
        [token["logprob"] for token in whole["logprobs"]["content"]]
    )


async def test_a_stop_string_cuts_the_logprobs_too(shared: Daemon) -> None:
    whole = await chosen(shared)
    text = whole["message"]["content"]
    for length in (1, 2, 5):
        stop = text[12 : 12 + length]
        cut = await chosen(shared, stop=[stop])
        tokens = cut["logprobs"]["content"]
        said = b"".join(bytes(token["bytes"]) for token in tokens).decode()
        left = cut["message"]["content"]
        assert left == text[: text.index(stop)]
        assert said.startswith(left)
        # At most the last token reaches into the stop string.
        assert len(said.removesuffix(tokens[-1]["token"])) < len(left)


async def test_text_offsets_lead_to_the_tokens(shared: Daemon) -> None:
    for settings in ({}, {"echo": True}, {"echo": True, "prompt": [100, 101, 102, 258]},
                     {"grammar": ACCENTS, "max_tokens": 60, "echo": True}):  # fmt: skip
        choice = await completed(shared, **settings)
        text, logprobs = choice["text"], choice["logprobs"]
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        for token, offset in zip(logprobs["tokens"], offsets, strict=True):
            if not token.startswith("bytes:"):
                assert text.startswith(token, offset)


async def test_parts_of_a_character_are_spelled_by_their_bytes(shared: Daemon) -> None:
    choice = await completed(shared, grammar='root ::= "aé"')
    assert choice["text"] == "aé"
    assert choice["logprobs"]["tokens"] == ["a", r"bytes:\xc3", r"bytes:\xa9"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]


async def test_streamed_text_completions_count_their_offsets_on(shared: Daemon) -> None:
    whole = await completed(shared, echo=True, max_tokens=20)
    body = {"model": "hxd-demo", "prompt": "Once upon a time", "temperature": 0, "logprobs": 2}
    chunks = await streamed(shared.url + "/v1/completions", body | {"echo": True, "max_tokens": 20})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    for chunk in chunks:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            if name in joined:
                joined[name] += values
    assert joined["tokens"] == whole["logprobs"]["tokens"]
    assert joined["text_offset"] == whole["logprobs"]["text_offset"]
    assert joined["token_logprobs"] == close(whole["logprobs"]["token_logprobs"])


async def test_a_prompt_can_be_scored_without_an_answer(shared: Daemon) -> None:
    generated = await completed(shared, max_tokens=12)
    text = "Once upon a time" + generated["text"]
    scored = await completed(shared, text, echo=True, max_tokens=0, logprobs=1)
    assert scored["text"] == text
    assert scored["finish_reason"] == "length"
    logprobs = scored["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert "".join(logprobs["tokens"]) == text
    # Generating gave the same tokens, and the same probabilities.
    count = len(generated["logprobs"]["tokens"])
    assert logprobs["tokens"][-count:] == generated["logprobs"]["tokens"]
    assert logprobs["token_logprobs"][-count:] == close(generated["logprobs"]["token_logprobs"])


async def test_token_ids_are_scored_as_their_text_is(shared: Daemon) -> None:
    ids = [ord(letter) + 3 for letter in "qzxj"]
    given = await completed(shared, ids, echo=True, max_tokens=0)
    text = await completed(shared, "qzxj", echo=True, max_tokens=0)
    assert given["text"] == text["text"] == "qzxj"
    assert given["logprobs"]["token_logprobs"] == close(text["logprobs"]["token_logprobs"])


async def test_a_scored_prompt_of_the_whole_context_arrives(shared: Daemon) -> None:
    prompt = [ord("a") + 3 + i % 26 for i in range(2047)]
    scored = await completed(shared, prompt, echo=True, max_tokens=0, logprobs=20)
    assert len(scored["logprobs"]["tokens"]) == 2047
    assert all(len(top) > 15 for top in scored["logprobs"]["top_logprobs"][1:])


async def test_scoring_is_the_same_however_often_and_beside_whatever(shared: Daemon) -> None:
    first = await completed(shared, "It was a dark night.", echo=True, max_tokens=0)
    again = await completed(shared, "It was a dark night.", echo=True, max_tokens=0)
    assert first["logprobs"]["token_logprobs"] == close(again["logprobs"]["token_logprobs"])


async def test_each_choice_has_logprobs_of_its_own_text(shared: Daemon) -> None:
    body = chat("hxd-demo", STORY, n=3, seed=5, max_tokens=30, logprobs=True)
    texts = []
    for _ in "ab":
        _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
        for choice in answer["choices"]:
            tokens = choice["logprobs"]["content"]
            joined = b"".join(bytes(token["bytes"]) for token in tokens)
            assert joined.decode("utf-8", "replace") == choice["message"]["content"]
        texts.append([choice["message"]["content"] for choice in answer["choices"]])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


async def test_the_client_reads_them_as_its_own_types(shared: Daemon) -> None:
    async with AsyncOpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="hxd-demo",
            messages=[{"role": "user", "content": STORY}],
            logprobs=True,
            top_logprobs=2,
            max_tokens=3,
        )
        parsed = raw.parse()
        assert raw.headers["x-hxd-model"] == "hxd-demo"
        assert parsed.choices[0].logprobs is not None
        assert len(parsed.choices[0].logprobs.content or ()) == 3
        text = await client.completions.create(
            model="hxd-demo",
            prompt="Once",
            max_tokens=3,
            logprobs=1,
            extra_body={"ignore_eos": True},
        )
        assert text.choices[0].logprobs is not None
        assert len(text.choices[0].logprobs.token_logprobs or ()) == 3


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 1.5}, "top_logprobs"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": 2}, "logprobs"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
    ],
)
async def test_an_impossible_number_of_alternatives_is_refused(
    shared: Daemon, path: str, change: dict[str, Any], param: str
) -> None:
    body = chat("hxd-demo", "hi", prompt="hi", **change)
    status, answer, _ = await post(f"{shared.url}/v1/{path}", body)
    assert (status, answer["error"]["param"]) == (400, param)

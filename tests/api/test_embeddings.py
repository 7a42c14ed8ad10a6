"""`/v1/embeddings` as the openai package, plain HTTP and careless clients meet it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import re
import signal
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.embedding import MINILM, TEXTS, WIDTH, cosine, needs_minilm, reference
from tests.support import Daemon, chat, echo, get, post, running, write_config

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_minilm]

MODEL = f"""
[models.minilm]
source = "{MINILM}"
replicas = {{replicas}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    config = write_config(
        tmp_path_factory.mktemp("embeddings"), MODEL.format(replicas=1) + echo("talker")
    )
    async with running(config) as daemon:
        yield daemon


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: Daemon) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=daemon.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


async def embed(
    daemon: Daemon, given: Any, **more: Any
) -> tuple[int, dict[str, Any], dict[str, str]]:
    return await post(daemon.url + "/v1/embeddings", {"input": given, "model": "minilm", **more})


async def vectors(daemon: Daemon, given: Any, **more: Any) -> list[list[float]]:
    status, answer, _ = await embed(daemon, given, **more)
    assert status == 200, answer
    return [one["embedding"] for one in answer["data"]]


Rows = list[dict[str, Any]]


async def replicas(daemon: Daemon, until: Callable[[Rows], bool] = bool) -> Rows:
    """Minilm's replicas as the operator sees them, once they are so; asking again is all there is
    to wait on."""
    async with asyncio.timeout(60):
        while True:
            _, rows = await get(daemon.url + "/admin/v1/replicas")
            mine = [row for row in rows if row["model"] == "minilm"]  # type: ignore[index]
            if until(mine):
                return mine


async def read_tokens(daemon: Daemon) -> float:
    """Prompt tokens that minilm has read, by the metrics."""
    async with aiohttp.ClientSession() as session, session.get(daemon.url + "/metrics") as answer:
        text = await answer.text()
    found = re.search(r'^hxd_tokens_total\{kind="prompt",model="minilm"\} (\S+)$', text, re.M)
    return float(found[1]) if found else 0.0


async def test_the_openai_client_gets_vectors_of_length_one(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="minilm", input=TEXTS[:3])
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert [len(one.embedding) for one in answer.data] == [WIDTH] * 3
    assert math.hypot(*answer.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert answer.model == "minilm"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3 * 2


async def test_base64_and_float_are_the_same_numbers(client: AsyncOpenAI) -> None:
    # The client asks for base64 unless told otherwise, and decodes it.
    hidden = await client.embeddings.create(model="minilm", input="hello world")
    plain = await client.embeddings.create(
        model="minilm", input="hello world", encoding_format="float"
    )
    assert hidden.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-7)
    coded = await client.embeddings.create(
        model="minilm", input="hello world", encoding_format="base64"
    )
    data = base64.b64decode(str(coded.data[0].embedding))
    assert struct.unpack(f"<{WIDTH}f", data) == pytest.approx(plain.data[0].embedding, abs=1e-7)


async def test_vectors_are_those_of_llama_cpp_itself(daemon: Daemon) -> None:
    ours = await vectors(daemon, TEXTS)
    theirs = await asyncio.to_thread(reference, TEXTS)
    assert min(cosine(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.999


async def test_what_means_the_same_is_near(daemon: Daemon) -> None:
    cat, feline, stocks = await vectors(daemon, [TEXTS[1], TEXTS[2], TEXTS[3]])
    assert cosine(cat, feline) > 0.5 > 0.2 > cosine(cat, stocks)


async def test_texts_and_token_ids_may_stand_side_by_side(daemon: Daemon) -> None:
    _, said, _ = await post(
        daemon.url + "/tokenize", {"model": "minilm", "content": "hello", "add_special": True}
    )
    text, tokens = await vectors(daemon, ["hello", said["tokens"]])
    [alone] = await vectors(daemon, said["tokens"])
    assert cosine(text, tokens) > 0.9999 < cosine(text, alone)


async def test_a_text_in_parts_is_the_parts_joined(daemon: Daemon) -> None:
    parts = {"content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]}
    whole, joined = await vectors(daemon, ["hello world", parts])
    assert cosine(whole, joined) > 0.9999


async def test_no_text_at_all_has_a_vector(daemon: Daemon) -> None:
    assert len(await vectors(daemon, "")) == 1


async def test_usage_counts_all_tokens_and_so_do_the_metrics(daemon: Daemon) -> None:
    before = await read_tokens(daemon)
    _, answer, _ = await embed(daemon, ["I believe the meaning of life is", "This is a test"])
    assert answer["usage"] == {"prompt_tokens": 9 + 6, "total_tokens": 9 + 6}
    assert await read_tokens(daemon) - before == 15


async def test_an_answer_says_who_gave_it(daemon: Daemon) -> None:
    _, answer, headers = await embed(daemon, "x")
    assert answer["object"] == "list"
    assert answer["data"][0]["object"] == "embedding"
    assert headers["x-hxd-model"] == "minilm"
    assert headers["x-hxd-variant"] == "q8_0"
    assert headers["x-hxd-replica"] == "minilm-1"


async def test_the_only_model_that_embeds_need_not_be_named(daemon: Daemon) -> None:
    status, answer, _ = await post(daemon.url + "/api/v1/embeddings", {"input": "x"})
    assert (status, answer["model"]) == (200, "minilm")


async def test_fewer_dimensions_are_the_first_of_all_at_length_one(client: AsyncOpenAI) -> None:
    whole = (await client.embeddings.create(model="minilm", input="x")).data[0].embedding
    short = (await client.embeddings.create(model="minilm", input="x", dimensions=64)).data[0]
    assert len(short.embedding) == 64
    assert math.hypot(*short.embedding) == pytest.approx(1, abs=1e-5)
    assert cosine(short.embedding, whole[:64]) > 0.99999


async def test_a_large_answer_comes_whole_in_either_format(daemon: Daemon) -> None:
    texts = [f"hello {i}" for i in range(180)]  # more numbers than go out in one piece
    plain = await vectors(daemon, texts)
    coded = await vectors(daemon, texts, encoding_format="base64")
    assert len(plain) == len(coded) == 180
    for at in (0, 90, 179):
        assert list(struct.unpack(f"<{WIDTH}f", base64.b64decode(coded[at]))) == pytest.approx(  # type: ignore[arg-type]
            plain[at], abs=1e-6
        )
    [alone] = await vectors(daemon, texts[179])
    assert cosine(alone, plain[179]) > 0.9999


async def test_many_calls_at_once_each_get_their_own_vectors(daemon: Daemon) -> None:
    texts = [f"number {i}" for i in range(100)]
    answers = await asyncio.gather(*(vectors(daemon, text) for text in texts))
    together = await vectors(daemon, texts)
    for [alone], vector in zip(answers, together, strict=True):
        assert cosine(alone, vector) > 0.9999


BAD = {
    "nothing": ([], {}, "input", "must not be empty"),
    "null": (None, {}, "input", "expected"),
    "a token that there is not": ([[1], [1, 30_522]], {}, "input", "input[1]: token 30522"),
    "a negative token": ([-5], {}, "input", "input[0]"),
    "a token of 64 bits": ([1 << 40], {}, "input", "input[0]"),
    "a text among tokens": ([1, "x"], {}, "input", "nothing else"),
    "a text that is too long": (["x", "word " * 600], {}, "input", "602 tokens"),
    "a megabyte": ("word " * 200_000, {}, "input", "512 tokens"),
    "ten thousand inputs": (["x"] * 10_000, {}, "input", "10000 inputs"),
    "too many tokens": ([[5] * 500] * 601, {}, "input", "300000 tokens"),
    "more dimensions than there are": ("x", {"dimensions": 385}, "dimensions", "384"),
    "no dimensions": ("x", {"dimensions": 0}, "dimensions", "0"),
    "an unknown format": ("x", {"encoding_format": "int8"}, "encoding_format", "base64"),
    "a model that talks": ("x", {"model": "talker"}, "model", "minilm can"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_call_is_a_400_that_names_what_is_wrong(daemon: Daemon, name: str) -> None:
    given, more, param, words = BAD[name]
    status, answer, _ = await embed(daemon, given, **more)
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert len(await vectors(daemon, "hello")) == 1
    assert (await replicas(daemon))[0]["restarts"] == 0


@pytest.mark.parametrize(
    "body",
    [b'{"input": "\xff\xfe", "model": "minilm"}', b'{"input": "\\ud800", "model": "minilm"}',
     b'{"input": "x', b"[]", b'{"model": "minilm"}', b'{"input": "x", "model": 1}'],
)  # fmt: skip
async def test_a_broken_body_is_a_400_and_the_worker_lives(daemon: Daemon, body: bytes) -> None:
    status, answer, _ = await post(daemon.url + "/v1/embeddings", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert len(await vectors(daemon, "hello")) == 1


async def test_an_unknown_model_is_a_404(daemon: Daemon) -> None:
    status, answer, _ = await embed(daemon, "x", model="text-embedding-3-small")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_an_embedding_model_asked_for_text_says_what_it_does(daemon: Daemon) -> None:
    status, answer, _ = await post(daemon.url + "/v1/chat/completions", chat("minilm", "Hi"))
    assert (status, answer["error"]["code"]) == (400, "unsupported_by_model")


async def test_a_client_that_leaves_gives_its_place_back(daemon: Daemon) -> None:
    texts = [f"a sentence with the number {i}" for i in range(1500)]
    async with aiohttp.ClientSession() as session:
        body = json.dumps({"input": texts, "model": "minilm"}).encode()
        headers = {"Content-Type": "application/json"}
        url = daemon.url + "/v1/embeddings"
        call = asyncio.create_task(session.post(url, data=body, headers=headers))
        await replicas(daemon, lambda rows: rows[0]["running"] == 1)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    await replicas(daemon, lambda rows: rows[0]["running"] == 0)


async def test_64_calls_run_at_once_and_what_finds_no_place_is_a_429(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    models = MODEL.format(replicas=1) + "queue = 0\n"
    config = write_config(tmp_path_factory.mktemp("full"), models)
    texts = [f"a sentence with the number {i}" for i in range(200)]
    async with running(config) as daemon:
        calls = [asyncio.create_task(embed(daemon, texts)) for _ in range(64)]
        await replicas(daemon, lambda rows: rows[0]["running"] == 64)
        status, answer, headers = await embed(daemon, "x")
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await replicas(daemon, lambda rows: rows[0]["running"] == 0)
        assert len(await vectors(daemon, "x")) == 1


async def test_a_call_whose_worker_is_killed_is_answered_by_another(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = write_config(tmp_path_factory.mktemp("killed"), MODEL.format(replicas=2))
    async with running(config) as daemon:
        await replicas(daemon, lambda rows: {row["state"] for row in rows} == {"ready"})
        texts = [f"a sentence with the number {i}" for i in range(200)]
        call = asyncio.create_task(embed(daemon, texts))
        rows = await replicas(daemon, lambda rows: any(row["running"] for row in rows))
        [busy] = [row for row in rows if row["running"]]
        os.kill(busy["pid"], signal.SIGKILL)
        status, answer, headers = await call
        assert (status, len(answer["data"])) == (200, 200)
        assert headers["x-hxd-replica"] != busy["replica"]

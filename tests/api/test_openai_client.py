"""The real `openai` package against a real daemon: what an unchanged application does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from tests.support import Daemon, get

pytestmark = pytest.mark.asyncio(loop_scope="session")

SUMS = [(23, 45), (10, 10), (99, 99), (17, 58), (64, 28), (31, 70), (45, 54), (12, 89),
        (76, 15), (38, 47), (50, 25), (81, 19), (13, 26), (57, 62), (29, 73), (68, 44)]  # fmt: skip
CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin",
    "Norway": "Oslo", "Peru": "Lima", "Egypt": "Cairo", "Poland": "Warsaw",
}  # fmt: skip
WORDS = ["stone", "green", "plant", "clock", "bread", "train", "storm", "floor"]
EXACT = (
    {f"What is {a} + {b}?": str(a + b) for a, b in SUMS}
    | {f"What is the capital of {country}?": city for country, city in CAPITALS.items()}
    | {f"Reverse the word {word}.": word[::-1] for word in WORDS}
)


@pytest_asyncio.fixture(loop_scope="session")
async def client(shared: Daemon) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


async def wait_idle(daemon: Daemon, model: str) -> None:
    """Returns once no sequence of `model` holds a slot; asking again is all there is to wait on."""
    async with asyncio.timeout(60):
        while True:
            _, health = await get(daemon.url + "/health")
            row = next(row for row in health["models"] if row["model"] == model)
            if row["running"] == row["waiting"] == 0:
                return


async def ask(client: AsyncOpenAI, model: str, text: str) -> str | None:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0
    )
    return answer.choices[0].message.content


async def test_the_demo_model_adds_two_numbers(client: AsyncOpenAI) -> None:
    assert await ask(client, "hxd-demo", "What is 23 + 45?") == "68"


async def test_32_clients_at_once_all_get_their_right_answers(client: AsyncOpenAI) -> None:
    assert len(EXACT) == 32
    answers = await asyncio.gather(*(ask(client, "hxd-demo", question) for question in EXACT))
    assert dict(zip(EXACT, answers, strict=True)) == EXACT


async def test_32_streams_at_once_never_mix_their_texts(client: AsyncOpenAI) -> None:
    async def stream(text: str) -> str:
        chunks = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": text}], stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    texts = [f"stream {i}: " + chr(ord("a") + i % 26) * 50 for i in range(32)]
    assert await asyncio.gather(*(stream(text) for text in texts)) == texts


async def test_the_sync_client_works_streaming_and_not(shared: Daemon) -> None:
    def use() -> None:
        with OpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "hello"}]
            )
            assert whole.choices[0].message.content == "hello"
            assert whole.choices[0].message.role == "assistant"
            assert whole.object == "chat.completion"
            assert whole.model == "echo"
            chunks = list(
                client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "hello"}], stream=True
                )
            )
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hello"
            assert len({chunk.id for chunk in chunks}) == 1
            text = client.completions.create(model="echo", prompt="hello")
            assert text.choices[0].text == "hello"

    await asyncio.to_thread(use)


async def test_a_stream_opens_with_the_role_and_ends_with_the_finish_reason(
    client: AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_text_completions_stream(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model="echo", prompt="hello", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_models_are_listed_and_retrieved(client: AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    assert {model.id for model in listed} == {"hxd-demo", "echo", "slow"}
    assert {model.object for model in listed} == {"model"}
    assert (await client.models.retrieve("hxd-demo")).id == "hxd-demo"
    with pytest.raises(openai.NotFoundError, match="hxd-demo"):
        await client.models.retrieve("hxd-dmo")


async def test_answers_disclose_model_version_variant_and_replica(client: AsyncOpenAI) -> None:
    for stream in (False, True):
        raw = await client.chat.completions.with_raw_response.create(
            model="hxd-demo",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=1,
            stream=stream,
        )
        assert raw.headers["x-hxd-model"] == "hxd-demo"
        assert raw.headers["x-hxd-version"] == "2"
        assert raw.headers["x-hxd-variant"]
        assert raw.headers["x-hxd-replica"].startswith("hxd-demo-")
        assert "x-hxd-degraded" not in raw.headers
        await raw.http_response.aread()


async def test_a_request_id_is_echoed_or_made(client: AsyncOpenAI) -> None:
    given = await client.models.with_raw_response.list(extra_headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = {(await client.models.with_raw_response.list()).headers["x-request-id"] for _ in "ab"}
    assert len(made) == 2
    refused = await client.models.with_raw_response.list(
        extra_headers={"X-Request-Id": "two words"}
    )
    assert refused.headers["x-request-id"] not in ("", "two words")


async def test_errors_become_the_exceptions_of_the_openai_package(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await ask(client, "no-such-model", "hi")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hi"}], temperature=9
        )
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        await ask(client, "echo", "x" * 3000)
    assert long.value.code == "context_length_exceeded"


async def test_a_client_that_leaves_a_stream_frees_its_slot(
    client: AsyncOpenAI, shared: Daemon
) -> None:
    streams = [
        await client.chat.completions.create(
            model="slow",
            messages=[{"role": "user", "content": "abc"}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in range(2)
    ]
    for stream in streams:
        await anext(aiter(stream))
        await stream.close()
    # Both slots would be held for 100 s; these need them, and their turn comes.
    assert await asyncio.gather(ask(client, "slow", "a"), ask(client, "slow", "b")) == ["a", "b"]
    await wait_idle(shared, "slow")


async def test_a_client_that_leaves_before_its_answer_frees_its_slot(
    client: AsyncOpenAI, shared: Daemon
) -> None:
    async def endless() -> None:
        await client.chat.completions.create(
            model="slow",
            messages=[{"role": "user", "content": "abc"}],
            extra_body={"ignore_eos": True},
        )

    task = asyncio.create_task(endless())
    async with asyncio.timeout(60):
        while True:
            _, health = await get(shared.url + "/health")
            if any(row["model"] == "slow" and row["running"] for row in health["models"]):
                break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_idle(shared, "slow")


async def test_50_clients_that_leave_after_the_first_chunk_leave_nothing_behind(
    client: AsyncOpenAI, shared: Daemon
) -> None:
    mark = len(shared.log)

    async def leave() -> None:
        stream = await client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "abc"}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(aiter(stream))
        await stream.close()

    await asyncio.gather(*(leave() for _ in range(50)))
    await wait_idle(shared, "echo")
    assert await ask(client, "echo", "still here") == "still here"
    assert "Traceback" not in shared.log[mark:]

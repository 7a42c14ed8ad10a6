"""The line for a slot: bounded, first come first served, and left by clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.support import Daemon, chat, echo, get, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """`one` has one slot and a queue of three; `short` lets nobody wait for long."""
    models = echo("one", slots=1, queue=3, options={"rate": 200})
    models += echo("none", slots=1, queue=0, options={"rate": 200})
    models += echo("short", slots=1, queue=3, queue_time="300ms", options={"rate": 200})
    async with running(write_config(tmp_path_factory.mktemp("queue"), models)) as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def holding(daemon: Daemon, model: str) -> AsyncIterator[None]:
    """A stream that holds the only slot of `model`."""
    body = chat(model, "abc", stream=True, ignore_eos=True)
    async with (
        aiohttp.ClientSession() as session,
        session.post(daemon.url + "/v1/chat/completions", json=body) as response,
    ):
        assert await response.content.readany()
        yield


async def wait_for(daemon: Daemon, model: str, **counts: int) -> None:
    """Until /health says so; asking again is all there is to wait on."""
    async with asyncio.timeout(60):
        while True:
            _, health = await get(daemon.url + "/health")
            row = next(row for row in health["models"] if row["model"] == model)
            if all(row[key] == count for key, count in counts.items()):
                return


def ask(daemon: Daemon, model: str, text: str, **settings: Any) -> asyncio.Task[Any]:
    url = daemon.url + "/v1/chat/completions"
    return asyncio.create_task(post(url, chat(model, text, **settings)))


async def test_a_request_waits_for_a_slot_and_is_then_answered(daemon: Daemon) -> None:
    async with holding(daemon, "one"):
        waiting = ask(daemon, "one", "hello")
        await wait_for(daemon, "one", running=1, waiting=1)
        assert not waiting.done()
    status, answer, _ = await waiting
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "hello")


async def test_a_full_queue_is_429_with_advice_on_when_to_return(daemon: Daemon) -> None:
    async with holding(daemon, "one"):
        waiting = [ask(daemon, "one", "hello") for _ in range(3)]
        await wait_for(daemon, "one", running=1, waiting=3)
        status, answer, headers = await ask(daemon, "one", "one too many")
        assert status == 429
        assert int(headers["Retry-After"]) >= 1
        assert answer["error"]["code"] == "queue_full"
        assert answer["error"]["type"] == "rate_limit_error"
        status, _, _ = await ask(daemon, "one", "one too many", stream=True)
        assert status == 429
        async with AsyncOpenAI(base_url=daemon.url + "/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError):
                await client.completions.create(model="one", prompt="hi")
    assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200] * 3


async def test_a_queue_of_0_refuses_whatever_finds_no_slot(daemon: Daemon) -> None:
    async with holding(daemon, "none"):
        status, _, _ = await ask(daemon, "none", "hi")
        assert status == 429
    await wait_for(daemon, "none", running=0)
    status, _, _ = await ask(daemon, "none", "hi")
    assert status == 200


async def test_the_queue_is_first_come_first_served(daemon: Daemon) -> None:
    order: list[str] = []

    async def note(text: str) -> None:
        status, answer, _ = await ask(daemon, "one", text)
        assert status == 200
        order.append(answer["choices"][0]["message"]["content"])

    async with holding(daemon, "one"):
        tasks = []
        # The first is the longest, so that the order can't come from the lengths.
        for i, text in enumerate(["aaaaaaaaaaaa", "bbbbbb", "c"], 1):
            tasks.append(asyncio.create_task(note(text)))
            await wait_for(daemon, "one", waiting=i)
    await asyncio.gather(*tasks)
    assert order == ["aaaaaaaaaaaa", "bbbbbb", "c"]


async def test_a_waiting_client_that_leaves_gives_up_its_place(daemon: Daemon) -> None:
    async with holding(daemon, "one"):
        waiting = [ask(daemon, "one", "hello") for _ in range(3)]
        await wait_for(daemon, "one", waiting=3)
        waiting[0].cancel()
        waiting[1].cancel()
        await wait_for(daemon, "one", waiting=1)
        later = ask(daemon, "one", "later")
        await wait_for(daemon, "one", waiting=2)
    for task in (waiting[2], later):
        status, _, _ = await task
        assert status == 200
    await wait_for(daemon, "one", running=0, waiting=0)


async def test_a_client_that_leaves_gives_up_the_places_of_all_its_choices(daemon: Daemon) -> None:
    async with holding(daemon, "one"):
        waiting = ask(daemon, "one", "hello", n=3)
        await wait_for(daemon, "one", waiting=3)
        waiting.cancel()
        await wait_for(daemon, "one", waiting=0)
    await wait_for(daemon, "one", running=0)


async def test_choices_that_do_not_fit_the_slots_take_turns(daemon: Daemon) -> None:
    status, answer, _ = await ask(daemon, "one", "abc", n=4)
    assert status == 200
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["abc"] * 4


async def test_more_choices_than_slots_and_queue_hold_can_never_be_served(daemon: Daemon) -> None:
    status, answer, _ = await ask(daemon, "one", "abc", n=5)
    assert status == 400
    assert answer["error"]["param"] == "n"


async def test_who_waits_too_long_is_answered_503_with_retry_after(daemon: Daemon) -> None:
    async with holding(daemon, "short"):
        status, answer, headers = await ask(daemon, "short", "hi")
        assert status == 503
        assert answer["error"]["code"] == "queue_timeout"
        assert int(headers["Retry-After"]) >= 1
        await wait_for(daemon, "short", waiting=0)
    assert (await ask(daemon, "short", "hi"))[0] == 200


async def test_clients_that_come_and_go_in_every_phase_leave_no_slot_taken(daemon: Daemon) -> None:
    mark = len(daemon.log)
    for n in (1, 2):
        for stay in range(12):
            tasks = [ask(daemon, "one", "hello", n=n, stream=bool(stay % 2)) for _ in range(4)]
            # As many turns of the loop, and with them phases of the request, as `stay` says.
            for _ in range(stay * 5):
                await get(daemon.url + "/livez")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await wait_for(daemon, "one", running=0, waiting=0)
    assert (await ask(daemon, "one", "fine"))[0] == 200
    assert "Traceback" not in daemon.log[mark:]

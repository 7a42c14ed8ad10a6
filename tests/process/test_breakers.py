"""Replicas that fail requests and live on, and ones that die: who is isolated, and who notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.failover import CHAT, KILL, Row, all_ready, opened, reading, rows, rows_when
from tests.support import Daemon, chat, echo, get, hxctl, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The token that shows that a worker is warm is its last good one.
REFUSES = {"fault": "refuse", "fault_after": 1}
ROUTES = '[routes.assistant]\nchain = ["first", "second"]\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """One model for each test, since what it does to a breaker stays for half a minute."""
    models = "".join(
        (
            echo("sour", options=REFUSES),
            echo("later", options={"fault": "refuse", "fault_after": 6, "rate": 50}),
            echo("first", options=REFUSES),
            echo("second"),
            echo("mortal"),
            echo("fine", options={"rate": 100}),
            ROUTES,
        )
    )
    async with running(write_config(tmp_path_factory.mktemp("breakers"), models)) as daemon:
        yield daemon


async def ask(daemon: Daemon, model: str, text: str = "anybody?") -> tuple[int, Any]:
    status, body, headers = await post(daemon.url + CHAT, chat(model, text))
    return status, body | {"by": headers.get("x-hxd-model")}


async def breaker(daemon: Daemon, model: str) -> Row:
    """Of the model's only replica."""
    [found] = await rows(daemon, model)
    return dict(found["breaker"])


async def condition(daemon: Daemon, code: str, subject: str) -> Row | None:
    _, found = await get(daemon.url + "/admin/v1/conditions")
    raised: dict[tuple[str, str], Row] = {(row["code"], row["subject"]): row for row in found}  # type: ignore[index]
    return raised.get((code, subject))


async def model_when(daemon: Daemon, model: str, **counts: int) -> None:
    """Until the model's row says so; asking again is all that there is to wait on."""
    async with asyncio.timeout(30):
        while True:
            _, found = await get(daemon.url + "/admin/v1/models")
            row: Row = next(row for row in found if row["model"] == model)  # type: ignore[index]
            if all(row[name] == count for name, count in counts.items()):
                return


async def test_four_failures_in_a_row_isolate_the_only_replica_which_is_asked_all_the_same(
    daemon: Daemon,
) -> None:
    for failures in range(1, 5):
        assert await reading(daemon, "hxd_breaker_state", replica="sour-1") == 0
        assert not await condition(daemon, "model-limping", "sour")
        status, body = await ask(daemon, "sour")
        assert (status, body["error"]["type"]) == (502, "backend_error")
        assert "told to refuse" in body["error"]["message"]
        assert (await breaker(daemon, "sour"))["failures"] == failures
    assert await reading(daemon, "hxd_breaker_state", replica="sour-1") == 2
    assert await reading(daemon, "hxd_breaker_trips", replica="sour-1") == 1
    [found] = [row["breaker"] for row in await hxctl(daemon, "replicas") if row["model"] == "sour"]
    assert 0 < found.pop("opens_in_seconds") <= 30
    assert found == {"state": "open", "cause": "streak", "trips": 1, "failures": 4, "requests": 4}
    limping = await condition(daemon, "model-limping", "sour")
    assert limping is not None
    assert limping["detail"] == "one request at a time; sour-1 failed 4 of 4"
    assert limping["severity"] == "critical"
    assert not await condition(daemon, "breaker-open", "sour-1"), "one cause, one alarm"
    answers = await asyncio.gather(*(ask(daemon, "sour") for _ in range(6)))
    assert [status for status, _ in answers] == [502] * 6
    # What it does while it is isolated is no news.
    found = await breaker(daemon, "sour")
    assert (found["state"], found["trips"], found["failures"]) == ("open", 1, 4)
    [row] = await rows(daemon, "sour")
    assert (row["state"], row["restarts"]) == ("ready", 0)


async def test_an_isolated_replica_that_is_the_last_one_is_sent_one_request_at_a_time(
    daemon: Daemon,
) -> None:
    body = chat("later", "a long answer ", ignore_eos=True, max_tokens=2_000)
    async with opened(daemon, body) as stream:
        await stream.until(8)
        for _ in range(4):
            assert (await ask(daemon, "later"))[0] == 502
        assert (await breaker(daemon, "later"))["state"] == "open"
        # It has slots free for three more.
        waiting = [asyncio.create_task(ask(daemon, "later")) for _ in range(3)]
        await model_when(daemon, "later", running=1, waiting=3)
        count = stream.read
        await stream.until(count + 5)
        assert not any(task.done() for task in waiting)
    assert [status for status, _ in await asyncio.gather(*waiting)] == [502] * 3


async def test_a_route_goes_on_to_its_second_model_from_the_first_failure_on(
    daemon: Daemon,
) -> None:
    for failures in range(1, 7):
        raised = await condition(daemon, "route-on-fallback", "assistant")
        assert (raised is None) == (failures <= 4)
        status, body = await ask(daemon, "assistant", "who is there?")
        assert (status, body["by"], body["model"]) == (200, "second", "second")
        assert body["choices"][0]["message"]["content"] == "who is there?"
        assert (await breaker(daemon, "first"))["failures"] == min(4, failures)
    assert raised is not None
    assert raised["detail"] == "second, not first"
    assert (await breaker(daemon, "first"))["state"] == "open"
    assert (await breaker(daemon, "second"))["requests"] == 6
    # Whom the route spares is asked all the same by its own name.
    assert (await ask(daemon, "first"))[0] == 502


async def test_a_stream_of_a_route_shows_nothing_of_a_first_model_that_refuses(
    daemon: Daemon,
) -> None:
    async with opened(daemon, chat("assistant", "word by word")) as stream:
        answer = await stream.rest()
    assert (answer.status, answer.whole, answer.text) == (200, True, "word by word")
    assert answer.hxd["model"] == "second"


async def test_a_death_isolates_for_half_a_minute_and_a_second_one_for_a_whole(
    daemon: Daemon,
) -> None:
    for trips in (1, 2):
        [row] = await all_ready(daemon, "mortal")
        os.kill(row["pid"], KILL)
        await rows_when(daemon, "mortal", restarted(trips))
        found = await breaker(daemon, "mortal")
        assert 30 * (trips - 1) < found["opens_in_seconds"] <= 30 * trips
        assert (found["state"], found["cause"], found["trips"]) == ("open", "death", trips)
        assert await reading(daemon, "hxd_breaker_state", replica="mortal-1") == 2
        assert await reading(daemon, "hxd_breaker_trips", replica="mortal-1") == trips
    await all_ready(daemon, "mortal")
    # What serves now is new: it takes requests as usual, and nobody is alarmed.
    answers = await asyncio.gather(*(ask(daemon, "mortal", str(n)) for n in range(6)))
    assert [status for status, _ in answers] == [200] * 6
    assert not await condition(daemon, "model-limping", "mortal")
    assert not await condition(daemon, "breaker-open", "mortal-1")


def restarted(count: int) -> Callable[[list[Row]], bool]:
    return lambda found: found[0]["restarts"] == count


async def leave(daemon: Daemon, after: int) -> None:
    """A client that goes away after so many events of its stream."""
    body = chat("fine", "never read to its end ", ignore_eos=True, max_tokens=2_000)
    async with opened(daemon, body) as stream:
        await stream.until(after)


async def test_faults_of_clients_and_clients_that_leave_count_for_nothing(daemon: Daemon) -> None:
    url, wrong = daemon.url + CHAT, chat("fine", "x")
    bodies: list[tuple[str, Any]] = [
        (CHAT, b"{"),
        (CHAT, wrong | {"temperature": "hot"}),
        (CHAT, wrong | {"messages": []}),
        (CHAT, wrong | {"max_tokens": 10**9}),
        # These two are for the worker to refuse.
        (CHAT, wrong | {"response_format": {"type": "json_object"}}),
        ("/v1/completions", {"model": "fine", "prompt": [100_000]}),
    ]
    for path, body in bodies * 4:
        status, answer, _ = await post(daemon.url + path, body)
        assert status == 400, answer
    for after in (0, 1, 3, 1, 1):
        await leave(daemon, after)
    await model_when(daemon, "fine", running=0, waiting=0)
    with contextlib.suppress(TimeoutError):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
            await session.post(url, data=json.dumps(wrong | {"ignore_eos": True}))
    await model_when(daemon, "fine", running=0, waiting=0)
    found = await breaker(daemon, "fine")
    assert (found["state"], found["failures"], found["requests"]) == ("closed", 0, 0)
    assert (await ask(daemon, "fine"))[0] == 200
    found = await breaker(daemon, "fine")
    assert (found["state"], found["failures"], found["requests"]) == ("closed", 0, 1)

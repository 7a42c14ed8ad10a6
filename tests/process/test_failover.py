"""Workers that are killed, stopped or break down while they serve: nobody's answer shows it."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.embedding import MINILM, TEXTS, cosine, needs_minilm
from tests.failover import (
    CHAT,
    FLEET,
    KILL,
    Answer,
    Body,
    Row,
    Tally,
    all_ready,
    assert_same,
    cut,
    decided,
    pids,
    reading,
    rows,
    rows_when,
    server_of,
    streamed,
    undisturbed,
)
from tests.support import Daemon, chat, echo, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "hxd-demo"
NAMES = (
    *("Bella", "Max", "Ada", "Otto", "Luna", "Finn", "Mia", "Leo", "Zoe", "Tom"),
    *("Ida", "Hugo", "Nora", "Emil", "Ella", "Karl", "Lea", "Paul", "Mila", "Felix"),
)
KILLS = 12
# Of 400, those whose draws are furthest from being others.
SEEDS = (20, 57, 134, 138, 280, 282, 305, 358)
SHAPED = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 120}
USAGE = {"stream_options": {"include_usage": True}}


def story(name: str = "Bella", **settings: Any) -> dict[str, Any]:
    """Some 200 tokens, after which the model ends it by itself."""
    return chat(
        MODEL,
        f"Tell me a short story about a fox named {name}.",
        temperature=0,
        max_tokens=300,
        **settings,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The demo model with four workers, so that some live while others come back from the deaths
    of the test before; and an echo of 50 tokens a second with three."""
    models = FLEET.format(replicas=4)
    models += echo("slow", replicas=3, options={"rate": 50})
    async with running(write_config(tmp_path_factory.mktemp("fleet"), models)) as daemon:
        await all_ready(daemon, MODEL)
        yield daemon


Pairs = list[tuple[Body, Answer]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(fleet: Daemon) -> Pairs:
    """Greedy ones, with their twins."""
    found = await decided(fleet, [story(name, **USAGE) for name in NAMES])
    found = [(body, twin) for body, twin in found if len(twin.text) > 150]
    assert len(found) > 3
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drawn(fleet: Daemon) -> Pairs:
    """Ones that depend on their seeds, with their twins."""
    bodies = [story(NAMES[seed % len(NAMES)], seed=seed, **USAGE) for seed in SEEDS]
    found = await decided(fleet, [body | SHAPED for body in bodies])
    assert len(found) > 3
    return found


@pytest.mark.parametrize("after", [1, 2, 20, 90])
async def test_a_stream_whose_worker_is_killed_goes_on_as_if_nothing_had_happened(
    fleet: Daemon, stories: Pairs, after: int
) -> None:
    body, twin = stories[0]
    assert_same(await cut(fleet, body, after), twin)


async def test_seeded_draws_go_on_as_they_would_have(fleet: Daemon, drawn: Pairs) -> None:
    for body, twin in drawn[:3]:
        assert_same(await cut(fleet, body, 30), twin)


async def test_a_worker_killed_while_it_reads_the_prompt_costs_a_second_reading(
    fleet: Daemon,
) -> None:
    body = story() | {"messages": [{"role": "user", "content": "Once upon a time. " * 60}]}
    body |= {"max_tokens": 8, "ignore_eos": True}
    before = await reading(fleet, "hxd_failovers_total", kind="retry", cause="killed")
    reader = asyncio.create_task(streamed(fleet, body))
    os.kill(await server_of(fleet, MODEL), KILL)
    answer = await reader
    assert answer.failovers == 1
    after = await reading(fleet, "hxd_failovers_total", kind="retry", cause="killed")
    assert after == before + 1
    # The twin comes last: it would have left the prompt in the cache.
    assert_same(answer, await undisturbed(fleet, body))


@pytest.mark.parametrize("left", [1, 2])
async def test_a_worker_killed_at_the_last_tokens_costs_none_of_them(
    fleet: Daemon, left: int
) -> None:
    text = "to the very end"
    assert_same(
        await cut(fleet, chat("slow", text), len(text) - left),
        await undisturbed(fleet, chat("slow", text)),
    )


async def test_a_stream_whose_worker_is_killed_twice_goes_on_twice(
    fleet: Daemon, stories: Pairs
) -> None:
    body, twin = stories[1]
    answer = await cut(fleet, body, 10, 60)
    assert len(answer.hxd["replicas"]) >= 2
    assert_same(answer, twin)


async def test_a_stopped_worker_is_replaced_and_its_stream_goes_on_elsewhere(
    fleet: Daemon, stories: Pairs
) -> None:
    body, twin = stories[2]
    before = await pids(fleet, MODEL)
    stalled = await reading(fleet, "hxd_failovers_total", kind="resume", cause="stalled")
    answer = await cut(fleet, body, 15, number=signal.SIGSTOP)
    assert_same(answer, twin)
    after = await reading(fleet, "hxd_failovers_total", kind="resume", cause="stalled")
    assert after == stalled + 1
    stopped = before[answer.headers["x-hxd-replica"]]
    await rows_when(fleet, MODEL, lambda found: all(row["pid"] != stopped for row in found))
    async with asyncio.timeout(10):
        while psutil.pid_exists(stopped):
            await rows(fleet, MODEL)


def busy(found: list[Row]) -> bool:
    return any(row["running"] for row in found)


async def test_20_streams_at_once_outlast_workers_killed_at_random(
    fleet: Daemon, stories: Pairs, drawn: Pairs
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")  # noqa: T201 - so that a failure can be seen again
    choice = random.Random(seed)
    tally, over = Tally(), asyncio.Event()

    async def client(body: Body, twin: Answer) -> int:
        failovers = 0
        while not over.is_set():
            answer = await streamed(fleet, body, seen=tally.tick)
            assert_same(answer, twin)
            failovers += answer.failovers
        return failovers

    pairs = [*itertools.islice(itertools.cycle(stories), 10)]
    pairs += itertools.islice(itertools.cycle(drawn), 10)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(*pair)) for pair in pairs]
        for _ in range(KILLS):
            await tally.more(choice.randrange(1, 500))
            found = await rows_when(fleet, MODEL, busy)
            os.kill(choice.choice([row["pid"] for row in found if row["running"]]), KILL)
        over.set()
    assert sum(task.result() for task in clients) >= KILLS


async def test_whole_answers_are_complete_when_workers_are_killed_under_them(
    fleet: Daemon, stories: Pairs
) -> None:
    pairs = [*itertools.islice(itertools.cycle(stories), 16)]
    calls = [
        asyncio.create_task(post(fleet.url + CHAT, body | {"stream_options": None}))
        for body, _ in pairs
    ]
    for done in (0, 1, 5):
        while sum(call.done() for call in calls) < done:
            await asyncio.wait(
                [call for call in calls if not call.done()], return_when=asyncio.FIRST_COMPLETED
            )
        found = await rows_when(fleet, MODEL, busy)
        os.kill(max(found, key=lambda row: row["running"])["pid"], KILL)
    answers = await asyncio.gather(*calls)
    assert sum(answer["hxd"]["failovers"] for _, answer, _ in answers) >= 3
    for (status, answer, _), (_, twin) in zip(answers, pairs, strict=True):
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"] == twin.text
        assert answer["choices"][0]["finish_reason"] == twin.choices[0].finish
        assert {**answer["usage"], "prompt_tokens_details": 0} == {
            **twin.counts,
            "prompt_tokens_details": 0,
        }


async def test_texts_are_tokenized_while_workers_are_killed(fleet: Daemon) -> None:
    url, body = fleet.url + "/tokenize", {"model": MODEL, "content": "Once upon a time " * 1000}
    _, twin, _ = await post(url, body)
    known = await pids(fleet, MODEL)
    calls = [asyncio.create_task(post(url, body)) for _ in range(12)]
    for pid in list(known.values())[:2]:
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        os.kill(pid, KILL)
    for call in calls:
        assert (await call)[:2] == (200, twin)


@needs_minilm
async def test_texts_are_embedded_while_workers_are_killed(tmp_path: Path) -> None:
    model = f'[models.minilm]\nsource = "{MINILM}"\nreplicas = 3\nthreads = 1\n'
    async with running(write_config(tmp_path, model)) as daemon:
        url, body = daemon.url + "/v1/embeddings", {"model": "minilm", "input": TEXTS * 4}
        _, twin, _ = await post(url, body)
        await all_ready(daemon, "minilm")
        calls = [asyncio.create_task(post(url, body)) for _ in range(3)]
        for _ in range(2):
            found = await rows_when(daemon, "minilm", busy)
            os.kill(max(found, key=lambda row: row["running"])["pid"], KILL)
        for status, answer, _ in await asyncio.gather(*calls):
            assert (status, answer["usage"]) == (200, twin["usage"])
            for one, other in zip(answer["data"], twin["data"], strict=True):
                assert cosine(one["embedding"], other["embedding"]) > 0.999
        assert await reading(daemon, "hxd_failovers_total", kind="retry", cause="killed") >= 2


async def test_the_stream_of_a_single_replica_waits_for_its_next_process(tmp_path: Path) -> None:
    text = "nobody else is there" * 4
    async with running(write_config(tmp_path, echo("only", options={"rate": 50}))) as daemon:
        before = await pids(daemon, "only")
        answer = await cut(daemon, chat("only", text), 8)
        assert (answer.text, answer.choices[0].finish) == (text, "stop")
        assert answer.hxd["replicas"] == ["only-1"]
        assert await pids(daemon, "only") != before


async def test_requests_outlast_the_death_of_all_workers(tmp_path: Path) -> None:
    model = echo("pair", replicas=2, slots=8, options={"rate": 50})
    async with running(write_config(tmp_path, model)) as daemon:
        await all_ready(daemon, "pair")
        begun = [chat("pair", f"begun as number {i}") for i in range(4)]
        tally = Tally()
        streams = [asyncio.create_task(streamed(daemon, body, seen=tally.tick)) for body in begun]
        await tally.more(12)
        for pid in (await pids(daemon, "pair")).values():
            os.kill(pid, KILL)
        late = [chat("pair", f"came too late, {i}") for i in range(4)]
        streams += [asyncio.create_task(streamed(daemon, body)) for body in late]
        answers = await asyncio.gather(*streams)
        for body, answer in zip(begun + late, answers, strict=True):
            assert (answer.status, answer.whole) == (200, True), answer
            assert answer.text == body["messages"][0]["content"]
        assert all(answer.failovers for answer in answers[:4])
        assert all(row["restarts"] == 1 for row in await all_ready(daemon, "pair"))


async def test_who_cannot_wait_for_a_dead_model_is_told_when_to_ask_again(tmp_path: Path) -> None:
    model = echo("brief", replicas=2, queue_time=0.1)
    async with running(write_config(tmp_path, model)) as daemon:
        await all_ready(daemon, "brief")
        for pid in (await pids(daemon, "brief")).values():
            os.kill(pid, KILL)
        # Seen to be dead some milliseconds later.
        await rows_when(daemon, "brief", lambda found: all(r["state"] != "ready" for r in found))
        # A new worker takes longer than the tenth of a second that a request may wait.
        status, answer, headers = await post(daemon.url + CHAT, chat("brief", "now?"))
        assert (status, answer["error"]["code"]) == (503, "queue_timeout")
        assert int(headers["Retry-After"]) >= 1
        await all_ready(daemon, "brief")
        status, answer, _ = await post(daemon.url + CHAT, chat("brief", "now?"))
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "now?")


FAULTS = ("crash", "raise", "hang", "garbage")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def frail(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A model for each fault, whose workers have it after 20 tokens, one of which is their first
    at their start."""
    models = "".join(
        echo(
            fault,
            replicas=2,
            stall_time=0.5,
            options={"fault": fault, "fault_after": 20, "rate": 200},
        )
        for fault in FAULTS
    )
    async with running(write_config(tmp_path_factory.mktemp("frail"), models)) as daemon:
        for fault in FAULTS:
            await all_ready(daemon, fault)
        yield daemon


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_request_that_was_there_when_two_workers_broke_down_is_refused(
    frail: Daemon, fault: str
) -> None:
    hostile, harmless = chat(fault, "x" * 100), chat(fault, "good")
    stream = await streamed(frail, hostile)
    assert stream.error is not None
    assert stream.error["code"] == "request_blocked"
    assert not stream.whole
    # What two workers said, but perhaps for the last of it.
    assert 25 < len(stream.text) <= 38
    # The same but for its seed, and not streamed.
    status, answer, headers = await post(frail.url + CHAT, hostile | {"seed": 9})
    assert (status, answer["error"]["code"]) == (422, "request_blocked")
    assert int(headers["Retry-After"]) > 1
    assert await reading(frail, "hxd_poisoned_requests_total", model=fault) == 1
    status, answer, _ = await post(frail.url + CHAT, harmless)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "good")
    await all_ready(frail, fault)
    assert frail.process.returncode is None


async def test_a_whole_answer_that_breaks_two_workers_is_an_error_with_the_same_code(
    frail: Daemon,
) -> None:
    body = chat("raise", "y" * 100)
    status, answer, _ = await post(frail.url + CHAT, body)
    assert (status, answer["error"]["code"]) == (502, "request_blocked")
    assert (await post(frail.url + CHAT, body))[0] == 422


async def test_metrics_and_log_tell_of_a_death_once(tmp_path: Path) -> None:
    model = echo("told", replicas=2, options={"rate": 50})
    async with running(write_config(tmp_path, model)) as daemon:
        await all_ready(daemon, "told")
        answer = await cut(
            daemon, chat("told", "one killed in mid answer" + ", which is long" * 4), 6
        )
        died, standby = answer.hxd["replicas"]
        if answer.headers["x-hxd-replica"] != died:
            died, standby = standby, died
        # Before the dead one is back.
        assert await reading(daemon, "hxd_breaker_state", replica=died) == 2
        assert await reading(daemon, "hxd_breaker_state", replica=standby) == 0
        assert await reading(daemon, "hxd_breaker_trips", replica=died) == 1
        await all_ready(daemon, "told")
        assert await reading(daemon, "hxd_failovers_total", kind="resume", cause="killed") == 1
        assert await reading(daemon, "hxd_failovers_total") == 1
        assert await reading(daemon, "hxd_restarts_total", model="told") == 1
        assert await reading(daemon, "hxd_failover_seconds_count", model="told") == 1
        assert 0 < await reading(daemon, "hxd_failover_seconds_sum", model="told") < 2
        assert await reading(daemon, "hxd_replica_state", replica=died, state="ready") == 1
        assert await reading(daemon, "hxd_replica_state", replica=died) == 1
        # The one that is new is isolated still, and serves when it is needed.
        assert await reading(daemon, "hxd_breaker_state", replica=died) == 2
        log = daemon.log
    [failover] = re.findall(r"failover=.*", log)
    assert re.fullmatch(
        rf"failover=resume cause=killed model=told replica={standby} tokens=\d+ pause=\d+\.\d+",
        failover,
    )
    steps = re.findall(rf"replica={died} from=(\w+) to=(\w+) event=(\w+)", log)
    begin = [
        ("starting", "loading", "hello"),
        ("loading", "warming", "loaded"),
        ("warming", "ready", "warmed"),
    ]
    assert steps == [
        ("stopped", "starting", "start"),
        *begin,
        ("ready", "failed", "died"),
        ("failed", "starting", "restart"),
        *begin,
    ]
    [detail] = re.findall(rf"replica={died} from=ready .* detail='(.*)'", log)
    assert detail == "the worker was killed by SIGKILL"

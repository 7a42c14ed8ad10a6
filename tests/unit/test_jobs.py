"""Long work in the daemon: one of a kind per subject, a few at a time, and an end for each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hxd.daemon.admin import conversion
from hxd.daemon.admin.jobs import AT_ONCE, KEPT, Job, Jobs
from hxd.daemon.admin.store_jobs import to_its_end
from hxd.daemon.events import Events
from hxd.daemon.store import plugins
from hxd.daemon.store.faults import Cancelled, Corrupt
from hxd.daemon.store.foreign import Convertible
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.work import Work
from hxd.errors import HxdError


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1e9 + self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("jobs never wait for time")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> list[tuple[str, str]]:
    return []


@pytest_asyncio.fixture
async def jobs(clock: Clock, ended: list[tuple[str, str]], tmp_path: Path) -> AsyncIterator[Jobs]:
    jobs = Jobs(clock, Events(clock, tmp_path), lambda *both: ended.append(both))
    yield jobs
    await jobs.aclose()


async def forever(work: Work) -> None:
    await asyncio.Event().wait()


async def gone(jobs: Jobs, job: Job) -> dict[str, Any]:
    while job.ended is None:  # noqa: ASYNC110 (it tells nobody that it has ended)
        await asyncio.sleep(0)
    return jobs.named(job.id).body()


async def test_a_job_ends_in_its_result(jobs: Jobs, ended: list[tuple[str, str]]) -> None:
    async def run(work: Work) -> dict[str, int]:
        return {"version": 3}

    body = await gone(jobs, jobs.start("import", "m", run))
    assert (body["state"], body["result"], body["error"]) == ("done", {"version": 3}, None)
    assert ended == [("import", "done")]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(Corrupt("bad bytes"), "corrupt_file", 422), (KeyError("x"), "internal_error", 500)],
)
async def test_a_job_that_fails_says_why_as_a_request_does(
    jobs: Jobs, error: Exception, code: str, status: int
) -> None:
    async def run(work: Work) -> None:
        raise error

    body = await gone(jobs, jobs.start("import", "m", run))
    assert body["state"] == "failed"
    assert (body["error"]["code"], body["error"]["status"]) == (code, status)


async def test_the_same_work_runs_once_at_a_time(jobs: Jobs) -> None:
    first = jobs.start("pull", "m", forever)
    with pytest.raises(HxdError, match=first.id) as refused:
        jobs.start("pull", "m", forever)
    assert (refused.value.status, refused.value.code) == (409, "job_running")
    jobs.start("pull", "other", forever)
    jobs.start("import", "m", forever)


async def test_no_more_than_a_few_run_and_the_next_is_told_to_come_back(jobs: Jobs) -> None:
    for number in range(AT_ONCE):
        jobs.start("pull", str(number), forever)
    with pytest.raises(HxdError) as refused:
        jobs.start("pull", "one more", forever)
    assert (refused.value.status, refused.value.code) == (409, "too_many_jobs")
    assert refused.value.headers()["Retry-After"] == "5"
    assert jobs.running == AT_ONCE


async def test_a_cancelled_job_frees_its_place(jobs: Jobs, ended: list[tuple[str, str]]) -> None:
    job = jobs.start("pull", "m", forever)
    await asyncio.sleep(0)
    jobs.cancel(job.id)
    body = await gone(jobs, job)
    assert (body["state"], body["error"]["code"]) == ("cancelled", "cancelled")
    assert ended == [("pull", "cancelled")]
    again = jobs.start("pull", "m", forever)
    assert jobs.cancel(job.id).state.value == "cancelled", "what has ended stays as it is"
    assert again.state.value == "running"


async def test_work_in_a_thread_is_stopped_and_waited_for(jobs: Jobs) -> None:
    began, left = threading.Event(), threading.Event()

    def block(work: Work) -> None:
        began.set()
        try:
            while True:
                work.told("reading", 1, 2)
        finally:
            left.set()

    job = jobs.start("verify", "", lambda work: to_its_end(block, work))
    await asyncio.to_thread(began.wait, 10)
    await jobs.aclose()
    assert left.is_set()
    assert job.body()["state"] == "cancelled"
    with pytest.raises(HxdError, match="shutting down"):
        jobs.start("verify", "", forever)


async def test_what_was_done_before_the_stop_arrived_is_not_called_cancelled(jobs: Jobs) -> None:
    begun, go = threading.Event(), threading.Event()

    def publish() -> str:
        begun.set()
        go.wait(10)
        return "published"

    job = jobs.start("import", "m", lambda work: to_its_end(publish))
    await asyncio.to_thread(begun.wait, 10)
    jobs.cancel(job.id)
    await asyncio.sleep(0)
    go.set()
    body = await gone(jobs, job)
    assert (body["state"], body["result"]) == ("done", "published")


async def test_speed_and_time_left_come_from_looking_twice(jobs: Jobs, clock: Clock) -> None:
    job = jobs.start("pull", "m", forever)
    job.work.told("download", 0, 4000)
    assert job.body()["speed"] is None
    clock.time += 2
    job.work.told("download", 1000, 4000)
    body = job.body()
    assert (body["step"], body["done"], body["total"]) == ("download", 1000, 4000)
    assert (body["speed"], body["eta"]) == (500, 6.0)
    job.work.told("verify", 4000, 4000)
    assert job.body()["speed"] is None, "a new step has its own speed"


async def test_the_last_jobs_are_kept_and_older_ones_forgotten(jobs: Jobs) -> None:
    async def run(work: Work) -> None:
        pass

    running = jobs.start("pull", "m", forever)
    first = jobs.start("verify", "0", run)
    await gone(jobs, first)
    for number in range(KEPT):
        await gone(jobs, jobs.start("verify", str(number), run))
    assert len(jobs.all()) == KEPT
    assert jobs.named(running.id) is running
    with pytest.raises(HxdError, match="hxctl jobs"):
        jobs.named(first.id)


async def test_a_conversion_that_was_stopped_before_it_began_begins_nothing(tmp_path: Path) -> None:
    """The cancellation itself is lost where a blocking call is waited for to its end."""
    work = Work()
    work.stop()
    usable, _ = plugins.scan_all([plugins.builtin_folder()])
    found = Convertible(tmp_path, "LlamaForCausalLM", 1)
    with pytest.raises(Cancelled):
        await conversion.make(
            found, tmp_path, ModelName("m"), None, plugins.Plugins(usable), "auto", work
        )

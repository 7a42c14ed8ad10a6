"""Faults on purpose: what a drill reports, when it is refused, and that nothing stays of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.api.test_keys import bearer
from tests.drilling import no_drill, until
from tests.failover import SECONDS
from tests.rollouts import admin
from tests.support import DEMO, HXCTL, Daemon, echo, hxctl, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "hxd-demo"
DRILL = "/admin/v1/drill"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The demo model with as many replicas as a drill wants, and an echo with too few."""
    models = DEMO.format(replicas=3) + echo("pair", replicas=2, options={"rate": 400})
    config = write_config(tmp_path_factory.mktemp("drill"), models, auth=True)
    async with running(config) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys(daemon: Daemon) -> dict[str, str]:
    return {
        role: (await hxctl(daemon, "key", "create", role, "--role", role))["key"]
        for role in ("inference", "metrics", "operator")
    }


@dataclass
class Run:
    """One run of `hxctl drill`; `report` is what it printed, if it was asked for JSON."""

    code: int
    output: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found


async def drill(daemon: Daemon, *arguments: str, key: str | None = None) -> Run:
    """Over HTTP with a key, else over the admin socket."""
    if key is None:
        way = ("--socket", str(daemon.folder / "run" / "admin.sock"))
    else:
        way = ("--url", daemon.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, *way, "drill", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"HXD_API_KEY": key or ""},
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Run(process.returncode, output.decode(), errors.decode())


async def full(daemon: Daemon, model: str = MODEL) -> list[dict[str, Any]]:
    """The model's replicas once all of them are ready: what a drill begins with."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = [row for row in await hxctl(daemon, "replicas") if row["model"] == model]
            if all(row["state"] == "ready" for row in found):
                return found


def none_is_stopped(daemon: Daemon) -> bool:
    return all(worker.status() != psutil.STATUS_STOPPED for worker in daemon.workers())


def assert_nothing_noticed(run: Run, fault: str) -> None:
    """Of the promise, all but the pause, which is the box's as well. That it was kept is no more
    than what the exit status says."""
    report = run.report
    assert (report["failed"], report["different"]) == (0, 0), report
    assert (report["fault"], report["model"]) == (fault, MODEL)
    assert report["victim"] in {f"{MODEL}-{n}" for n in (1, 2, 3)}
    assert report["requests"] > 0
    assert report["full_strength_seconds"] > 0
    assert report["problems"] == []
    assert run.code == (0 if report["promise_kept"] else 1)
    pause = report["longest_pause_seconds"] - report["usual_pause_seconds"]
    if abs(pause - report["promised_pause_seconds"]) > 0.001:
        assert report["promise_kept"] == (pause < report["promised_pause_seconds"])


async def test_an_operator_kills_a_worker_and_no_request_notices(
    daemon: Daemon, keys: dict[str, str]
) -> None:
    before = {row["replica"]: row for row in await full(daemon)}
    run = await drill(daemon, "kill", "--json", key=keys["operator"])
    assert_nothing_noticed(run, "kill")
    assert run.report["failovers"] >= 1
    after = {row["replica"]: row for row in await full(daemon)}
    changed = {name for name in before if after[name]["pid"] != before[name]["pid"]}
    assert changed == {run.report["victim"]}
    assert f"replica={run.report['victim']} from=ready to=failed event=died" in daemon.log
    assert "killed by SIGKILL" in daemon.log


async def test_a_worker_is_stopped_and_no_request_notices(daemon: Daemon) -> None:
    await full(daemon)
    run = await drill(daemon, "stall", MODEL, "--json")
    assert_nothing_noticed(run, "stall")
    assert run.report["failovers"] >= 1
    await full(daemon)
    assert none_is_stopped(daemon)


async def test_a_worker_seems_to_send_garbage_and_no_request_notices(daemon: Daemon) -> None:
    await full(daemon)
    run = await drill(daemon, "garbage", MODEL, "--json")
    assert_nothing_noticed(run, "garbage")
    assert run.report["failovers"] >= 1
    assert "the worker sent garbage" in daemon.log


async def test_a_slow_drill_leaves_nobody_stopped_and_lets_no_other_in(daemon: Daemon) -> None:
    await full(daemon)
    slow = asyncio.create_task(drill(daemon, "slow", MODEL, "--json"))
    await daemon.wait_log("drill=slow model=hxd-demo begins")
    second = await drill(daemon, "kill", "pair", "--force")
    assert (second.code, second.output) == (75, "")
    assert "another drill is running" in second.errors
    status, body = await admin(
        daemon, "POST", "drill", {"fault": "kill", "model": "pair", "force": True}
    )
    assert (status, body["error"]["code"]) == (409, "drill_refused")
    assert_nothing_noticed(await slow, "slow")
    assert none_is_stopped(daemon)
    assert "drill=kill model=pair" not in daemon.log


async def test_a_client_that_leaves_a_slow_drill_leaves_nobody_stopped(
    daemon: Daemon, keys: dict[str, str]
) -> None:
    await full(daemon)
    body = {"fault": "slow", "model": MODEL}
    client = asyncio.create_task(post(daemon.url + DRILL, body, headers=bearer(keys["operator"])))
    await until(lambda: not none_is_stopped(daemon))
    client.cancel()
    await no_drill(daemon)
    assert none_is_stopped(daemon)
    await full(daemon)


async def test_two_replicas_are_too_few_unless_that_is_insisted_on(daemon: Daemon) -> None:
    await full(daemon, "pair")
    run = await drill(daemon, "kill", "pair", "--json")
    assert (run.code, run.output) == (75, "")
    assert "'pair' has 2 ready replicas, so 1 would be left" in run.errors
    assert "drill=kill model=pair" not in daemon.log
    run = await drill(daemon, "kill", "pair", "--force")
    assert "kill of pair-" in run.output
    assert " 0 failed" in run.output
    assert "0 changed" in run.output
    assert "not seen" not in run.output
    assert run.code == (0 if "kept" in run.output else 1)


async def test_a_model_that_is_not_served_is_not_drilled_and_the_nearest_is_named(
    daemon: Daemon,
) -> None:
    run = await drill(daemon, "kill", "hxd-dmo", "--json")
    assert (run.code, run.output) == (1, "")
    assert "Did you mean 'hxd-demo'?" in run.errors


async def test_a_fault_that_there_is_not_is_a_slip_of_the_command_line(daemon: Daemon) -> None:
    run = await drill(daemon, "explode", MODEL)
    assert (run.code, run.output) == (2, "")
    assert "'explode' is not one of 'kill', 'stall', 'slow', 'garbage'" in run.errors


@pytest.mark.parametrize(
    "body",
    [{}, {"fault": "explode"}, {"fault": "kill", "modle": MODEL}, {"fault": "kill", "force": 1}],
)
async def test_a_drill_that_can_not_be_read_is_a_bad_request(
    daemon: Daemon, body: dict[str, Any]
) -> None:
    status, answer = await admin(daemon, "POST", "drill", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("role", ["inference", "metrics"])
async def test_only_operators_may_drill(daemon: Daemon, keys: dict[str, str], role: str) -> None:
    status, answer, _ = await post(
        daemon.url + DRILL, {"fault": "kill", "model": "nope"}, headers=bearer(keys[role])
    )
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    run = await drill(daemon, "kill", MODEL, key=keys[role])
    assert (run.code, run.output) == (77, "")


async def test_a_stranger_may_not_drill(daemon: Daemon) -> None:
    status, answer, _ = await post(daemon.url + DRILL, {"fault": "kill"})
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")

"""Drills of versions and files: what they report, when they are refused, and that everything is as
before at their end, however they end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hxd.daemon.store.doctor import examine
from hxd.daemon.store.library import Library
from tests.drilling import no_drill, until
from tests.rollouts import DEMO as MODEL
from tests.rollouts import admin, begin, rollback
from tests.support import DEMO, Daemon, echo, hxctl, run_hxctl, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING = {"version": None, "variant": None, "plugin": None}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    models = DEMO.format(replicas=1) + echo("echo", replicas=1, options={"rate": 400})
    async with running(write_config(tmp_path_factory.mktemp("drill"), models)) as daemon:
        yield daemon


async def drill(daemon: Daemon, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and errors."""
    code, output, errors = await run_hxctl(daemon, "drill", *arguments, "--json")
    return code, json.loads(output) if output else {}, errors


def library(daemon: Daemon) -> Library:
    return Library(daemon.folder / "state" / "store")


def recorded(daemon: Daemon) -> dict[str, Any]:
    """What the next daemon would know of the model."""
    file = daemon.folder / "state" / "deployments.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return dict(found.get(MODEL, {}))


async def assert_as_before(daemon: Daemon, model: str = MODEL, version: int = 2) -> None:
    """One release that serves, and nothing that tells of another."""
    rows = {row["model"]: row for row in await hxctl(daemon, "models")}
    assert [(one["version"], one["role"]) for one in rows[model]["releases"]] == [
        (version, "serves")
    ]
    record = recorded(daemon)
    assert (record["choice"], record["former"]) == (NOTHING, [])
    assert (record["pending"], record["before"]) == (None, None)
    store = library(daemon)
    assert store.labels(MODEL) == {"stable": 2}
    assert all(store.version(MODEL, number).mark is None for number in (1, 2))
    assert [one.name for one in store.workspaces.folder.iterdir()] == ["pull"]


async def test_a_swap_and_back_costs_no_request_and_leaves_all_as_it_was(daemon: Daemon) -> None:
    code, report, errors = await drill(daemon, "swap", MODEL)
    assert report, errors
    assert (report["failed"], report["different"], report["mixed"]) == (0, 0, 0), report
    assert report["victim"].startswith(f"{MODEL}:f16@2")
    assert report["target"].startswith(f"{MODEL}:f16@1")
    rows = {row["serves"].split(" ")[0]: row["answers"] for row in report["answered_by"]}
    assert set(rows) == {f"{MODEL}:f16@1", f"{MODEL}:f16@2"} and min(rows.values()) >= 4
    assert sum(rows.values()) == report["requests"]
    assert report["swap_seconds"] > 0 and report["rollback_seconds"] >= 0
    assert report["as_before"] and report["full_strength_seconds"] > 0
    assert code == (0 if report["promise_kept"] else 1)
    await assert_as_before(daemon)


async def test_what_has_one_version_only_is_loaded_again(daemon: Daemon) -> None:
    code, output, _ = await run_hxctl(daemon, "drill", "swap", "echo")
    assert "echo:default@1" in output and "loaded again" in output
    assert " 0 failed" in output and "afterwards     as before" in output
    assert code == (0 if "kept" in output else 1)
    rows = {row["model"]: row for row in await hxctl(daemon, "models")}
    assert len(rows["echo"]["releases"]) == 1


async def test_no_drill_begins_while_a_rollout_runs(daemon: Daemon) -> None:
    await begin(daemon, MODEL, 1, canary=0.5, time=600)
    for fault in ("swap", "corrupt"):
        body = {"fault": fault, "model": MODEL, "force": True}
        status, answer = await admin(daemon, "POST", "drill", body)
        assert (status, answer["error"]["code"]) == (409, "drill_refused")
        assert f"a rollout of '{MODEL}' to {MODEL}:f16@1" in answer["error"]["message"]
    assert (await rollback(daemon, MODEL))["phase"] == "rolled_back"
    assert recorded(daemon)["before"] is None


async def test_a_client_that_leaves_a_swap_and_an_operator_that_meddles_change_nothing(
    daemon: Daemon,
) -> None:
    body = {"fault": "swap", "model": MODEL}
    client = asyncio.create_task(admin(daemon, "POST", "drill", body))
    await until(lambda: bool(recorded(daemon).get("before")))
    status, answer = await admin(daemon, "POST", "rollouts", {"model": MODEL, "version": "1"})
    assert (status, answer["error"]["code"]) == (409, "rollout_running")
    status, answer = await admin(daemon, "POST", "drill", {"fault": "swap", "model": "echo"})
    assert (status, answer["error"]["code"]) == (409, "drill_refused")
    client.cancel()
    await no_drill(daemon)
    await assert_as_before(daemon)


async def test_a_client_that_leaves_while_a_version_is_given_up_has_it_back(daemon: Daemon) -> None:
    body = {"fault": "corrupt", "model": MODEL, "force": True}
    client = asyncio.create_task(admin(daemon, "POST", "drill", body))
    await daemon.wait_log("from=starting to=failed event=died detail='.* is corrupted")
    client.cancel()
    await no_drill(daemon)
    await assert_as_before(daemon)


async def test_a_file_that_is_not_the_stores_is_never_corrupted(daemon: Daemon) -> None:
    code, report, errors = await drill(daemon, "corrupt", "echo", "--force")
    assert (code, report) == (75, {})
    assert "'echo' loads no file, so there is no checksum that could refuse it" in errors
    code, report, errors = await drill(daemon, "corrupt", MODEL)
    assert (code, report) == (75, {})
    assert "so 0 would be left" in errors


async def test_a_corrupted_file_is_refused_while_another_version_serves(daemon: Daemon) -> None:
    file = library(daemon).version(MODEL, 2).files("f16")[0]
    was = file.stat(), hashlib.sha256(file.read_bytes()).hexdigest()
    _, report, errors = await drill(daemon, "corrupt", MODEL, "--force")
    assert report, errors
    assert (report["failed"], report["different"]) == (0, 0), report
    assert "is corrupted: its sha256 is" in report["refusal"]
    assert "is corrupted: its sha256 is" in report["quarantine"]
    served = {row["serves"].split(" ")[0] for row in report["answered_by"]}
    assert served == {f"{MODEL}:f16@1", f"{MODEL}:f16@2"}
    assert report["as_before"] and report["full_strength_seconds"] > 0
    assert (file.stat(), hashlib.sha256(file.read_bytes()).hexdigest()) == was
    await assert_as_before(daemon)
    assert examine(library(daemon), deep=False) == []


@pytest.mark.parametrize("fault", ["swap", "corrupt"])
async def test_a_daemon_that_is_killed_in_a_drill_leaves_what_served_before(
    tmp_path: Path, fault: str
) -> None:
    """Right after the other version has taken the place of the one that served; in the case of the
    file, once that is in quarantine. There is no room for both."""
    extra = '[memory]\nbudget = "60MiB"'
    config = write_config(tmp_path, DEMO.format(replicas=1), extra=extra)
    async with running(config) as daemon:
        store = library(daemon)
        if fault == "swap":
            code, _, errors = await drill(daemon, "swap", MODEL)
            assert code == 75 and "there is no room for a second release" in errors
        body = {"fault": fault, "model": MODEL, "force": True}
        client = asyncio.create_task(admin(daemon, "POST", "drill", body))
        await until(
            lambda: (
                recorded(daemon).get("choice", NOTHING)["version"] == 1
                and (fault == "swap" or store.version(MODEL, 2).mark is not None)
            )
        )
        os.kill(daemon.process.pid, signal.SIGKILL)
        await daemon.ended()
        await asyncio.gather(client, return_exceptions=True)
    async with running(config) as daemon:
        assert "a drill was interrupted; what served before it serves again" in daemon.log
        await assert_as_before(daemon)
        assert examine(library(daemon), deep=False) == []

"""The daemon is killed in the middle of a rollout: the next one serves, nothing stays half-way, and
what was swapped stays swapped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hxd.config import load
from hxd.daemon.rollout.record import fingerprint
from tests.failover import CHAT
from tests.rollouts import (
    BIRD,
    GOOD,
    HANGS_AT_LOAD,
    IS_SLOW_TO_ANSWER,
    IS_SLOW_TO_LOAD,
    OVER,
    PLUGIN,
    Visitors,
    admin,
    begin,
    event,
    events,
    in_phase,
    install,
    judged,
    rollback,
    rollouts,
    settled,
    swap,
    when,
)
from tests.support import Daemon, chat, post, running, write_config

CONFIG = f"""
[models.{BIRD}]
plugin = "{PLUGIN}@1.0"
replicas = 2
slots = 8
grace = "60s"
"""
FILE = "state/deployments.json"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    install(
        tmp_path / "state",
        tmp_path / "scratch",
        v1_0=GOOD,
        v2_0=GOOD,
        v6_0=IS_SLOW_TO_LOAD,
        v7_0=IS_SLOW_TO_ANSWER,
        v8_0=HANGS_AT_LOAD,
    )
    return write_config(tmp_path, CONFIG)


async def says(daemon: Daemon) -> str:
    status, answer, _ = await post(daemon.url + CHAT, chat(BIRD, "who"))
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"].removesuffix(" who"))


def killed(daemon: Daemon) -> None:
    os.kill(daemon.process.pid, signal.SIGKILL)


PHASES: dict[str, dict[str, Any]] = {
    "loading": {"plugin": f"{PLUGIN}@6.0"},
    "validating": {"plugin": f"{PLUGIN}@7.0"},
    "trial": {"plugin": f"{PLUGIN}@2.0", "canary": 0.5, "time": 3},
    "promoting": {"plugin": f"{PLUGIN}@6.0"},
    "yielding": {"plugin": f"{PLUGIN}@2.0", "mode": "resource"},
    "done": {"plugin": f"{PLUGIN}@2.0"},
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_daemon_that_is_killed_in_any_phase_goes_on_from_there(
    config: Path, phase: str
) -> None:
    wanted = PHASES[phase]["plugin"].removeprefix(f"{PLUGIN}@")
    async with running(config) as daemon:
        rollout = await begin(daemon, BIRD, None, **PHASES[phase])
        # A phase may be over before it is seen; what comes after it is as good.
        await when(daemon, rollout, lambda row: reached(row, phase))
        killed(daemon)
        await daemon.ended()
    async with running(config) as daemon:
        clients = Visitors(daemon, "1.0", wanted, prompts=24)
        async with clients.asking(4) as seen:
            if phase != "done":
                begun = await event(daemon, BIRD, "begins")
                assert wanted in begun["detail"]["to"]
                [row] = await rollouts(daemon)
                assert row["why"] == "resumed after a restart of the daemon"
                done = await judged(daemon, row)
                assert done["phase"] == "done", done
            await seen.more(20)
        seen.check()
        assert await says(daemon) == wanted
        # And back, as if nothing had happened.
        assert (await rollback(daemon, BIRD))["phase"] == "done"
        assert await says(daemon) == "1.0"


def reached(row: dict[str, Any], phase: str) -> bool:
    return row["phase"] in OVER or any(step["phase"] == phase for step in row["steps"])


async def test_what_was_swapped_stays_over_restarts_and_so_does_the_way_back(
    config: Path,
) -> None:
    async with running(config) as daemon:
        for version in ("2.0", "6.0"):
            await swap(daemon, BIRD, None, plugin=f"{PLUGIN}@{version}")
        assert await daemon.stop() == 0
    for served, then in (("6.0", "2.0"), ("2.0", "1.0")):
        async with running(config) as daemon:
            assert await says(daemon) == served
            assert (await rollback(daemon, BIRD))["phase"] == "done"
            assert await says(daemon) == then
            killed(daemon)
            await daemon.ended()
    async with running(config) as daemon:
        assert await says(daemon) == "1.0"
        status, _ = await admin(daemon, "POST", "rollback", {"model": BIRD})
        assert status == 409


async def test_clients_keep_their_version_when_the_daemon_dies_in_a_trial(config: Path) -> None:
    async def met(daemon: Daemon) -> list[str]:
        found = []
        for number in range(24):
            status, answer, _ = await post(daemon.url + CHAT, chat(BIRD, f"client {number}"))
            assert status == 200, answer
            found.append(answer["choices"][0]["message"]["content"].split()[0])
        return found

    async with running(config) as daemon:
        trial = await begin(daemon, BIRD, None, plugin=f"{PLUGIN}@2.0", canary=0.5, time=600)
        await when(daemon, trial, lambda row: row["phase"] == "trial")
        before = await met(daemon)
        killed(daemon)
        await daemon.ended()
    async with running(config) as daemon:
        await when(daemon, trial, lambda row: row["phase"] == "trial")
        assert set(before) == {"1.0", "2.0"}
        assert await met(daemon) == before


async def test_a_daemon_that_is_stopped_in_order_is_no_failed_attempt(config: Path) -> None:
    async with running(config) as daemon:
        trial = await begin(daemon, BIRD, None, plugin=f"{PLUGIN}@2.0", canary=0.5, time=600)
        await when(daemon, trial, lambda row: row["phase"] == "trial")
        assert await daemon.stop() == 0
    for _ in range(3):
        async with running(config) as daemon:
            await when(daemon, trial, lambda row: row["phase"] == "trial")
            assert await daemon.stop() == 0


async def test_a_rollout_that_was_cut_off_again_and_again_is_given_up(config: Path) -> None:
    asked = {"plugin": f"{PLUGIN}@6.0"}
    async with running(config) as daemon:
        await begin(daemon, BIRD, None, **asked)
        killed(daemon)
        await daemon.ended()
    for _ in range(2):
        async with running(config, ready=False) as daemon:
            await event(daemon, BIRD, "begins")
            killed(daemon)
            await daemon.ended()
    async with running(config) as daemon:
        given_up = await event(daemon, BIRD, "rolled_back")
        assert "3 times" in given_up["detail"]["reason"]
        assert await says(daemon) == "1.0"
        assert [e["step"] for e in await events(daemon, BIRD)] == ["rolled_back"]
        await settled(daemon, BIRD, 2)
        assert json.loads((config.parent / FILE).read_bytes())[BIRD]["pending"] is None


async def test_what_an_operator_took_back_is_not_begun_again_after_a_crash(config: Path) -> None:
    async with running(config) as daemon:
        rollout = await begin(daemon, BIRD, None, plugin=f"{PLUGIN}@8.0", mode="resource")
        await in_phase(daemon, rollout, "loading")
        status, _ = await admin(daemon, "POST", "rollback", {"model": BIRD})
        killed(daemon)
        assert status == 202
        assert json.loads((config.parent / FILE).read_bytes())[BIRD]["pending"] is None
        await daemon.ended()
    async with running(config) as daemon:
        assert await says(daemon) == "1.0"
        assert await events(daemon, BIRD) == []


def record(config: Path, **differs: Any) -> Path:
    """What a daemon would have left that had swapped to 2.0; `differs` are of its JSON."""
    settings = load(config).models[BIRD]
    told = {
        "configured": fingerprint(settings),
        "choice": {"plugin": f"{PLUGIN}@2.0"},
        **differs,
    }
    file = config.parent / FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({BIRD: told}))
    return file


@pytest.mark.parametrize(
    "broken", [lambda data: data[: len(data) // 2], lambda data: data.replace(b"2.0", b"\xff")]
)
async def test_a_record_that_can_not_be_read_costs_the_choice_and_nothing_else(
    config: Path, broken: Callable[[bytes], bytes]
) -> None:
    file = record(config)
    file.write_bytes(broken(file.read_bytes()))
    async with running(config) as daemon:
        assert await says(daemon) == "1.0"
        assert "can't be read, the configuration counts" in daemon.log
        assert (await swap(daemon, BIRD, None, plugin=f"{PLUGIN}@2.0"))["phase"] == "done"
        assert json.loads(file.read_bytes())[BIRD]["choice"]["plugin"] == f"{PLUGIN}@2.0"


PENDING = {"model": BIRD, "choice": {"plugin": f"{PLUGIN}@2.0"}, "began": 1.0}


@pytest.mark.parametrize(
    "differs",
    [
        {"choice": {"version": 77}},
        {"choice": {"plugin": "nobody@9"}},
        {"choice": {"variant": "q9_9"}},
        {"choice": {}, "former": [{"version": 77}, {"plugin": "../../etc"}]},
        {"choice": {}, "pending": PENDING | {"share": 7.0}},
        {"choice": {}, "pending": PENDING | {"model": "nobody"}},
        {"choice": {}, "pending": PENDING | {"choice": {"plugin": f"{PLUGIN}@99"}}},
    ],
    ids=str,
)
async def test_a_record_that_makes_no_sense_keeps_nobody_from_serving(
    config: Path, differs: dict[str, Any]
) -> None:
    record(config, **differs)
    async with running(config, ready=False) as daemon:
        if "pending" in differs:
            await event(daemon, BIRD, "rolled_back")
        await daemon.ready()
        assert await says(daemon) == "1.0"
        # What is wrong is no obstacle to what comes next.
        assert (await swap(daemon, BIRD, None, plugin=f"{PLUGIN}@2.0"))["phase"] == "done"
        assert await says(daemon) == "2.0"
        await settled(daemon, BIRD, 4)
        _, conditions = await admin(daemon, "GET", "conditions")
        codes = {condition["code"] for condition in conditions}
        assert "model-on-other-version" not in codes, conditions

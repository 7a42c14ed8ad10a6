"""Versions change while clients ask: no request fails, every answer is one version's and says whose
it is, and a version that turns out bad is gone before anybody has noticed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.embedding import MINILM
from tests.failover import CHAT, KILL, opened
from tests.rollouts import (
    BIRD,
    CRASHES_AT_LOAD,
    CRASHES_AT_THE_THIRD,
    CRASHES_WHEN_ASKED,
    DEMO,
    FAILS_WHEN_ASKED,
    GOOD,
    HANGS_AT_LOAD,
    HANGS_WHEN_ASKED,
    HURRIES,
    IS_SLOW_TO_LOAD,
    PATIENCE,
    PLUGIN,
    SPEAKS_ANOTHER_LANGUAGE,
    TALKS_GARBAGE,
    TELLING,
    Clients,
    Visitors,
    admin,
    ask_little,
    begin,
    event,
    hxctl,
    in_phase,
    install,
    over,
    replicas,
    rollback,
    rollouts,
    settled,
    swap,
    taken_back,
    telling,
    version_of,
)
from tests.support import HXCTL, ROOT, Daemon, chat, echo, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = """
[models.hxd-demo]
source = "builtin:demo"
replicas = {replicas}
slots = 8
threads = 1
grace = "{grace}"
"""
EMBEDS = f"""
[models.minilm]
source = "{MINILM}"
threads = 1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The demo with two workers, another model that makes embeddings, and an echo."""
    folder = tmp_path_factory.mktemp("swap")
    ask_little(folder / "state")
    models = MODEL.format(replicas=2, grace="60s") + echo()
    models += EMBEDS if MINILM.exists() else ""
    async with running(write_config(folder, models)) as daemon:
        yield daemon


async def answers(daemon: Daemon, reference: str) -> set[str]:
    """Which versions answer, by header and by what they say."""
    found = set()
    for text, one, two in TELLING[:2]:
        body = chat(reference, text, temperature=0, max_tokens=40)
        status, answer, headers = await post(daemon.url + CHAT, body)
        assert status == 200, answer
        said = answer["choices"][0]["message"]["content"]
        by = {one: "1", two: "2"}[said]
        assert headers["x-hxd-version"] == by == str(answer["hxd"]["version"])
        found.add(version_of(headers))
    return found


async def test_by_number_and_back_with_what_hxctl_says(demo: Daemon) -> None:
    assert await answers(demo, DEMO) == {"f16@2"}
    done = await hxctl(demo, "swap", DEMO, "1")
    assert (done.code, done.out.startswith(f"{DEMO} serves {DEMO}:f16@1")) == (0, True), done
    assert [line.split()[0] for line in done.err.splitlines()][-3:] == [
        *("validating", "promoting", "done"),
    ]
    assert await answers(demo, DEMO) == {"f16@1"}
    # The one before is still there: nothing is loaded to go back.
    assert len(await settled(demo, DEMO, 4)) == 4
    back = await hxctl(demo, "rollback", DEMO)
    assert (back.code, "loading" in back.err) == (0, False), back
    assert (await rollouts(demo))[0]["kind"] == "rollback"
    assert await answers(demo, DEMO) == {"f16@2"}
    # What is kept now is what the rollback led away from.
    shown = (await hxctl(demo, "status")).out
    assert f"{DEMO}: hxctl swap {DEMO} f16@1 is instant for" in shown, shown


async def test_by_variant_by_label_and_by_both_at_once(demo: Daemon) -> None:
    label = await hxctl(demo, "label", DEMO, "prod", "1")
    assert label.code == 0, label
    for asked, release in [("q8_0", "q8_0@2"), ("prod", "q8_0@1"), ("f16@2", "f16@2")]:
        done = await swap(demo, DEMO, asked)
        assert (done["phase"], f":{release} " in done["to"]) == ("done", True), done
        assert await answers(demo, DEMO) == {release}
    for release in ("q8_0@1", "q8_0@2", "f16@2"):
        assert (await rollback(demo, DEMO))["phase"] == "done"
        assert await answers(demo, DEMO) == {release}
    status, error = await admin(demo, "POST", "rollback", {"model": DEMO})
    assert (status, error["error"]["code"]) == (409, "nothing_to_roll_back_to")


async def test_to_what_serves_already_is_done_at_once(demo: Daemon) -> None:
    before = await replicas(demo, DEMO)
    for asked in (2, "f16", "f16@2", "stable"):
        done = await swap(demo, DEMO, asked)
        assert [step["phase"] for step in done["steps"]] == ["promoting", "done"]
    assert {row["pid"] for row in before} <= {row["pid"] for row in await replicas(demo, DEMO)}
    status, error = await admin(
        demo, "POST", "rollouts", {"model": DEMO, "version": 2, "canary": 0.5}
    )
    assert (status, error["error"]["code"]) == (409, "already_served")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ({"version": 99}, 400, "99"),
        ({"version": "nowhere"}, 404, "nowhere"),
        ({"version": "q4_k_x"}, 404, "q4_k_x"),
        ({"version": "q9_9@2"}, 400, "q9_9"),
        ({"version": "q8_0@nowhere"}, 404, "nowhere"),
        ({"version": "9" * 200}, 404, "999"),
        ({"version": "01"}, 404, "01"),
        ({"version": "\uff11"}, 404, "\uff11"),
        ({"version": "../../etc"}, 404, "etc"),
        ({"plugin": "nobody@1.0"}, 400, "nobody"),
        ({"plugin": "echo"}, 400, "echo"),
        ({"version": 1, "mode": "brave"}, 400, "mode"),
        ({"version": 1, "canary": "110%"}, 400, "canary"),
        ({"version": 1, "canary": 0}, 400, "canary"),
        ({"version": 1, "ab": True}, 400, "ab"),
        ({"version": 1, "canary": 0.1, "time": "soon"}, 400, "time"),
        ({"version": 1, "canary": 0.1, "time": "0s"}, 400, "1s to 30d are possible"),
        ({"version": 1, "canary": 0.1, "at_least": -1}, 400, "at_least"),
        ({"version": 1, "sticky": "glue"}, 400, "sticky"),
        ({}, 400, "version"),
        ({"version": 1, "unknown": 1}, 400, "unknown"),
        ({"version": [1]}, 400, "version"),
        ({"model": "nobody", "version": 1}, 404, "nobody"),
    ],
)
async def test_what_is_not_there_is_refused_in_words_and_changes_nothing(
    demo: Daemon, arguments: dict[str, Any], status: int, says: str
) -> None:
    found, error = await admin(demo, "POST", "rollouts", {"model": DEMO, **arguments})
    assert (found, says in error["error"]["message"]) == (status, True), error
    assert (await swap(demo, DEMO, 2))["phase"] == "done"


async def test_hxctl_ends_with_1_for_what_is_not_there(demo: Daemon) -> None:
    for arguments in ((DEMO, "99"), (DEMO, "nowhere"), ("nobody", "1")):
        said = await hxctl(demo, "swap", *arguments)
        assert (said.code, arguments[-1] in said.err or arguments[0] in said.err) == (1, True)


async def test_only_what_waiting_mends_ends_with_75(demo: Daemon) -> None:
    for arguments in (("swap", DEMO, "2", "--canary", "10%"), ("promote", DEMO)):
        said = await hxctl(demo, *arguments)
        assert (said.code, DEMO in said.err) == (1, True), said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--canary", "10%", "--ab", "50%"), 2, "--canary or --ab"),
        (("--canary", "nan"), 1, "canary: a share between 0 and 1"),
        (("--ab", "inf"), 1, "canary: a share between 0 and 1"),
    ],
)
async def test_a_share_that_is_none_is_refused(
    demo: Daemon, arguments: tuple[str, ...], code: int, says: str
) -> None:
    said = await hxctl(demo, "swap", DEMO, "1", *arguments)
    assert (said.code, says in said.err) == (code, True), said


async def test_who_stops_to_watch_a_rollout_is_told_that_it_goes_on(demo: Daemon) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, "--socket", str(demo.folder / "run" / "admin.sock")),
        *("swap", DEMO, "1", "--ab", "50%", "--for", "10m", "--wait"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while not (await process.stderr.readline()).startswith(b"trial"):
            assert not process.stderr.at_eof()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, b"goes on" in err) == (130, b"", True), err
    [row] = [row for row in await rollouts(demo) if row["model"] == DEMO]
    assert row["phase"] == "trial"
    back = await hxctl(demo, "rollback", DEMO)
    assert back.code == 0, back


async def test_what_belongs_to_a_trial_or_names_nothing_swaps_nothing(demo: Daemon) -> None:
    for asked, says in (
        (("1", "--for", "5s"), "--for is of a trial; give --canary SHARE"),
        (("1", "--at-least", "0"), "--at-least is of a trial"),
        (("",), "what to serve is empty"),
    ):
        said = await hxctl(demo, "swap", DEMO, *asked)
        assert (said.code, says in said.err) == (2, True), said


async def test_what_can_not_be_recorded_is_said_until_it_is(
    demo: Daemon,
) -> None:
    record = demo.folder / "state" / "deployments.json"
    before = record.read_bytes() if record.exists() else b""
    record.unlink(missing_ok=True)
    record.mkdir()
    done = await hxctl(demo, "swap", DEMO, "1")
    assert (done.code, "it is not on record: " in done.out) == (0, True), done
    assert await answers(demo, DEMO) == {"f16@1"}
    assert "choice-not-recorded" in (await hxctl(demo, "conditions")).out
    record.rmdir()
    again = await hxctl(demo, "swap", DEMO, "1")
    assert (again.code, "not on record" in again.out) == (0, False), again
    assert record.read_bytes() != before
    assert "choice-not-recorded" not in (await hxctl(demo, "conditions")).out
    assert (await rollback(demo, DEMO))["phase"] == "done"
    assert await answers(demo, DEMO) == {"f16@2"}


async def test_a_second_rollout_is_told_to_wait_and_a_rollback_takes_the_first_back(
    demo: Daemon,
) -> None:
    first = await begin(demo, DEMO, "q8_0@1", canary=0.01, time=600)
    status, error = await admin(demo, "POST", "rollouts", {"model": DEMO, "version": 2})
    assert (status, error["error"]["code"]) == (409, "rollout_running")
    said = await hxctl(demo, "swap", DEMO, "1")
    assert (said.code, "rollback" in said.err) == (75, True), said
    back = await hxctl(demo, "rollback", DEMO)
    assert (back.code, "rolled back" in back.out) == (0, True), back
    row = await over(demo, first)
    assert (row["phase"], row["reason"]) == ("rolled_back", "rolled back by an operator")
    assert await answers(demo, DEMO) == {"f16@2"}
    # Another model is not concerned.
    await swap(demo, "echo", None, plugin="echo")


async def test_each_release_that_lives_is_asked_by_its_name(demo: Daemon) -> None:
    await hxctl(demo, "label", DEMO, "prod", "1")
    await swap(demo, DEMO, "q8_0@1")
    trial = await begin(demo, DEMO, "f16@2", canary=0.01, time=600)
    await in_phase(demo, trial, "trial")
    for reference, release in {
        DEMO: "q8_0@1",
        f"{DEMO}@stable": "q8_0@1",
        f"{DEMO}@canary": "f16@2",
        f"{DEMO}@1": "q8_0@1",
        f"{DEMO}@2": "f16@2",
        f"{DEMO}@prod": "q8_0@1",
        f"{DEMO}:q8_0": "q8_0@1",
        f"{DEMO}:q8_0@1": "q8_0@1",
        f"{DEMO}:f16@2": "f16@2",
    }.items():
        assert await answers(demo, reference) == {release}, reference
    for reference in (f"{DEMO}:f16", f"{DEMO}@3", f"{DEMO}:q4_0@2", f"{DEMO}@nobody"):
        status, error, _ = await post(demo.url + CHAT, chat(reference, "?"))
        assert (status, error["error"]["code"]) == (404, "model_not_found"), reference
    await rollback(demo, DEMO)
    status, _, _ = await post(demo.url + CHAT, chat(f"{DEMO}@canary", "?"))
    assert status == 404
    assert (await swap(demo, DEMO, "f16@2"))["phase"] == "done"


EMBEDDINGS = ("/v1/embeddings", {"model": "minilm", "input": ["a text", "another text"]})


async def test_no_request_of_20_clients_fails_while_versions_come_and_go(demo: Daemon) -> None:
    others = [EMBEDDINGS] if MINILM.exists() else []
    clients = Clients(demo, DEMO, telling())
    async with clients.asking(20, *others) as seen:
        for asked in (1, None, "q8_0", "f16"):
            done = await (rollback(demo, DEMO) if asked is None else swap(demo, DEMO, asked))
            assert done["phase"] == "done", done
    seen.check()
    assert {"f16@1", "f16@2", "q8_0@2"} <= seen.answers.keys(), seen.answers


async def test_nor_while_workers_are_killed_meanwhile(demo: Daemon) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")  # noqa: T201 - so that a failure can be seen again
    choice, clients = random.Random(seed), Clients(demo, DEMO, telling())
    clients.mixed_allowed = True

    async def kill(count: int) -> None:
        while count:
            pids = [row["pid"] for row in await replicas(demo, DEMO) if row["pid"]]
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(choice.choice(pids), KILL)
                count -= 1
            await clients.seen.more(20)

    async with clients.asking(10) as seen:
        killing = asyncio.create_task(kill(6))
        for asked in itertools.cycle((1, None)):
            done = await (rollback(demo, DEMO) if asked is None else swap(demo, DEMO, asked))
            assert done["phase"] == "done", done
            if killing.done() and asked is None:
                break
        await killing
    seen.check()


# --- versions that turn out bad

BIRDS = f"""
[models.{BIRD}]
plugin = "{PLUGIN}@1.0"
replicas = 2
slots = 8
grace = "60s"
load_time = "2s"
[models.mayfly]
plugin = "{PLUGIN}@1.0"
grace = "0s"
context = 8192
options = {{ rate = 50 }}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def birds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("birds")
    install(
        folder / "state",
        folder / "scratch",
        v1_0=GOOD,
        v2_0=GOOD,
        v2_1=HURRIES,
        v3_0=CRASHES_AT_LOAD,
        v3_1=HANGS_AT_LOAD,
        v3_2=CRASHES_WHEN_ASKED,
        v3_3=TALKS_GARBAGE,
        v4_0=CRASHES_AT_THE_THIRD,
        v4_1=FAILS_WHEN_ASKED,
        v4_2=HANGS_WHEN_ASKED,
        v5_0=SPEAKS_ANOTHER_LANGUAGE,
        v6_0=IS_SLOW_TO_LOAD,
    )
    async with running(write_config(folder, BIRDS, extra='[limits]\ndrain = "1s"\n')) as daemon:
        yield daemon


async def says(daemon: Daemon) -> str:
    """The version of the bird in service."""
    status, answer, _ = await post(daemon.url + CHAT, chat(BIRD, "who"))
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"].removesuffix(" who"))


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.0", "its workers die.*SIGSEGV"),
        ("3.1", "its workers die.*still loading after 2 s"),
        ("3.2", "its workers die.*SIGSEGV"),
        ("3.3", "0.0% of 8 golden prompts right"),
    ],
)
async def test_what_does_not_come_up_or_answers_nonsense_never_meets_a_client(
    birds: Daemon, version: str, reason: str
) -> None:
    before = await settled(birds, BIRD, 2)
    clients = Visitors(birds, "1.0")
    async with clients.asking(4) as seen:
        done = await swap(birds, BIRD, None, plugin=f"{PLUGIN}@{version}")
    seen.check()
    assert done["phase"] == "rolled_back", done
    assert re.search(reason, done["reason"]), done["reason"]
    assert (await event(birds, BIRD, "rolled_back"))["subject"] == BIRD
    # Who served so far still does, and nothing of the other is left.
    after = await settled(birds, BIRD, 2)
    assert [row["pid"] for row in after] == [row["pid"] for row in before]


async def test_a_good_version_is_not_held_to_what_a_bad_one_did_to_its_prompts(
    birds: Daemon,
) -> None:
    await swap(birds, BIRD, None, plugin=f"{PLUGIN}@3.2")
    done = await swap(birds, BIRD, None, plugin=f"{PLUGIN}@2.0")
    assert (done["phase"], await says(birds)) == ("done", "2.0"), done
    assert done["notes"] == ["100.0% of 8 golden prompts right"]
    await rollback(birds, BIRD)


# One client after the other, the same prompts again and again, looks as if a prompt were to blame.
@pytest.mark.parametrize(("version", "count"), [("4.0", 1), ("4.0", 8), ("4.1", 8), ("4.2", 1)])
async def test_what_breaks_under_its_clients_is_taken_back_and_they_never_know(
    birds: Daemon, version: str, count: int
) -> None:
    assert await says(birds) == "1.0"
    clients = Visitors(birds, "1.0", version)
    async with clients.asking(count) as seen:
        done = await swap(birds, BIRD, None, plugin=f"{PLUGIN}@{version}")
        assert done["phase"] == "done", done
        back = await taken_back(birds, BIRD, done)
    assert "by itself" in back["why"]
    seen.check()
    # Nobody is refused for what the bad version did.
    clients = Visitors(birds, "1.0")
    async with clients.asking(8) as seen:
        await seen.more(60)
    seen.check()
    await settled(birds, BIRD, 2)


async def test_a_kill_from_outside_while_it_loads_is_not_its_fault(birds: Daemon) -> None:
    known = {row["replica"] for row in await replicas(birds, BIRD)}
    rollout = await begin(birds, BIRD, None, plugin=f"{PLUGIN}@6.0")
    killed: set[int] = set()
    async with asyncio.timeout(60):
        while len(killed) < 3:
            for row in await replicas(birds, BIRD):
                new = row["replica"] not in known and row["pid"] not in killed
                if new and row["pid"] and row["state"] == "loading":
                    os.kill(row["pid"], KILL)
                    killed.add(row["pid"])
    done = await over(birds, rollout)
    assert (done["phase"], await says(birds)) == ("done", "6.0"), done
    assert (await rollback(birds, BIRD))["phase"] == "done"
    assert await says(birds) == "1.0"


def long_story(seconds: int) -> dict[str, Any]:
    return chat("mayfly", "client " + "x" * 50 * seconds)


async def test_a_stream_that_outlasts_its_version_goes_on_with_the_next_one(birds: Daemon) -> None:
    body = long_story(40)
    async with opened(birds, body) as stream:
        await stream.until(5)
        done = await swap(birds, "mayfly", None, plugin=f"{PLUGIN}@2.1")
        assert done["phase"] == "done"
        answer = await stream.rest()
    assert (answer.whole, answer.error) == (True, None)
    assert answer.text == f"1.0 {body['messages'][0]['content']}"
    assert (answer.failovers, len(answer.hxd["versions"])) == (1, 2)
    assert (await rollback(birds, "mayfly"))["phase"] == "done"


async def test_a_stream_that_the_next_version_can_not_go_on_with_ends_and_says_so(
    birds: Daemon,
) -> None:
    async with opened(birds, long_story(40)) as stream:
        await stream.until(5)
        done = await swap(birds, "mayfly", None, plugin=f"{PLUGIN}@5.0")
        assert done["phase"] == "done"
        answer = await stream.rest()
    assert answer.error is not None
    assert "has another vocabulary" in answer.error["message"], answer.error
    assert (await rollback(birds, "mayfly"))["phase"] == "done"


async def test_without_room_the_old_version_ends_first_and_who_comes_waits(birds: Daemon) -> None:
    clients = Visitors(birds, "1.0", "2.0")
    async with clients.asking(12) as seen:
        done = await swap(birds, BIRD, None, plugin=f"{PLUGIN}@2.0", mode="resource")
        assert [step["phase"] for step in done["steps"]] == [
            *("yielding", "loading", "validating", "promoting", "done"),
        ]
        await seen.more(30)
    seen.check()
    assert {"1.0", "2.0"} <= seen.answers.keys()
    assert await says(birds) == "2.0"
    await settled(birds, BIRD, 2)


@pytest.mark.parametrize("version", ["3.0", "3.2", "3.3"])
async def test_if_that_fails_the_old_version_comes_back_and_they_still_get_their_answers(
    birds: Daemon, version: str
) -> None:
    former = await says(birds)
    clients = Visitors(birds, former, version)
    async with clients.asking(8) as seen:
        done = await swap(birds, BIRD, None, plugin=f"{PLUGIN}@{version}", mode="resource")
        assert (done["phase"], done["mode"]) == ("rolled_back", "resource")
        await seen.more(30)
    seen.check()
    assert await says(birds) == former
    await settled(birds, BIRD, 2)


TIGHT = MODEL.format(replicas=2, grace="60s")


async def test_the_memory_budget_decides_whether_both_fit(tmp_path: Path) -> None:
    ask_little(tmp_path / "state")
    room = '[memory]\nbudget = "200MB"\n'
    async with running(write_config(tmp_path, TIGHT, extra=room)) as daemon:
        clients = Clients(daemon, DEMO, telling())
        async with clients.asking(6) as seen:
            done = await swap(daemon, DEMO, 1)
            assert (done["phase"], done["mode"]) == ("done", "resource"), done
            refused = await swap(daemon, DEMO, 2, mode="availability")
            assert (refused["phase"], "memory.budget" in refused["reason"]) == (
                *("rolled_back", True),
            )
            refused = await swap(daemon, DEMO, 2, canary=0.5)
            assert (refused["phase"], "both" in refused["reason"]) == ("rolled_back", True)
            back = await rollback(daemon, DEMO)
            assert (back["phase"], back["mode"]) == ("done", "resource")
            await seen.more(20)
        seen.check()
        assert await answers(daemon, DEMO) == {"f16@2"}
        await settled(daemon, DEMO, 2)


async def test_a_file_that_was_changed_is_not_served_and_a_bad_plugin_is_not_its_fault(
    tmp_path: Path,
) -> None:
    ask_little(state := tmp_path / "state")
    install(state, tmp_path / "scratch", format="gguf", v1_0=CRASHES_AT_LOAD)
    model = MODEL.format(replicas=1, grace="60s")
    async with running(write_config(tmp_path, model)) as daemon:
        failed = await swap(daemon, DEMO, None, plugin=f"{PLUGIN}@1.0")
        assert (failed["phase"], "die" in failed["reason"]) == ("rolled_back", True), failed
        assert await answers(daemon, DEMO) == {"f16@2"}
        again = await swap(daemon, DEMO, "q8_0")
        assert again["phase"] == "done", again
        [file] = (state / "store/models/hxd-demo/1").glob("*.gguf")
        flip(file, 5_000_000)
        clients = Clients(daemon, DEMO, telling())
        async with clients.asking(2) as seen:
            status, error = await admin(daemon, "POST", "rollouts", {"model": DEMO, "version": 1})
            if status == 202:
                error = {"error": {"message": (await over(daemon, error))["reason"]}}
            assert "hxd-demo-f16.gguf" in error["error"]["message"], error
            await seen.more(5)
        seen.check()
        assert await answers(daemon, DEMO) == {"q8_0@2"}


def flip(file: Path, offset: int) -> None:
    """Change a byte, of this name alone: the file may have others."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.unlink()
    file.write_bytes(data)

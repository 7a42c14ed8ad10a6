"""A version is tried on a share of the clients beside the one that serves: a worse one goes by
itself before anybody has noticed, one that is as good stays, and a client sticks to one of them."""

from __future__ import annotations

import asyncio
import json
import math
import tomllib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from hxd.daemon.store import demo as packaged
from hxd.daemon.store.stores import Stores
from tests.failover import CHAT
from tests.rollouts import (
    BIRD,
    CRASHES_AT_THE_THIRD,
    DEMO,
    FAILS_A_FIFTH,
    GOOD,
    IS_SLOW,
    PLUGIN,
    REFUSES_A_THIRD,
    SAYS_NOTHING_TO_A_THIRD,
    Clients,
    Row,
    Visitors,
    admin,
    begin,
    events,
    hxctl,
    in_phase,
    install,
    judged,
    replicas,
    rollback,
    settled,
    telling,
    when,
)
from tests.support import Daemon, chat, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = f"""
[models.{DEMO}]
source = "builtin:demo"
slots = 8
threads = 1
[models.{BIRD}]
plugin = "{PLUGIN}@1.0"
replicas = 2
slots = 8
options = {{ rate = 200 }}
[routes.birds]
chain = ["{BIRD}", "{DEMO}"]
"""
QUESTIONS = 48


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("canary")
    golden_prompts(folder / "state")
    birds(folder)
    async with running(write_config(folder, CONFIG)) as daemon:
        yield daemon


def golden_prompts(state: Path) -> None:
    """The first of the demo's own: they are as balanced as all of them, and asked in no time."""
    data = packaged.golden()
    assert data is not None
    prompts = tomllib.loads(data.decode())["prompt"][:QUESTIONS]
    lines = [
        f"[[prompt]]\ntext = {text!r}\nexpect = {expect!r}\nmax_tokens = 40"
        for text, expect in ((one["text"], one["expect"]) for one in prompts)
        if "'" not in text
    ]
    stores = Stores.of(state)
    with stores.held():
        stores.models.set_golden(DEMO, "\n".join(lines).encode())


def birds(folder: Path) -> None:
    install(
        folder / "state",
        folder / "scratch",
        v1_0=GOOD,
        v2_0=GOOD,
        v4_0=CRASHES_AT_THE_THIRD,
        v6_0=FAILS_A_FIFTH,
        v6_1=IS_SLOW,
        v6_2=SAYS_NOTHING_TO_A_THIRD,
        v6_3=REFUSES_A_THIRD,
    )


async def test_a_version_that_answers_worse_is_taken_back_with_the_numbers(box: Daemon) -> None:
    clients = Clients(box, DEMO, telling())
    async with clients.asking(6) as seen:
        trial = await begin(box, DEMO, 1, canary="50%", time="20s")
        done = await judged(box, trial)
    seen.check()
    assert done["phase"] == "rolled_back"
    assert "golden prompts right 7" in done["reason"], done["reason"]
    assert "Tango (exact) p " in done["reason"], done["reason"]
    assert done["verdict"]["decision"] == "roll_back"
    [golden] = [row for row in done["verdict"]["reasons"] if row["metric"] == "golden"]
    assert golden["canary"] < 0.85 < golden["stable"]
    assert golden["p"] < golden["alpha"]
    [event] = [e for e in await events(box, DEMO) if e["step"] == "verdict"]
    assert event["detail"]["decision"] == "roll_back"
    await settled(box, DEMO, 1)


async def test_a_version_that_is_as_good_is_promoted_by_itself(box: Daemon) -> None:
    clients = Clients(box, DEMO, telling())
    async with clients.asking(6) as seen:
        done = await judged(box, await begin(box, DEMO, "q8_0", canary=0.5, time=2, at_least=20))
        assert done["phase"] == "done", done["reason"]
        await seen.more(20)
    seen.check()
    assert {"f16@2", "q8_0@2"} <= seen.answers.keys()
    assert done["verdict"]["words"].startswith("promoted: ")
    [requests] = [row for row in done["comparison"] if row["metric"] == "requests"]
    assert requests["canary"] >= 20
    shown = await hxctl(box, "rollouts")
    assert "promoted: nothing was worse" in shown.out
    assert "ttft_median" in shown.out
    assert (await rollback(box, DEMO))["phase"] == "done"


@pytest.mark.parametrize(
    ("model", "version", "metric", "says"),
    [
        # Whichever is seen first: two deaths, or the requests that one death hit.
        (BIRD, "4.0", "deaths error_rate", "workers died by themselves|error"),
        (BIRD, "6.0", "error_rate", "error"),
        (BIRD, "6.1", "speed", "tokens per second"),
        (BIRD, "6.3", "error_rate", "error"),
        ("birds", "4.0", "deaths error_rate", "workers died by themselves|error"),
    ],
)
async def test_a_version_that_breaks_or_drags_is_taken_back_and_no_client_sees_it(
    box: Daemon, model: str, version: str, metric: str, says: str
) -> None:
    clients = Visitors(box, "1.0", version, model=model, prompts=24)
    async with clients.asking(8) as seen:
        done = await judged(
            box,
            await begin(box, BIRD, None, plugin=f"{PLUGIN}@{version}", canary=0.5, time="20s"),
        )
        await seen.more(20)
    seen.check()
    assert done["phase"] == "rolled_back", done
    assert any(words in done["reason"] for words in says.split("|")), done["reason"]
    first = done["verdict"]["reasons"][0]
    assert first["metric"] in metric.split() and first["worse"], first
    # Nobody is refused afterwards for what it did.
    clients = Visitors(box, "1.0", model=model, prompts=24)
    async with clients.asking(4) as seen:
        await seen.more(48)
    seen.check()
    await settled(box, BIRD, 2)


class Patient(Visitors):
    """Clients that take no answer for one."""

    def _judge(self, texts: list[str], right: dict[str, str], release: str, hxd: Row) -> None:
        super()._judge([text for text in texts if text], right, release, hxd)


async def test_a_version_that_leaves_clients_without_an_answer_is_taken_back(box: Daemon) -> None:
    clients = Patient(box, "1.0", "6.2", prompts=24)
    async with clients.asking(6) as seen:
        trial = await begin(box, BIRD, None, plugin=f"{PLUGIN}@6.2", canary=0.5, time="20s")
        done = await judged(box, trial)
    seen.check()
    assert done["phase"] == "rolled_back", done
    assert "empty answers " in done["reason"], done["reason"]
    [empty] = [row for row in done["comparison"] if row["metric"] == "empty_share"]
    assert empty["stable"] == 0 < empty["canary"]
    await settled(box, BIRD, 2)


async def test_it_goes_on_until_it_had_so_many_requests_and_by_hand_it_ends_either_way(
    box: Daemon,
) -> None:
    asked = {"plugin": f"{PLUGIN}@2.0", "canary": 0.5, "time": 3, "at_least": 100_000}
    trial = await begin(box, BIRD, None, **asked)
    clients = Visitors(box, "1.0", "2.0", prompts=24)
    async with clients.asking(4) as seen:
        await in_phase(box, trial, "trial")
        waiting = await when(
            box, trial, lambda row: bool(row["verdict"]) and row["verdict"]["elapsed"] > 3.2
        )
        assert waiting["phase"] == "trial"
        assert " of 100000 requests" in waiting["verdict"]["words"]
        # Not by hxctl, which takes a while to start: without its requests the trial ends by itself.
        back = await rollback(box, BIRD)
        assert (back["phase"], back["reason"]) == ("rolled_back", "rolled back by an operator")
        again = await begin(box, BIRD, None, **asked | {"time": 600})
        status, error = await admin(box, "POST", "promote", {"model": BIRD})
        if status != 202:
            assert (status, error["error"]["code"]) == (409, "no_canary")
            await in_phase(box, again, "trial")
        promoted = await hxctl(box, "promote", BIRD)
        assert (promoted.code, "2.0" in promoted.out) == (0, True), promoted
        before = seen.answers["1.0"]
        await seen.more(40)
    seen.check()
    # What was on its way is at its end; nobody begins with the former any more.
    assert seen.answers["1.0"] - before <= 4
    status, error = await admin(box, "POST", "promote", {"model": BIRD})
    assert (status, error["error"]["code"]) == (409, "no_canary")
    assert (await rollback(box, BIRD))["phase"] == "done"


async def test_two_versions_stand_side_by_side_and_nothing_is_decided(box: Daemon) -> None:
    clients = Visitors(box, "1.0", "6.1", prompts=24)
    async with clients.asking(6) as seen:
        trial = await begin(box, BIRD, None, plugin=f"{PLUGIN}@6.1", canary=0.5, ab=True, time="5s")
        await in_phase(box, trial, "trial")
        row = await when(box, trial, lambda row: _of(row, "requests")["canary"] > 5)
        assert (row["kind"], row["phase"]) == ("ab", "trial")
        done = await judged(box, trial)
    seen.check()
    assert (done["phase"], done["reason"]) == (
        "rolled_back",
        "the time of the comparison is over",
    )
    shown = await hxctl(
        box, "swap", BIRD, *f"--plugin {PLUGIN}@2.0 --ab 50% --for 1s --wait".split()
    )
    assert (shown.code, "the time of the comparison is over" in shown.out) == (0, True), shown
    assert "ttft_median" in shown.out
    speed = _of(done, "speed_median")
    assert speed["canary"] < 0.7 * speed["stable"]


def _of(row: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(one for one in row["comparison"] if one["metric"] == metric)


async def share_on_canary(
    box: Daemon, askers: list[tuple[dict[str, str], str]]
) -> dict[int, set[str]]:
    """By the number of an asker (headers, first words), the versions that it has met."""
    met: dict[int, set[str]] = defaultdict(set)
    room = asyncio.Semaphore(8)

    async def ask(number: int, headers: dict[str, str], text: str, turn: int) -> None:
        body = chat(BIRD, text)
        for said in range(turn):
            body["messages"] += [
                {"role": "assistant", "content": f"yes {said}"},
                {"role": "user", "content": f"and {said}?"},
            ]
        async with room:
            status, answer, _ = await post(box.url + CHAT, body, headers=headers)
        assert status == 200, answer
        met[number].add(answer["choices"][0]["message"]["content"].split()[0])

    async with asyncio.TaskGroup() as group:
        for number, (headers, text) in enumerate(askers):
            for turn in range(3):
                group.create_task(ask(number, headers, text, turn))
    return met


def within_chance(met: dict[int, set[str]], share: float) -> None:
    """Five standard deviations of a binomial."""
    assert all(len(versions) == 1 for versions in met.values()), met
    hits = sum(versions == {"2.0"} for versions in met.values())
    spread = 5 * math.sqrt(len(met) * share * (1 - share))
    assert abs(hits - share * len(met)) < spread, f"{hits} of {len(met)}"
    assert 0 < hits < len(met)


async def test_a_conversation_stays_with_one_version(box: Daemon) -> None:
    trial = await begin(box, BIRD, None, plugin=f"{PLUGIN}@2.0", canary=0.3, time=600)
    await in_phase(box, trial, "trial")
    met = await share_on_canary(box, [({}, f"conversation {n}") for n in range(60)])
    within_chance(met, 0.3)
    await rollback(box, BIRD)


@pytest.mark.parametrize("sticky", ["key", "conversation"])
async def test_a_key_stays_with_one_version_unless_conversations_do(
    tmp_path: Path, sticky: str
) -> None:
    birds(tmp_path)
    config = f'[models.{BIRD}]\nplugin = "{PLUGIN}@1.0"\nslots = 16\n'
    async with running(write_config(tmp_path, config, auth=True)) as box:
        keys = []
        for number in range(60 if sticky == "key" else 1):
            status, made = await admin(box, "POST", "keys", {"name": f"app {number}"})
            assert status == 201
            keys.append({"Authorization": f"Bearer {made['key']}"})
        trial = await begin(
            box, BIRD, None, plugin=f"{PLUGIN}@2.0", canary=0.3, time=600, sticky=sticky
        )
        await in_phase(box, trial, "trial")
        askers = [(keys[n % len(keys)], f"conversation {n}") for n in range(60)]
        met = await share_on_canary(box, askers)
        within_chance(met, 0.3)
        if sticky == "key":
            again = await share_on_canary(box, [(key, "what else") for key in keys])
            assert again == met
        refused, _, _ = await post(box.url + CHAT, chat(BIRD, "who"))
        assert refused == 401


async def test_what_a_full_canary_can_not_take_goes_to_the_version_in_service(
    tmp_path: Path,
) -> None:
    birds(tmp_path)
    config = f"""
[models.{BIRD}]
plugin = "{PLUGIN}@1.0"
replicas = 2
slots = 1
queue = 0
options = {{ rate = 100 }}
"""
    async with running(write_config(tmp_path, config)) as box:
        trial = await begin(box, BIRD, None, plugin=f"{PLUGIN}@2.0", canary=0.5, time=600)
        await in_phase(box, trial, "trial")
        texts = [f"conversation {number} " + "tells much " * 100 for number in range(20)]
        # Each holds the only slot of its version for ten seconds, unless it is given up.
        first, second = [text for text in texts if await version_met(box, text) == "2.0"][:2]
        await idle(box)
        async with asking(box, first) as held:
            assert await begins_with(held, "2.0")
            async with asking(box, second) as other:
                assert await begins_with(other, "1.0")
        await rollback(box, BIRD)


async def idle(box: Daemon) -> None:
    """Until the slots of answers that were given up are free."""
    async with asyncio.timeout(30):
        while True:
            if not any(row["running"] for row in await replicas(box, BIRD)):
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def asking(box: Daemon, text: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream, given up at the end."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(box.url + CHAT, json=chat(BIRD, text, stream=True)) as response,
    ):
        assert response.status == 200, await response.text()
        yield response


async def begins_with(response: aiohttp.ClientResponse, version: str) -> bool:
    """Whether the answer does, once there is enough of it."""
    text = ""
    async for line in response.content:
        if line.startswith(b"data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            text += delta.get("content") or ""
        if len(text) >= len(version):
            return text.startswith(version)
    raise AssertionError(f"only {text!r} came")


async def version_met(box: Daemon, text: str) -> str:
    """The version that this conversation meets, if there is a slot."""
    await idle(box)
    async with asking(box, text) as response:
        return "2.0" if await begins_with(response, "2.0") else "1.0"

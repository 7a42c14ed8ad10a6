"""A route answers with the first model of its chain that can, and says which that was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from hxd.config import load
from hxd.errors import ConfigError
from tests.support import DEMO, chat, echo, get, hxctl, post, running, write_config

BROKEN = echo("first", options={"fault_at": "load", "fault": "raise"}, required=False)
ROUTE = '[routes.assistant]\nchain = ["first", "second"]\n'


async def test_a_model_that_can_not_answer_is_stood_in_for_and_that_is_said(
    tmp_path: Path,
) -> None:
    models = BROKEN + echo("second") + ROUTE
    async with running(write_config(tmp_path, models)) as daemon:
        url = daemon.url + "/v1/chat/completions"
        status, body, headers = await post(url, chat("assistant", "who is there?"))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "who is there?")
        assert (headers["x-hxd-model"], body["model"]) == ("second", "second")
        raised = {found["code"]: found for found in await conditions_of(daemon)}
        assert raised["route-on-fallback"]["subject"] == "assistant"
        _, models_listed = await get(daemon.url + "/v1/models")
        listed = {entry["id"]: entry["hxd"] for entry in models_listed["data"]}
        assert listed["assistant"] == {"chain": ["first", "second"]}
        status, body, headers = await post(
            daemon.url + "/tokenize", {"model": "assistant", "content": "ab"}
        )
        assert (status, body["tokens"], headers["x-hxd-model"]) == (200, [97, 98], "second")


async def conditions_of(daemon: object) -> list[dict[str, str]]:
    _, found = await get(daemon.url + "/admin/v1/conditions")  # type: ignore[attr-defined]
    return found  # type: ignore[return-value]


async def test_the_first_model_answers_while_it_can(tmp_path: Path) -> None:
    models = echo("first") + echo("second") + ROUTE
    async with running(write_config(tmp_path, models)) as daemon:
        for _ in range(3):
            _, body, headers = await post(
                daemon.url + "/v1/chat/completions", chat("assistant", "hi")
            )
            assert (headers["x-hxd-model"], body["model"]) == ("first", "first")
        assert not await conditions_of(daemon)


@pytest.mark.parametrize("engine", ["llama_cpp", "ctransformers"])
async def test_a_stream_goes_on_with_the_next_model_where_the_vocabulary_is_the_same(
    tmp_path: Path, engine: str
) -> None:
    demo = DEMO.format(replicas=1)
    again = demo.replace("[models.hxd-demo]", f'[models.stand-in]\nplugin = "{engine}"')
    route = '[routes.assistant]\nchain = ["hxd-demo", "stand-in"]\n'
    async with running(write_config(tmp_path, demo + again + route)) as daemon:
        body = chat(
            "assistant",
            "Tell me a story about Ada.",
            temperature=0,
            max_tokens=200,
            ignore_eos=True,
        )
        _, alone, _ = await post(daemon.url + "/v1/chat/completions", body)
        expected = alone["choices"][0]["message"]["content"]
        replicas = await hxctl(daemon, "replicas")
        victim = next(row["pid"] for row in replicas if row["replica"] == "hxd-demo-1")
        text, end = "", {}
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                daemon.url + "/v1/chat/completions", json={**body, "stream": True}
            ) as response,
        ):
            assert response.headers["x-hxd-model"] == "hxd-demo"
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                assert "error" not in event, event
                [choice] = event["choices"]
                text += choice["delta"].get("content") or ""
                if text and victim:
                    os.kill(victim, signal.SIGKILL)
                    victim = None
                end = event.get("hxd") or end
        assert text == expected
        assert (end["model"], end["replicas"]) == ("stand-in", ["hxd-demo-1", "stand-in-1"])


async def test_a_route_whose_models_are_all_down_says_so(tmp_path: Path) -> None:
    down = BROKEN + BROKEN.replace("first", "second") + ROUTE
    async with running(write_config(tmp_path, down), ready=False) as daemon:
        url = daemon.url + "/v1/chat/completions"
        async with asyncio.timeout(60):
            while True:
                status, body, headers = await post(url, chat("assistant", "anybody?"))
                assert status == 503
                assert int(headers["Retry-After"]) >= 1
                if body["error"]["code"] == "model_unavailable":
                    break
        assert "told to raise" in body["error"]["message"]


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ('[routes.a]\nchain = ["b"]\n[routes.b]\nchain = ["a"]', "leads back to itself: a → b → a"),
        ('[routes.a]\nchain = ["a"]', "leads back to itself: a → a"),
        ('[routes.a]\nchain = ["secnd"]', "no model or route 'secnd' is configured. Did you mean"),
        ("[routes.a]\nchain = []", "must name a model at least"),
        ("[routes.a]", "must name a model at least"),
        ('[routes.second]\nchain = ["second"]', "there is a model of this name"),
        ("[routes]\na = 1", "routes.a: expected a table"),
        ('[routes.a]\nchian = ["second"]', "did you mean 'chain'"),
        ('[routes."../a"]\nchain = ["second"]', "routes.../a: a model's name has letters"),
    ],
)
def test_a_route_that_leads_nowhere_is_found_before_the_start(
    tmp_path: Path, routes: str, words: str
) -> None:
    config = write_config(tmp_path, echo("second"), extra=routes)
    with pytest.raises(ConfigError) as raised:
        load(config)
    assert words in str(raised.value)


def test_routes_may_lead_to_routes(tmp_path: Path) -> None:
    routes = '[routes.a]\nchain = ["b", "second"]\n[routes.b]\nchain = ["second"]'
    config = load(write_config(tmp_path, echo("second"), extra=routes))
    assert config.routes["a"].chain == ("b", "second")

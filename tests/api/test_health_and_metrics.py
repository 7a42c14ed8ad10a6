"""What operators and probes read: health routes and numbers that move."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import Daemon, chat, get, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(shared: Daemon) -> Samples:
    async with (
        aiohttp.ClientSession() as session,
        session.get(shared.url + "/metrics") as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


async def test_the_probes_say_yes(shared: Daemon) -> None:
    assert await get(shared.url + "/livez") == (200, {"status": "ok"})
    assert await get(shared.url + "/readyz") == (200, {"status": "ready"})


async def test_health_tells_the_state_of_every_model(shared: Daemon) -> None:
    status, health = await get(shared.url + "/health")
    assert status == 200
    assert (health["status"], health["live"], health["ready"]) == ("ok", True, True)
    rows = {row["model"]: row for row in health["models"]}
    assert rows.keys() == {"hxd-demo", "echo", "slow"}
    assert (rows["hxd-demo"]["ready"], rows["hxd-demo"]["slots"]) == (2, 4)
    assert (rows["slow"]["slots"], rows["slow"]["queue"]) == (2, 2)


async def test_metrics_have_the_names_that_dashboards_ask_for(shared: Daemon) -> None:
    await post(shared.url + "/v1/chat/completions", chat("echo", "hello"))
    names = {name for name, _ in await scrape(shared)}
    assert {
        "hxd_requests_total", "hxd_tokens_total", "hxd_requests_running", "hxd_requests_waiting",
        "hxd_queue_capacity", "hxd_slots", "hxd_workers", "hxd_time_to_first_token_seconds_bucket",
        "hxd_inter_token_latency_seconds_bucket", "vllm:num_requests_running",
        "vllm:num_requests_waiting", "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket",
        "vllm:kv_cache_usage_perc",
    } <= names  # fmt: skip


async def test_requests_and_tokens_are_counted_exactly(shared: Daemon) -> None:
    before = await scrape(shared)
    await post(shared.url + "/v1/chat/completions", chat("echo", "hello"))
    await post(shared.url + "/v1/chat/completions", chat("echo", "hello", n=2, stream=False))
    await post(shared.url + "/v1/chat/completions", chat("echo", "hello", temperature=9))
    after = await scrape(shared)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    endpoint = "/v1/chat/completions"
    assert grown("hxd_requests_total", endpoint=endpoint, model="echo", status="200") == 2
    assert grown("hxd_requests_total", endpoint=endpoint, model="", status="400") == 1
    assert grown("hxd_tokens_total", model="echo", kind="prompt") == 10
    assert grown("hxd_tokens_total", model="echo", kind="completion") == 18
    assert grown("hxd_time_to_first_token_seconds_count", model="echo") == 3
    assert grown("vllm:time_to_first_token_seconds_count", model="echo") == 3
    assert grown("vllm:e2e_request_latency_seconds_count", model="echo") == 2


async def test_running_and_free_slots_show_while_a_stream_runs(shared: Daemon) -> None:
    body = chat("slow", "abc", stream=True, ignore_eos=True)
    async with (
        aiohttp.ClientSession() as session,
        session.post(shared.url + "/v1/chat/completions", json=body) as response,
    ):
        await response.content.readany()
        during = await scrape(shared)
    assert value(during, "hxd_requests_running", model="slow") == 1
    assert value(during, "vllm:num_requests_running", model="slow") == 1
    assert value(during, "vllm:kv_cache_usage_perc", model="slow") == 0.5
    assert value(during, "hxd_slots", model="slow") == 2
    assert value(during, "hxd_workers", model="slow", state="ready") == 1
    async with asyncio.timeout(60):
        while value(await scrape(shared), "hxd_requests_running", model="slow"):
            pass


async def test_a_client_that_leaves_is_counted_as_such(shared: Daemon) -> None:
    labels = {"endpoint": "/v1/chat/completions", "model": "slow", "status": "499"}
    before = value(await scrape(shared), "hxd_requests_total", **labels)
    body = chat("slow", "abc", stream=True, ignore_eos=True)
    async with (
        aiohttp.ClientSession() as session,
        session.post(shared.url + "/v1/chat/completions", json=body) as response,
    ):
        await response.content.readany()
    async with asyncio.timeout(60):
        while value(await scrape(shared), "hxd_requests_total", **labels) == before:
            pass


async def test_what_clients_make_up_does_not_grow_the_metrics(shared: Daemon) -> None:
    url = shared.url
    await get(url + "/made-up-0")
    await post(url + "/v1/chat/completions", chat("made-up-0", "hi"))
    before = len(await scrape(shared))
    for i in range(1, 20):
        await get(f"{url}/made-up-{i}")
        await post(url + "/v1/chat/completions", chat(f"made-up-{i}", "hi"))
    assert len(await scrape(shared)) == before

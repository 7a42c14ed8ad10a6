"""A daemon that requires keys: who gets in, with which key, and what strangers may see."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.support import Daemon, chat, echo, get, hxctl, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRIVATE = [
    "/v1/models", "/v1/models/echo", "/api/v1/models", "/health", "/metrics", "/admin/v1/status",
    "/admin/v1/keys", "/admin/v1/models", "/admin/v1/replicas", "/admin/v1/conditions",
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    config = write_config(tmp_path_factory.mktemp("keys"), echo(), auth=True)
    async with running(config) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys(daemon: Daemon) -> dict[str, str]:
    """A key of each role."""
    roles = ("inference", "metrics", "operator", "admin")
    return {
        role: (await hxctl(daemon, "key", "create", f"test {role}", "--role", role))["key"]
        for role in roles
    }


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", [*PRIVATE, "/nope", "/admin", "/v1/chat/completions"])
async def test_without_a_key_every_route_is_401(daemon: Daemon, path: str) -> None:
    status, answer = await get(daemon.url + path)
    assert status == 401
    assert answer["error"]["code"] == "invalid_api_key"
    assert answer["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", "Bearer wrong", "Bearer hxd-00000000-x", "Basic aHhkOng=",
     "Bearer \xff\xfe", "", "hxd-x", "Bearer " + "x" * 20_000],
    ids=lambda value: value[:20],
)  # fmt: skip
async def test_a_wrong_key_is_401(daemon: Daemon, value: str) -> None:
    status, answer, headers = await post(
        daemon.url + "/v1/chat/completions", chat("echo", "hi"), headers={"Authorization": value}
    )
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert answer["error"]["code"] == "invalid_api_key"


async def test_a_key_with_one_letter_changed_is_401(daemon: Daemon, keys: dict[str, str]) -> None:
    key = keys["inference"]
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert (await get(daemon.url + "/v1/models", **bearer(changed)))[0] == 401
    assert (await get(daemon.url + "/v1/models", **bearer(key)))[0] == 200


async def test_a_key_is_taken_as_bearer_and_as_x_api_key(
    daemon: Daemon, keys: dict[str, str]
) -> None:
    for headers in (
        bearer(keys["inference"]),
        {"Authorization": f"bearer {keys['inference']}"},
        {"x-api-key": keys["inference"]},
    ):
        status, answer, _ = await post(
            daemon.url + "/v1/chat/completions", chat("echo", "hi"), headers=headers
        )
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "hi")


async def test_two_keys_of_one_kind_are_refused(daemon: Daemon, keys: dict[str, str]) -> None:
    headers = [("Authorization", f"Bearer {keys['inference']}"), ("Authorization", "Bearer other")]
    async with (
        aiohttp.ClientSession() as session,
        session.get(daemon.url + "/v1/models", headers=headers) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "ambiguous_key"


@pytest.mark.parametrize(
    ("role", "open_paths"),
    [
        ("inference", {"/v1/models", "/v1/models/echo", "/api/v1/models"}),
        ("metrics", {"/health", "/metrics"}),
        (
            "operator",
            {p for p in PRIVATE if "v1/models" not in p or "admin" in p} - {"/admin/v1/keys"},
        ),
        ("admin", set(PRIVATE)),
    ],
)
async def test_a_role_opens_its_own_routes_and_no_others(
    daemon: Daemon, keys: dict[str, str], role: str, open_paths: set[str]
) -> None:
    opened = set()
    async with aiohttp.ClientSession(headers=bearer(keys[role])) as session:
        for path in PRIVATE:
            async with session.get(daemon.url + path) as response:
                assert response.status in (200, 403)
                if response.status == 200:
                    opened.add(path)
                else:
                    assert (await response.json())["error"]["code"] == "permission_denied"
    assert opened == open_paths


async def test_a_metrics_key_can_not_generate(daemon: Daemon, keys: dict[str, str]) -> None:
    status, _, _ = await post(
        daemon.url + "/v1/chat/completions", chat("echo", "hi"), headers=bearer(keys["metrics"])
    )
    assert status == 403


async def test_an_inference_key_can_not_make_keys(daemon: Daemon, keys: dict[str, str]) -> None:
    status, _, _ = await post(
        daemon.url + "/admin/v1/keys",
        {"name": "mine", "role": "admin"},
        headers=bearer(keys["inference"]),
    )
    assert status == 403
    assert "mine" not in [key["name"] for key in await hxctl(daemon, "key", "list")]


async def test_a_key_stops_working_when_it_is_revoked(daemon: Daemon) -> None:
    made = await hxctl(daemon, "key", "create", "short-lived", "--role", "inference")
    assert (await get(daemon.url + "/v1/models", **bearer(made["key"])))[0] == 200
    await hxctl(daemon, "key", "revoke", made["id"])
    assert (await get(daemon.url + "/v1/models", **bearer(made["key"])))[0] == 401


async def test_keys_are_kept_only_as_hashes(daemon: Daemon, keys: dict[str, str]) -> None:
    stored = (daemon.folder / "state" / "keys.json").read_text()
    listed = json.dumps(await hxctl(daemon, "key", "list"))
    for key in keys.values():
        secret = key.split("-", 2)[2]
        assert secret not in stored
        assert secret not in listed
        assert secret not in daemon.log


async def test_strangers_see_that_the_box_lives_and_no_detail(daemon: Daemon) -> None:
    assert await get(daemon.url + "/livez") == (200, {"status": "ok"})
    assert await get(daemon.url + "/readyz") == (200, {"status": "ready"})


async def test_the_openai_client_maps_refusals_to_its_exceptions(
    daemon: Daemon, keys: dict[str, str]
) -> None:
    for key, kind in (
        ("wrong", openai.AuthenticationError),
        (keys["metrics"], openai.PermissionDeniedError),
    ):
        async with AsyncOpenAI(base_url=daemon.url + "/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(kind):
                await client.models.list()
    async with AsyncOpenAI(base_url=daemon.url + "/v1", api_key=keys["inference"]) as client:
        assert (await client.completions.create(model="echo", prompt="hi")).choices[0].text == "hi"

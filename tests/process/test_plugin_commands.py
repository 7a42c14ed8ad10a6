"""`hxctl plugin` against a real daemon: install, trust, verify, remove, and what is in use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.plugin_packages import contents, plugin, public, sign, zipped
from tests.support import Daemon, chat, echo, get, hxctl, post, run_hxctl, running, write_config


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running(write_config(tmp_path, echo())) as daemon:
        yield daemon


async def rows(daemon: Daemon) -> dict[str, Any]:
    answer = await hxctl(daemon, "plugin", "list")
    return {f"{row['name']}@{row['version']}": row for row in answer["plugins"]}


async def steps(daemon: Daemon, subject: str) -> list[str]:
    return [event["step"] for event in await hxctl(daemon, "events", subject)]


async def said(daemon: Daemon, model: str) -> str:
    _, body, _ = await post(daemon.url + "/v1/chat/completions", chat(model, "?"))
    return str(body["choices"][0]["message"]["content"])


async def test_a_plugin_is_installed_trusted_and_removed_with_the_next_command_told(
    daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "says.zip").write_bytes(zipped(contents(plugin(tmp_path / "says"))))
    code, out, _ = await run_hxctl(daemon, "plugin", "install", str(tmp_path / "says.zip"))
    digest = (await rows(daemon))["says@1.0"]["digest"]
    assert code == 0
    assert out.splitlines() == [
        "says@1.0 installed",
        f"digest   {digest}",
        "trusted  no",
        "next     hxctl plugin trust says@1.0",
    ]
    assert "nobody trusts it yet" in (await rows(daemon))["says@1.0"]["problem"]
    code, out, _ = await run_hxctl(daemon, "plugin", "trust", "says@1.0")
    assert (code, "trusted  digest" in out, "hxctl swap MODEL --plugin" in out) == (0, True, True)
    assert (await rows(daemon))["says@1.0"]["problem"] is None
    code, out, _ = await run_hxctl(daemon, "plugin", "verify", "says@1.0")
    assert (code, out) == (0, "all as they should be\n")
    code, out, _ = await run_hxctl(daemon, "plugin", "untrust", "says@1.0")
    assert code == 0
    code, out, _ = await run_hxctl(daemon, "plugin", "verify")
    assert (code, "says@1.0: plugin says@1.0 is installed, and nobody" in out) == (1, True)
    code, out, _ = await run_hxctl(daemon, "plugin", "rm", "says@1.0")
    assert (code, out) == (0, "says@1.0 removed\n")
    assert "says@1.0" not in await rows(daemon)
    assert await steps(daemon, "says@1.0") == [
        "installed", "trusted", "untrusted", "problem", "removed",
    ]  # fmt: skip


async def test_a_signed_plugin_runs_by_its_key_alone(daemon: Daemon, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    sign(plugin(tmp_path / "says"), key)
    (tmp_path / "public.txt").write_text(public(key))
    code, out, _ = await run_hxctl(
        daemon, "plugin", "trust", "--key", "shouters", str(tmp_path / "public.txt")
    )
    assert code == 0
    assert public(key) in out
    assert await hxctl(daemon, "plugin", "keys") == [{"name": "shouters", "key": public(key)}]
    code, out, _ = await run_hxctl(daemon, "plugin", "install", str(tmp_path / "says"))
    assert (code, "trusted  signature by shouters" in out) == (0, True)
    assert (await run_hxctl(daemon, "plugin", "untrust", "--key", "shouters"))[0] == 0
    assert (await rows(daemon))["says@1.0"]["trusted"] == "no"
    assert await steps(daemon, "key shouters") == ["trusted", "untrusted"]


async def test_a_plugin_in_use_is_not_removed_and_one_that_changed_is_a_condition(
    tmp_path: Path,
) -> None:
    first, second = (plugin(tmp_path / v, version=v, answer=f"'from {v}'") for v in ("1.0", "2.0"))
    async with running(write_config(tmp_path, echo())) as daemon:
        for path in (first, second):
            code, _, err = await run_hxctl(daemon, "plugin", "install", str(path), "--trust")
            assert code == 0, err
        code, _, err = await run_hxctl(daemon, "swap", "echo", "--plugin", "says@1.0")
        assert code == 0, err
        assert await said(daemon, "echo") == "from 1.0"
        assert (await rows(daemon))["says@1.0"]["models"] == ["echo"]
        code, _, err = await run_hxctl(daemon, "plugin", "rm", "says@1.0")
        assert (code, "the model 'echo' has workers with it" in err) == (75, True)
        assert (await run_hxctl(daemon, "swap", "echo", "--plugin", "says@2.0"))[0] == 0
        # What a rollback would come back to is in use as well.
        assert (await run_hxctl(daemon, "plugin", "rm", "says@1.0"))[0] == 75

        home = tmp_path / "state/store/plugins/says/2.0"
        good = (home / "main.py").read_bytes()
        (home / "main.py").write_text("raise SystemExit('evil')")
        code, out, _ = await run_hxctl(daemon, "plugin", "verify", "says")
        assert (code, "main.py is not the file that plugin.toml lists" in out) == (1, True)
        (found,) = [c for c in await conditions(daemon) if c["code"] == "plugin-changed"]
        assert (found["subject"], found["severity"]) == ("says@2.0", "warning")
        assert "main.py" in found["detail"]
        # Who runs goes on.
        assert await said(daemon, "echo") == "from 2.0"
        (home / "main.py").write_bytes(good)
        assert (await run_hxctl(daemon, "plugin", "verify"))[0] == 0
        assert [c for c in await conditions(daemon) if c["code"] == "plugin-changed"] == []
        assert (await steps(daemon, "says@2.0"))[-3:] == ["problem", "changed", "well_again"]


async def conditions(daemon: Daemon) -> list[dict[str, Any]]:
    _, body = await get(daemon.url + "/health")
    return list(body["conditions"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("install", "/nowhere/at/all"), "/nowhere/at/all"),
        (("trust", "says@9.9"), "plugin says@9.9 is not installed"),
        (("trust", "says"), "NAME@VERSION"),
        (("untrust", "says@1.0"), "nobody trusts the digest"),
        (("untrust", "--key", "who"), "no trusted key 'who'"),
        (("verify", "nothing"), "there is no plugin nothing"),
        (("rm", "says@1.0"), "is not installed"),
    ],
)
async def test_what_can_not_be_done_exits_1_and_says_why(
    shared: Daemon, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = await run_hxctl(shared, "plugin", *arguments)
    assert (code, said in err) == (1, True), err


async def test_the_api_takes_absolute_paths_and_one_thing_at_a_time(shared: Daemon) -> None:
    url = shared.url + "/admin/v1/plugins"
    for path, body in (
        ("install", {"path": "here"}),
        ("trust", {}),
        ("trust", {"key": "k"}),
        ("trust", {"key": "k", "text": "x", "plugin": "a@1"}),
        ("untrust", {}),
        ("untrust", {"key": "k", "plugin": "a@1"}),
        ("rm", {}),
        ("verify", {"more": 1}),
    ):
        status, answer, _ = await post(f"{url}/{path}", body)
        assert status == 400, (path, body, json.dumps(answer))

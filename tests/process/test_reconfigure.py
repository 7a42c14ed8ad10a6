"""A daemon whose configuration is changed while it serves: what is not touched, what is taken back,
and what is left after it was killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.plugin_packages import plugin
from tests.reconfiguring import (
    applied,
    change_of,
    complete,
    over,
    pids,
    proposed,
    reloaded,
    text,
    until,
)
from tests.support import Daemon, chat, echo, get, hxctl, post, run_hxctl, running, write_config

BAD = {"fault": "crash", "fault_at": "load"}


async def said(daemon: Daemon, model: str, words: str = "hello") -> str:
    status, body, _ = await post(daemon.url + "/v1/chat/completions", chat(model, words))
    return str(body["choices"][0]["message"]["content"]) if status == 200 else f"{status}: {body}"


async def settings(daemon: Daemon, model: str) -> dict[str, Any]:
    _, rows = await get(daemon.url + "/admin/v1/models")
    assert isinstance(rows, list), (rows, daemon.log)
    (row,) = [row for row in rows if row["model"] == model]  # type: ignore[index]
    return row


@contextlib.asynccontextmanager
async def clients(daemon: Daemon, model: str, count: int = 10) -> AsyncIterator[list[Any]]:
    """So many ask all the time; what comes out are the answers that were none."""
    failed: list[Any] = []
    answered = 0
    done = asyncio.Event()

    async def ask(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal answered
        while not done.is_set():
            words = f"words of client {number}"
            async with session.post(
                daemon.url + "/v1/chat/completions", json=chat(model, words)
            ) as response:
                body = await response.json()
                if response.status != 200 or body["choices"][0]["message"]["content"] != words:
                    failed.append((response.status, body))
                answered += 1

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(ask(number, session))
        try:
            yield failed
        finally:
            done.set()
    assert answered > count


# --- what is touched ----------------------------------------------------------------------------


async def test_settings_that_hold_at_once_touch_no_worker(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(replicas=2) + echo("other"))
    async with complete(file) as daemon:
        before = await pids(daemon)
        write_config(
            tmp_path,
            echo(replicas=2, queue=7, policy="round_robin", stall_time="9s") + echo("other"),
            extra='[limits]\nbody = "1KiB"\nkeepalive = "5s"\n[log]\nlevel = "debug"',
        )
        change = await reloaded(daemon)
        assert change["phase"] == "applied", change
        assert change["plan"]["sentence"] == "3 workers stay"
        assert await pids(daemon) == before
        row = await settings(daemon, "echo")
        assert (row["queue"], row["policy"]) == (7, "round_robin")
        status, answer, _ = await post(
            daemon.url + "/v1/chat/completions", chat("echo", "x" * 2000)
        )
        assert (status, answer["error"]["code"]) == (413, "body_too_large")
        await daemon.wait_log(r"DEBUG hxd.request")


async def test_replicas_come_and_go_beside_those_that_stay(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(replicas=2) + echo("other"))
    async with complete(file) as daemon:
        before = await pids(daemon)
        write_config(tmp_path, echo(replicas=4) + echo("other"))
        async with clients(daemon, "echo") as failed:
            assert (await reloaded(daemon))["plan"]["sentence"] == "3 workers stay, 2 start"
            grown = await pids(daemon)
            assert len(grown["echo"]) == 4
            assert set(before["echo"]) < set(grown["echo"])
            write_config(tmp_path, echo(replicas=1) + echo("other"))
            assert (await reloaded(daemon))["plan"]["sentence"] == "2 workers stay, 3 drain"
            left = await pids(daemon)
            assert set(left["echo"]) < set(grown["echo"])
        assert len(left["echo"]) == 1
        assert left["other"] == before["other"]
        assert failed == []


async def test_replicas_that_drain_do_not_count_when_more_are_asked_for(tmp_path: Path) -> None:
    options = {"rate": 20}
    file = write_config(tmp_path, echo(replicas=2, policy="round_robin", options=options))
    async with complete(file) as daemon:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(said(daemon, "echo", "so many words that it takes a while"))
                for _ in range(4)
            ]

            async def all_run() -> bool:
                return bool((await settings(daemon, "echo"))["running"] == 4)

            await until(all_run)
            for count in (1, 2):
                write_config(tmp_path, echo(replicas=count, policy="round_robin", options=options))
                assert (await reloaded(daemon))["phase"] == "applied"
            assert len((await pids(daemon))["echo"]) == 2
        assert [task.result() for task in asked] == ["so many words that it takes a while"] * 4


async def test_new_workers_take_over_without_a_failed_request(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(replicas=2, slots=4) + echo("other"))
    async with complete(file) as daemon:
        before = await pids(daemon)
        # What holds at once and what needs other workers, in one change.
        write_config(tmp_path, echo(replicas=2, slots=8, queue=50) + echo("other"))
        async with clients(daemon, "echo") as failed:
            change = await reloaded(daemon)
        assert (change["phase"], failed) == ("applied", [])
        row = await settings(daemon, "echo")
        assert (row["slots"], row["queue"]) == (8, 50)
        _, rows = await get(daemon.url + "/admin/v1/replicas")
        after = await pids(daemon)
        assert after["other"] == before["other"]
        assert len(set(after["echo"]) - set(before["echo"])) == 2, rows
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(said(daemon, "echo"))


async def test_models_and_routes_come_and_go(tmp_path: Path) -> None:
    route = '[routes.chat]\nchain = ["{0}"]\n'
    file = write_config(tmp_path, echo("a") + echo("b") + route.format("a"))
    async with running(file) as daemon:
        before = await pids(daemon)
        write_config(tmp_path, echo("b") + echo("c") + route.format("c"))
        change = await reloaded(daemon)
        assert change["plan"]["sentence"] == "1 worker stays, 1 starts, 1 drains"
        assert [step["act"] for step in change["steps"]] == ["start", "route", "end"]
        assert (await pids(daemon))["b"] == before["b"]
        assert await said(daemon, "c") == await said(daemon, "chat") == "hello"
        assert (await said(daemon, "a")).startswith("404")
        _, listed = await get(daemon.url + "/v1/models")
        assert [model["id"] for model in listed["data"]] == ["b", "c", "chat"]
        # And once more under a name that was there before.
        write_config(tmp_path, echo("a") + echo("b") + echo("c"))
        assert (await reloaded(daemon))["phase"] == "applied"
        assert await said(daemon, "a") == "hello"
        assert (await said(daemon, "chat")).startswith("404")


async def test_connections_and_streams_survive(tmp_path: Path) -> None:
    slow = {"rate": 20}
    words = "a stream that goes on while the box is told something else"
    file = write_config(tmp_path, echo(slots=2, options=slow) + echo("gone", options=slow))
    async with (
        running(file) as daemon,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as idle,
        aiohttp.ClientSession() as session,
    ):
        async with idle.get(daemon.url + "/livez") as response:
            assert response.connection is not None or response.status == 200
        streams = [
            await session.post(
                daemon.url + "/v1/chat/completions", json=chat(model, words, stream=True)
            )
            for model in ("echo", "gone")
        ]
        write_config(tmp_path, echo(slots=3, options=slow))
        assert (await reloaded(daemon))["phase"] == "applied"
        for stream in streams:
            answer = ""
            async for line in stream.content:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        answer += choice["delta"].get("content") or ""
            assert answer == words
        (pool,) = idle.connector._conns.values()  # type: ignore[union-attr]
        assert len(pool) == 1
        async with idle.get(daemon.url + "/livez") as response:
            assert response.status == 200


# --- what is refused, and what is taken back ----------------------------------------------------


async def test_a_bad_configuration_is_refused_whole(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        before = await pids(daemon)
        write_config(tmp_path, echo(replicas=3, quue=5) + "[models.m]\nplugin = 'ehco'\n")
        code, _, err = await run_hxctl(daemon, "reload")
        assert code == 78
        assert err == f"{file}: models.echo.quue: unknown key, did you mean 'queue'?\n"
        write_config(tmp_path, echo(replicas=3) + "[models.m]\nplugin = 'ehco'\n")
        code, _, err = await run_hxctl(daemon, "reload")
        assert (code, f"{file}: models.m.plugin: no plugin 'ehco'" in err) == (78, True)
        assert await pids(daemon) == before
        daemon.process.send_signal(signal.SIGHUP)
        await daemon.wait_log("reload refused: .*no plugin 'ehco'")
        assert await said(daemon, "echo") == "hello"
        _, kept = await get(daemon.url + "/admin/v1/config/history")
        assert [r["why"] for r in kept["revisions"]] == ["start"]


async def test_a_model_that_can_not_load_takes_the_whole_change_back(tmp_path: Path) -> None:
    good = echo(queue=5) + echo("other")
    bad = echo(queue=6, slots=9) + echo("more") + echo("other", options=BAD)
    file = write_config(tmp_path, good)
    async with running(file) as daemon:
        before, as_it_was = await pids(daemon), file.read_text()
        change = await applied(daemon, bad)
        assert change["phase"] == "rolled back"
        assert "models.other" in change["reason"]
        assert file.read_text() == as_it_was
        row = await settings(daemon, "echo")
        assert (row["queue"], row["slots"]) == (5, 4)
        assert (await pids(daemon))["other"] == before["other"]
        assert await said(daemon, "echo") == await said(daemon, "other") == "hello"
        assert (await said(daemon, "more")).startswith("404")

        # The same by hand: then the file is the operator's, and stays.
        by_hand = write_config(tmp_path, bad).read_text()
        assert (await reloaded(daemon))["phase"] == "rolled back"
        assert file.read_text() == by_hand
        row = await settings(daemon, "echo")
        assert (row["queue"], row["slots"]) == (5, 4)
        _, kept = await get(daemon.url + "/admin/v1/config/history")
        assert [r["outcome"] for r in kept["revisions"]] == [
            "applied",
            "rolled back",
            "rolled back",
        ]
        assert kept["holds"] == 1
        # What was edited by hand and does not hold is not overwritten by the way.
        status, answer = await proposed(daemon, "apply", text(echo()))
        assert (status, answer["error"]["code"]) == (412, "config_edited")
        assert (await applied(daemon, echo(queue=8), force=True))["phase"] == "applied"
        assert (await settings(daemon, "echo"))["queue"] == 8


async def test_a_new_model_that_dies_is_not_left_behind(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        write_config(tmp_path, echo() + echo("bad", options=BAD))
        change = await reloaded(daemon)
        assert change["phase"] == "rolled back"
        assert "models.bad: its workers die" in change["reason"]
        _, health = await get(daemon.url + "/health")
        assert (health["ready"], [m["model"] for m in health["models"]]) == (True, ["echo"])


async def test_a_box_that_gets_worse_while_it_is_watched_goes_back(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        as_it_was = file.read_text()
        asked = asyncio.create_task(
            applied(
                daemon,
                echo() + echo("worse", options={"fault": "crash", "fault_after": 5}),
                watch=20,
            )
        )

        words = 0
        while not asked.done():
            # Never the same twice: what breaks two workers is refused.
            words += 1
            await said(daemon, "worse", f"the words number {words}")
        change = await asked
        assert change["phase"] == "rolled back"
        assert "the box got worse: No replica of a model can answer (worse" in change["reason"]
        assert file.read_text() == as_it_was
        assert (await said(daemon, "worse")).startswith("404")


async def test_a_rollout_that_runs_is_not_run_over(tmp_path: Path) -> None:
    slow = {"rate": 5}
    file = write_config(tmp_path, echo(options=slow) + echo("other"))
    async with running(file) as daemon:
        home = str(plugin(tmp_path / "says"))
        assert (await run_hxctl(daemon, "plugin", "install", home, "--trust"))[0] == 0
        status, answer, _ = await post(
            daemon.url + "/admin/v1/rollouts",
            {"model": "echo", "plugin": "says@1.0", "canary": "10%", "time": "1h"},
        )
        assert status == 202, answer
        write_config(tmp_path, echo(slots=9, options=slow) + echo("other"))
        status, answer, _ = await post(daemon.url + "/admin/v1/reload", b"")
        assert (status, answer["error"]["code"]) == (409, "rollout_running")
        assert "hxctl rollback echo" in answer["error"]["message"]
        # Whoever has none is free to change, and the other goes on.
        write_config(tmp_path, echo(options=slow) + echo("other", slots=9))
        assert (await reloaded(daemon))["phase"] == "applied"
        _, rollouts = await get(daemon.url + "/admin/v1/rollouts")
        assert [r["running"] for r in rollouts if r["model"] == "echo"] == [True]  # type: ignore[index]
        # A model that leaves takes its rollout with it.
        write_config(tmp_path, echo("other", slots=9))
        assert (await reloaded(daemon))["phase"] == "applied"
        assert "Traceback" not in daemon.log


async def test_a_model_that_leaves_answers_whom_it_has_and_no_more(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo() + echo("gone", slots=1, options={"rate": 20}))
    async with running(file) as daemon, asyncio.TaskGroup() as group:
        asked = [group.create_task(said(daemon, "gone", "ten letters")) for _ in range(3)]

        async def in_line() -> bool:
            row = await settings(daemon, "gone")
            return bool(row["running"] == 1 and row["waiting"] == 2)

        await until(in_line)
        write_config(tmp_path, echo())
        assert (await reloaded(daemon))["phase"] == "applied"
        async with asyncio.timeout(20):
            answers = sorted([await task for task in asked])
        assert answers[-1] == "ten letters"
        assert all(answer.startswith("503") for answer in answers[:-1])


async def test_a_link_is_not_replaced_and_nothing_else_either(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    file.rename(tmp_path / "elsewhere.toml")
    file.symlink_to("elsewhere.toml")
    async with running(file) as daemon:
        before = await pids(daemon)
        change = await applied(daemon, echo(slots=9) + echo("b"))
        assert (change["phase"], "hxd replaces no links" in change["reason"]) == (
            "rolled back", True,
        )  # fmt: skip
        assert await pids(daemon) == before
        assert (await said(daemon, "b")).startswith("404")


# --- live settings of the front, and what needs a restart ---------------------------------------


async def test_keys_are_asked_for_from_now_on(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        assert await said(daemon, "echo") == "hello"
        write_config(tmp_path, echo(), auth=True)
        assert (await run_hxctl(daemon, "reload"))[0] == 0
        status, _, _ = await post(daemon.url + "/v1/chat/completions", chat("echo", "hello"))
        assert status == 401
        status, _, _ = await post(daemon.url + "/admin/v1/reload", b"")
        assert status == 401
        made = await hxctl(daemon, "key", "create", "watcher", "--role", "operator")
        key = {"Authorization": f"Bearer {made['key']}"}
        for path in ("config/check", "config/apply", "reload", "plugins/install", "plugins/rm"):
            status, _, _ = await post(f"{daemon.url}/admin/v1/{path}", {}, headers=key)
            assert status == 403, path
        for path in ("config/history", "config/history/1", "config/change", "plugins"):
            status, _ = await get(f"{daemon.url}/admin/v1/{path}", **key)
            assert status == 200, path

        file.write_text(file.read_text().replace('"logs"', '"other"'))
        code, out, err = await run_hxctl(daemon, "config", "check")
        assert (code, f'"{tmp_path}/other"; holds from the next start' in out) == (0, True), err
        code, out, _ = await run_hxctl(daemon, "reload")
        assert code == 0
        assert "paths.logs holds from the next start of the daemon" in out


# --- in turn ------------------------------------------------------------------------------------


async def test_signals_in_a_row_end_with_what_the_files_say_last(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(queue=1))
    async with running(file) as daemon:
        for number in range(2, 6):
            # As editors do: a file that is being written may be read empty.
            (tmp_path / "part").write_text(text(echo(queue=number, slots=number)))
            (tmp_path / "part").rename(file)
            daemon.process.send_signal(signal.SIGHUP)

        async def last() -> bool:
            return bool((await settings(daemon, "echo"))["queue"] == 5)

        await until(last)
        await daemon.wait_log("reloaded")
        assert await said(daemon, "echo") == "hello"
        assert "refused" not in daemon.log


async def test_one_change_at_a_time(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        status, _ = await proposed(daemon, "apply", text(echo(slots=5)), watch=3)
        assert status == 202
        code, _, err = await run_hxctl(daemon, "reload")
        assert (code, "being changed already" in err) == (75, True)
        assert (await over(daemon))["phase"] == "applied"


async def test_a_client_that_is_killed_leaves_nothing_half_way(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        body = {"files": {"hxd.toml": text(echo(slots=5))}, "watch": 1}
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(
                session.post(daemon.url + "/admin/v1/config/apply", json=body)
            )
            await until(partial(change_of, daemon))
            asking.cancel()
        assert (await over(daemon))["phase"] == "applied"
        assert (await settings(daemon, "echo"))["slots"] == 5


# --- hxctl, history, going back -----------------------------------------------------------------


async def test_the_commands_check_compare_apply_and_go_back(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo() + echo("b"))
    new = tmp_path / "new.toml"
    new.write_text(text(echo(replicas=2)))
    async with running(file) as daemon:
        code, out, _ = await run_hxctl(daemon, "config", "check", str(new))
        assert (code, out.splitlines()[-1]) == (0, "1 worker stays, 1 starts, 1 drains")
        assert "  models.echo.replicas: 1 → 2" in out
        code, out, _ = await run_hxctl(daemon, "config", "diff", str(new))
        assert (code, "-[models.b]" in out, "+replicas = 2" in out) == (0, True, True)
        code, out, err = await run_hxctl(daemon, "config", "apply", str(new), "--watch", "1s")
        assert code == 0, err
        assert out == "revision 2 holds: 1 worker stays, 1 starts, 1 drains\n"
        assert err.splitlines()[-2:] == ["grow     echo", "end      b"]
        assert file.read_text() == new.read_text()
        assert len((await pids(daemon))["echo"]) == 2

        new.write_text("[models.echo]\nplugin = 'echo'\nslot = 3\n")
        code, _, err = await run_hxctl(daemon, "config", "check", str(new))
        assert (code, err) == (
            78, f"{new}: models.echo.slot: unknown key, did you mean 'slots'?\n",
        )  # fmt: skip
        new.write_text(text(echo(options=BAD)))
        code, _, err = await run_hxctl(daemon, "config", "apply", str(new), "--watch", "1s")
        assert (code, "revision 3 rolled back" in err) == (1, True)

        code, out, err = await run_hxctl(daemon, "config", "rollback", "--watch", "0s")
        assert (code, await said(daemon, "b")) == (0, "hello"), err
        code, out, _ = await run_hxctl(daemon, "config", "history")
        assert [line.split()[0] for line in out.splitlines()[1:]] == ["1", "2", "3", "4"]
        code, out, _ = await run_hxctl(daemon, "config", "history", "2")
        assert (code, "replicas = 2" in out) == (0, True)
        code, _, err = await run_hxctl(daemon, "config", "rollback", "99")
        assert (code, "there is no revision 99" in err) == (1, True)
        assert (await run_hxctl(daemon, "config", "rollback", "2", "--watch", "0s"))[0] == 0
        assert (await said(daemon, "b")).startswith("404")


async def test_who_follows_a_change_sees_its_end_though_another_one_comes_after(
    tmp_path: Path,
) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        _, answer = await proposed(daemon, "apply", text(echo(queue=7)))
        began = answer["began"]
        assert (await over(daemon))["phase"] == "applied"
        assert (await reloaded(daemon))["why"] == "reload"
        for asked, found in ((began, 2), (1.5, None)):
            _, change = await get(f"{daemon.url}/admin/v1/config/change?began={asked!r}")
            assert (None if change is None else change["revision"]) == found
        status, _ = await get(f"{daemon.url}/admin/v1/config/change?began=x")
        assert status == 400


async def test_what_was_shown_is_what_is_applied(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    async with running(file) as daemon:
        write_config(tmp_path, echo(queue=7))
        _, shown, _ = await post(daemon.url + "/admin/v1/config/check", {})
        write_config(tmp_path, echo(queue=8))
        body = {"expected": shown["sha256"], "watch": 0}
        status, answer, _ = await post(daemon.url + "/admin/v1/config/apply", body)
        assert (status, answer["error"]["code"]) == (412, "config_changed")
        write_config(tmp_path, echo(queue=7))
        status, answer, _ = await post(daemon.url + "/admin/v1/config/apply", body)
        assert status == 202, answer
        assert (await over(daemon))["phase"] == "applied"
        assert (await settings(daemon, "echo"))["queue"] == 7


async def test_a_damaged_history_makes_no_edits_of_what_was_applied(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    as_it_was = file.read_text()
    async with running(file) as daemon:
        assert (await applied(daemon, echo(queue=7)))["phase"] == "applied"
        holds = file.read_text()
        kept = tmp_path / "state/config-history/000002/files/hxd.toml"
        kept.write_text("damaged")
        _, history = await get(daemon.url + "/admin/v1/config/history")
        assert history["holds"] == 2
        bad = echo("bad", options=BAD)
        change = await applied(daemon, echo(queue=8) + bad)
        assert change["phase"] == "rolled back", change
        assert file.read_text() == holds != as_it_was
        assert (await settings(daemon, "echo"))["queue"] == 7


async def test_a_folder_is_a_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.toml").write_text(echo("b"))
    file = write_config(tmp_path, echo())
    whole = tmp_path / "whole"
    (whole / "conf.d").mkdir(parents=True)
    (whole / "hxd.toml").write_text(file.read_text())
    (whole / "conf.d/c.toml").write_text(echo("c", nonsense=1))
    async with running(file) as daemon:
        code, _, err = await run_hxctl(daemon, "config", "apply", str(whole))
        assert (code, err.startswith(f"{whole}/conf.d/c.toml: models.c.nonsense")) == (78, True)
        (whole / "conf.d/c.toml").write_text(echo("c"))
        (whole / "conf.d/d.toml").write_text(echo("c"))
        code, _, err = await run_hxctl(daemon, "config", "check", str(whole))
        first, second = whole / "conf.d/c.toml", whole / "conf.d/d.toml"
        twice = f"{second}: models.c: declared twice; it stands in {first} too\n"
        assert (code, err) == (78, twice)
        second.unlink()
        # Not a matter of waiting, as a change that is under way would be.
        (tmp_path / ".hxd.toml.hxd-apply").mkdir()
        code, _, err = await run_hxctl(daemon, "config", "apply", str(whole), "--watch", "0s")
        assert (code, f"can't replace the files of {file}" in err) == (1, True)
        (tmp_path / ".hxd.toml.hxd-apply").rmdir()
        code, _, err = await run_hxctl(daemon, "config", "apply", str(whole), "--watch", "0s")
        assert code == 0, err
        assert [path.name for path in (tmp_path / "conf.d").iterdir()] == ["c.toml"]
        assert await said(daemon, "c") == "hello"


async def test_a_check_works_without_a_daemon(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    new = tmp_path / "new.toml"
    new.write_text(echo() + echo("b"))
    daemon = Nobody(tmp_path)
    offline = ("config", "check", "--offline", "--config", str(file))
    assert await run_hxctl(daemon, *offline) == (0, f"{file}: OK, 1 model\n", "")
    assert (await run_hxctl(daemon, *offline, str(new)))[1] == f"{new}: OK, 2 models\n"
    new.write_text("[models.m]\nplugin = 'ehco'\n")
    code, _, err = await run_hxctl(daemon, *offline, str(new))
    assert (code, err.startswith(f"{new}: models.m.plugin: no plugin 'ehco'")) == (78, True)
    assert (await run_hxctl(daemon, "config", "check", str(new)))[0] == 69


class Nobody(Daemon):
    def __init__(self, folder: Path) -> None:
        self.folder = folder


async def test_a_model_that_an_operator_swapped_keeps_its_version(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo() + echo("other"))
    async with running(file) as daemon:
        home = str(plugin(tmp_path / "says", answer="'swapped'"))
        assert (await run_hxctl(daemon, "plugin", "install", home, "--trust"))[0] == 0
        assert (await run_hxctl(daemon, "swap", "echo", "--plugin", "says@1.0"))[0] == 0
        write_config(tmp_path, echo(slots=7, queue=3) + echo("other"))
        assert (await reloaded(daemon))["phase"] == "applied"
        assert await said(daemon, "echo") == "swapped"
        row = await settings(daemon, "echo")
        assert (row["slots"], row["queue"]) == (7, 3)
        # Also when the configuration asked for another one, and was taken back.
        another = echo(slots=7, queue=3).replace('"echo"', '"echo@1.0.0"')
        for bad in (echo("other") + echo("more", options=BAD), echo("other", options=BAD)):
            change = await applied(daemon, another + bad, force=True)
            assert change["phase"] == "rolled back", change
            assert await said(daemon, "echo") == "swapped"


async def test_a_box_with_a_broken_model_can_still_be_configured(tmp_path: Path) -> None:
    broken = '[models.broken]\nsource = "nowhere.gguf"\n'
    file = write_config(tmp_path, echo() + broken)
    async with running(file, ready=False) as daemon:
        write_config(tmp_path, echo(queue=3) + broken)
        change = await reloaded(daemon)
        assert change["phase"] == "applied", change
        assert (await settings(daemon, "echo"))["queue"] == 3
        assert (await said(daemon, "broken")).startswith("503")
        # Mended, it starts.
        write_config(tmp_path, echo(queue=3) + echo("broken"))
        assert (await reloaded(daemon))["phase"] == "applied"
        assert await said(daemon, "broken") == "hello"


# --- a daemon that is killed in the middle ------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_a_daemon_killed_in_the_middle_serves_the_old_or_the_new_whole(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    (tmp_path / "conf.d").mkdir()
    extra = tmp_path / "conf.d/extra.toml"
    extra.write_text(echo("old"))
    file = write_config(tmp_path, echo(slots=4))
    old = {"hxd.toml": file.read_text(), "conf.d/extra.toml": extra.read_text()}
    new = {"hxd.toml": text(echo(slots=6)), "conf.d/extra.toml": echo("new")}
    async with running(file) as daemon:
        asking = asyncio.create_task(
            post(daemon.url + "/admin/v1/config/apply", {"files": new, "whole": True, "watch": 1})
        )
        # Four places from the first checks to the end of the watch.
        await asyncio.sleep(rng.uniform(0.0, 0.04 * 3**seed))
        await daemon.kill()
        await asyncio.gather(asking, return_exceptions=True)
    async with running(file) as daemon:
        if (change := await change_of(daemon)) is not None:
            change = await over(daemon)
            assert change["phase"] in ("applied", "rolled back")
        present = {"hxd.toml": file.read_text(), "conf.d/extra.toml": extra.read_text()}
        assert present in (old, new)
        _, kept = await get(daemon.url + "/admin/v1/config/history")
        assert "pending" not in [row["outcome"] for row in kept["revisions"]]
        which = "new" if present == new else "old"
        assert await said(daemon, which) == await said(daemon, "echo") == "hello"
        assert (await settings(daemon, "echo"))["slots"] == (6 if which == "new" else 4)
        _, listed = await get(daemon.url + "/v1/models")
        assert sorted(m["id"] for m in listed["data"]) == ["echo", which]
        assert [p.name for p in tmp_path.rglob(".*.toml*")] == []
        # And whatever it is, it can be changed.
        assert (await applied(daemon, echo(slots=3)))["phase"] == "applied"

"""An apply whose daemon dies: the next one goes on with it and watches for what is left of the
time, or takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.reconfiguring import change_of, over, pids, proposed, until
from tests.support import Daemon, chat, echo, get, post, run_hxctl, running, write_config

OUTCOMES = "/admin/v1/config/history"


@contextlib.asynccontextmanager
async def dying(config: Path, models: str, phase: str, **asked: Any) -> AsyncIterator[Daemon]:
    """A daemon that is killed in this phase of an apply with these models."""
    text = config.read_text()
    async with running(config) as daemon:
        new = text[: text.index("[models.")] + models
        status, answer = await proposed(daemon, "apply", new, **asked)
        assert status == 202, answer
        await reach(daemon, phase)
        yield daemon


async def reach(daemon: Daemon, phase: str) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        change = await change_of(daemon)
        assert change["phase"] in ("checking", "changing", phase), change
        return change if change["phase"] == phase else None

    return dict(await until(there))


async def test_who_follows_is_told_that_it_goes_on(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    new = tmp_path / "new.toml"
    new.write_text(file.read_text() + echo("b"))
    async with running(file) as daemon, asyncio.TaskGroup() as group:
        apply = ("config", "apply", str(new), "--watch", "600s")
        following = group.create_task(run_hxctl(daemon, *apply))
        await daemon.wait_log("step=watching")
        await daemon.kill()
        code, _, err = await following
        assert (code, "it is the next one that finishes it" in err) == (69, True)


async def steps(daemon: Daemon) -> list[str]:
    _, events = await get(daemon.url + "/admin/v1/events")
    return [event["step"] for event in events if event["kind"] == "config"]  # type: ignore[index]


async def outcomes(daemon: Daemon) -> list[tuple[str, str]]:
    _, kept = await get(daemon.url + OUTCOMES)
    return [(row["why"], row["outcome"]) for row in kept["revisions"]]


async def test_it_is_watched_to_its_end_by_the_next_daemon(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(queue=1))
    async with dying(file, echo(queue=2), "watching", watch=4):
        pass
    async with running(file) as daemon:
        _, out, _ = await run_hxctl(daemon, "status")
        assert "configuration: revision 2 (apply by somebody without a key) is " in out
        assert await outcomes(daemon) == [("start", "applied"), ("apply", "pending")]
        change = await over(daemon)
        assert (change["phase"], change["revision"]) == ("applied", 2)
        assert await steps(daemon) == ["resumed", "watching", "applied"]
        assert await outcomes(daemon) == [("start", "applied"), ("apply", "applied")]
        assert [path.name for path in tmp_path.glob(".hxd*")] == []
    async with running(file) as daemon:
        assert await change_of(daemon) is None


async def test_what_gets_worse_after_the_restart_is_taken_back_too(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    as_it_was = file.read_text()
    worse = echo("worse", options={"fault": "crash", "fault_after": 5})
    async with dying(file, echo(queue=3) + worse, "watching", watch=600):
        pass
    async with running(file) as daemon:
        await reach(daemon, "watching")
        before = await pids(daemon)
        words = 0
        while (change := await change_of(daemon))["running"]:
            # Never the same twice: what breaks two workers is refused.
            words += 1
            body = chat("worse", f"the words number {words}")
            await post(daemon.url + "/v1/chat/completions", body)
        assert change["phase"] == "rolled back"
        assert "No replica of a model can answer (worse" in change["reason"]
        assert file.read_text() == as_it_was
        assert await pids(daemon) == {"echo": before["echo"]}
        assert await outcomes(daemon) == [("start", "applied"), ("apply", "rolled back")]
        _, out, _ = await run_hxctl(daemon, "status")
        assert "revision 2 (apply by somebody without a key): the change was taken back: " in out


async def test_a_model_that_does_not_come_up_after_the_restart_either(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    as_it_was = file.read_text()
    hangs = echo("hangs", load_time=1, options={"fault": "hang", "fault_at": "load"})
    async with dying(file, echo() + hangs, "changing"):

        async def begun() -> bool:
            return file.read_text() != as_it_was

        await until(begun)
    async with running(file, ready=False) as daemon:
        change = await over(daemon)
        assert change["phase"] == "rolled back"
        assert "models.hangs: its workers die" in change["reason"]
        assert file.read_text() == as_it_was
        _, listed = await get(daemon.url + "/v1/models")
        assert [model["id"] for model in listed["data"]] == ["echo"]


async def test_three_daemons_may_die_of_it_and_one_that_is_stopped_does_not_count(
    tmp_path: Path,
) -> None:
    file = write_config(tmp_path, echo(queue=1))
    as_it_was = file.read_text()
    async with dying(file, echo(queue=2), "watching", watch=600):
        pass
    for number in range(3):
        async with running(file) as daemon:
            await reach(daemon, "watching")
            if number == 0:
                assert await daemon.stop() == 0
    async with running(file) as daemon:
        change = await change_of(daemon)
        reason = "the daemon ended 3 times in the middle of it"
        assert (change["phase"], change["reason"]) == (
            "rolled back", f"the change was taken back: {reason}",
        )  # fmt: skip
        assert file.read_text() == as_it_was
        assert await steps(daemon) == ["rolled_back"]
        assert (await outcomes(daemon))[1] == ("apply", "rolled back")
        _, out, _ = await run_hxctl(daemon, "config", "history")
        assert reason in out


async def test_a_start_that_would_fail_takes_it_back(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(queue=1))
    as_it_was = file.read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    new = as_it_was.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    async with running(file) as daemon:
        status, answer = await proposed(daemon, "apply", new, watch=600)
        assert status == 202, answer
        await daemon.wait_log("step=watching")
    with socket.create_server(("127.0.0.1", port)):
        async with running(file) as daemon:
            change = await change_of(daemon)
            assert change["phase"] == "rolled back"
            assert f"listen.http: can't listen on 127.0.0.1:{port}" in change["reason"]
            assert file.read_text() == as_it_was


async def test_files_of_both_that_do_not_go_together_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    more = tmp_path / "conf.d/more.toml"
    more.write_text(echo("more"))
    file = write_config(tmp_path, echo())
    as_it_was = file.read_text()
    new = {"hxd.toml": as_it_was + echo("more"), "conf.d/other.toml": echo("other")}
    async with running(file) as daemon:
        body = {"files": new, "watch": 600}
        status, answer, _ = await post(daemon.url + "/admin/v1/config/apply", body)
        assert status == 202, answer
        await reach(daemon, "watching")
    # A disk has lost what was last: with both, hxd would exit with 78.
    more.write_text(echo("more"))
    async with running(file) as daemon:
        change = await change_of(daemon)
        assert "only some of the files had changed" in change["reason"]
        assert file.read_text() == as_it_was
        assert [path.name for path in (tmp_path / "conf.d").iterdir()] == ["more.toml"]

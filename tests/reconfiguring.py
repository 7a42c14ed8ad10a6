"""What tests share that change the configuration of a daemon: asking for it, and seeing its end."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support import Daemon, get, post, running, write_config


async def pids(daemon: Daemon) -> dict[str, list[int]]:
    """Of each model's workers that have a process and don't drain."""
    _, rows = await get(daemon.url + "/admin/v1/replicas")
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["pid"] is not None and row["state"] == "ready":  # type: ignore[index]
            found.setdefault(row["model"], []).append(row["pid"])  # type: ignore[index]
    return {model: sorted(numbers) for model, numbers in found.items()}


async def until(holds: Callable[[], Awaitable[Any]], *, seconds: float = 60) -> Any:
    """What `holds` gives, once that is true. There is nothing over HTTP that one could wait for;
    hxctl asks again and again too."""
    async with asyncio.timeout(seconds):
        while not (found := await holds()):  # noqa: ASYNC110  (as said)
            await asyncio.sleep(0.02)
    return found


@contextlib.asynccontextmanager
async def complete(config: Path) -> AsyncIterator[Daemon]:
    """A daemon with all of its workers, where `running` is content with one of each model."""
    async with running(config) as daemon:

        async def all_up() -> bool:
            _, rows = await get(daemon.url + "/admin/v1/replicas")
            return all(row["state"] == "ready" for row in rows)  # type: ignore[index]

        await until(all_up)
        yield daemon


async def change_of(daemon: Daemon) -> dict[str, Any]:
    _, change = await get(daemon.url + "/admin/v1/config/change")
    return change


async def over(daemon: Daemon) -> dict[str, Any]:
    """The change that runs, once it has ended."""

    async def ended() -> dict[str, Any] | None:
        change = await change_of(daemon)
        return None if change["running"] else change

    return dict(await until(ended))


async def reloaded(daemon: Daemon) -> dict[str, Any]:
    status, answer, _ = await post(daemon.url + "/admin/v1/reload", b"")
    assert status == 202, answer
    return await over(daemon)


async def applied(daemon: Daemon, models: str, **asked: Any) -> dict[str, Any]:
    """As `hxctl config apply` with a file that has these models, and the paths of the present."""
    status, answer = await proposed(daemon, "apply", text(models), **asked)
    assert status == 202, answer
    return await over(daemon)


async def proposed(daemon: Daemon, what: str, new: str, **asked: Any) -> tuple[int, dict[str, Any]]:
    if what == "apply":
        asked = {"watch": 0, **asked}
    body = {"files": {"hxd.toml": new}, "whole": False, **asked}
    status, answer, _ = await post(f"{daemon.url}/admin/v1/config/{what}", body)
    return status, answer


def text(models: str) -> str:
    """What `write_config` would write there."""
    with tempfile.TemporaryDirectory() as folder:
        return write_config(Path(folder), models).read_text()

"""What tests of drills wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.failover import SECONDS
from tests.rollouts import admin
from tests.support import Daemon


async def until(so: Callable[[], bool]) -> None:
    """What the kernel does to a process is told to its parent only, and what is on the disk tells
    nobody that it has changed: others look again."""
    async with asyncio.timeout(SECONDS):
        while True:
            if so():
                return
            await asyncio.sleep(0.005)


async def no_drill(daemon: Daemon) -> None:
    async with asyncio.timeout(SECONDS):
        while await drill_runs(daemon):
            pass


async def drill_runs(daemon: Daemon) -> bool:
    """A model that is not there can't be drilled, but while a drill runs it is that which is said
    first."""
    status, _ = await admin(daemon, "POST", "drill", {"fault": "kill", "model": "nope"})
    assert status in (404, 409)
    return status == 409

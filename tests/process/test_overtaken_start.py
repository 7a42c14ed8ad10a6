"""A worker whose start took so long that its replica was ended and begun again meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hxd.clock import SystemClock
from hxd.daemon.store.plugins import builtin_folder, scan
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.lifecycle import Event
from hxd.daemon.supervise.news import Message, News
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.workers import Workers
from tests.rollouts import a_source


async def test_it_does_not_take_the_place_of_the_one_that_came_after() -> None:
    made = [asyncio.Event(), asyncio.Event()]
    asked = iter(made)
    hello = asyncio.Event()

    async def prepare(replica: Replica) -> Path | None:
        await next(asked).wait()
        return None

    def post(news: News) -> None:
        if isinstance(news, Message) and news.event is Event.HELLO and news.generation == 3:
            hello.set()

    usable, _ = scan([builtin_folder()])
    replica = Replica("m-1", a_source("m", plugin=usable["echo"]))
    clock = SystemClock()
    workers = Workers(post, prepare, clock, lambda: 1.0, Cores(clock))
    try:
        for generation in (1, 3):
            replica.generation = generation
            workers.spawn(replica)
            await asyncio.sleep(0)
        made[1].set()
        await hello.wait()
        serves = replica.worker
        assert serves is not None
        starts = {task for task in workers._tasks if task.get_name() == "spawn-m-1"}
        assert len(starts) == 1
        made[0].set()
        await asyncio.wait(starts)
        assert replica.worker is serves
        assert serves.exit_code() is None
        workers.kill_all([replica])
        await workers.gone()
    finally:
        workers.kill_all([replica])
        await workers.aclose()

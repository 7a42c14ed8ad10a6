"""Coroutines at once, all of them ended before anyone goes on; blocking calls likewise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, or the first exception as it is (a TaskGroup would wrap it)."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def while_watched(work: Coroutine[Any, Any, T], watch: Coroutine[Any, Any, None]) -> T:
    """`work`, unless `watch` raises before it is done; `watch` never returns by itself."""
    tasks = asyncio.create_task(work), asyncio.create_task(watch)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            await tasks[1]
        return await tasks[0]
    finally:
        await _end(tasks)


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A thread can't be called back: whoever is cancelled meanwhile waits for it, since what it
    works on is closed next."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()  # has been seen; what made this one end is told instead
        raise


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        # Once only: the second cancellation would cut short what the first one makes it finish.
        if not task.cancelling():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

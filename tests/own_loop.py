"""A server for tests on a loop and a thread of its own, of which nothing is left at its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable


class OwnLoop:
    """`serve` takes each connection, and closes it."""

    def __init__(
        self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        self._serve = serve
        self._loop = asyncio.new_event_loop()
        # A loop alone holds a task weakly, and one that waits for its peer with it.
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def begin(self, **options: object) -> int:
        """The port; `options` are those of `asyncio.start_server`."""
        starting = asyncio.start_server(self._accept, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
        self._server = self._loop.run_until_complete(starting)
        self._thread.start()
        return int(self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._serve(reader, writer)

    def end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        # What was accepted just now begins, so that it closes its connection when it is cancelled.
        await _turns()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Closed transports let go of their sockets a turn later.
        await _turns()


async def _turns() -> None:
    """More than an accepted connection takes to its task, or a closed one to its end."""
    for _ in range(20):
        await asyncio.sleep(0)

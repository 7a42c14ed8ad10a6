"""Long work on the disk or the network, seen from who waits for it: how far it is, and a way to
stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hxd.daemon.store.faults import Cancelled

# What is being done, in a word or two; how much is done; how much there is, 0 where that is not
# known. Bytes, unless the step says otherwise. May be called from any thread, and often.
Progress = Callable[[str, int, int], None]


def quiet(step: str, done: int, total: int) -> None:
    """A `Progress` that nobody watches."""


@dataclass(frozen=True)
class Work:
    """Hand it to whatever may take long. `progress` is told, `check` raises once it was stopped."""

    progress: Progress = quiet
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        """Raises `Cancelled` when nobody wants the result any more; call it at least once a
        second."""
        if self._stopped.is_set():
            raise Cancelled("stopped before it was done; nothing was changed")

    def told(self, step: str, done: int, total: int) -> None:
        """Both: say how far it is, and find out whether to go on."""
        self.check()
        self.progress(step, done, total)

"""Processes that kill themselves at the n-th thing that they ask of the disk, for every n, and
disks that fail."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


def fork(act: Callable[[], int | None]) -> int:
    """A process that does it, ends with the code that it returns, and says nothing of pytest's."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                code = act() or 0
            except BaseException:
                traceback.print_exc()
        os._exit(code)
    return child


def ended(child: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


TOUCHES = ("open", "os.", "shutil.")


def at_touch(
    number: int, do: Callable[[], None], *, and_after: bool = False, of: tuple[str, ...] = TOUCHES
) -> Callable[[], bool]:
    """From now on in this process: `do` just before the `number`-th thing asked of the disk. Tells
    whether that has come."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event.startswith(of) and event != "os.kill":
            seen += 1
            if seen == number or (and_after and seen > number):
                do()

    sys.addaudithook(hook)
    return lambda: seen >= number


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def until_it_lives(act: Callable[[int], None], check: Callable[[], None]) -> int:
    """`act(n)` in a child, for n from 1 until it no longer dies of it; `check` after each death."""
    for number in range(1, 1000):
        code = ended(fork(lambda number=number: act(number)))
        if code == 0:
            return number
        assert code == -signal.SIGKILL, f"the child ended with {code}"
        check()
    raise AssertionError("it dies for ever")

"""One daemon for each runtime folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hxd.errors import ConfigError

FILE = "lock"
# Beside it lies the way to the daemon that has the folder.
ADMIN_SOCKET = "admin.sock"


@contextlib.contextmanager
def alone(runtime: Path, origin: Path) -> Iterator[None]:
    """While no other hxd has this folder, which exists. Raises `ConfigError`, about `origin`, when
    one has."""
    file = runtime / FILE
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            [f"{origin}: paths.runtime: can't open {file}: {error.strerror}"]
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"{origin}: paths.runtime: another hxd is running with {runtime}"]
            ) from None
        yield
    finally:
        os.close(lock)

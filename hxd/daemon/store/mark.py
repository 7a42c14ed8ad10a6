"""The mark on a version, or on one derived variant, that must not be loaded.

The files stay where they are: the doctor mends them, and an operator may want to see them.
"""

from __future__ import annotations

import tomllib
from typing import Literal

import msgspec
import tomli_w

FILE = "quarantined.toml"
MAX_BYTES = 1 << 14
MAX_WHY = 2000

# What is wrong: the bytes on the disk, which can be mended, or what they did to workers.
Cause = Literal["bytes", "behaviour"]


class Mark(msgspec.Struct, frozen=True):
    """`since` is an ISO time."""

    why: str
    since: str = ""
    cause: Cause = "behaviour"

    def __str__(self) -> str:
        return f"{self.why} (since {self.since})" if self.since else self.why


def read(data: bytes) -> Mark:
    """A mark that can't be read counts: who put it there meant something."""
    try:
        return msgspec.convert(tomllib.loads(data[:MAX_BYTES].decode("utf-8")), Mark)
    except (msgspec.ValidationError, ValueError, RecursionError):
        return Mark("its mark can't be read")


def write(mark: Mark) -> bytes:
    table = {"why": mark.why[:MAX_WHY], "since": mark.since, "cause": mark.cause}
    return tomli_w.dumps(table).encode("utf-8", "backslashreplace")

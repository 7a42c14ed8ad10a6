"""An apply that has begun and is not over yet: what the next daemon needs to finish it, or to take
it back, when this one is killed.

One small file in the folder of the history, written before the first file of the configuration
changes; and one beside the config file that says where, since files that are half applied may not
tell where the state is.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hxd.conditions import Condition
from hxd.config import durable
from hxd.config.history import Why
from hxd.config.install import beside, refusing

FILE = "unfinished.json"
SIGN = ".hxd-apply"
# Daemons that may die in the middle of it, before it is taken back.
MOST_ATTEMPTS = 3


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """`revision` is to hold, and `former` what held before, as numbers in the history. `began` and
    `watching`, since when the box is watched, are in Unix seconds; `seconds` is for how long.
    `before` is what was wrong with the box already. `attempts` counts the daemons that have worked
    on it, `runtime` is the folder with their lock. With a `reason` it is on its way back."""

    revision: int
    former: int
    why: Why
    who: str
    began: float
    seconds: float
    runtime: str
    before: tuple[Condition, ...] = ()
    watching: float | None = None
    attempts: int = 1
    reason: str | None = None

    def left(self, now: float) -> float:
        """How long it is still to be watched, but no less than a tenth: nobody has looked while
        there was no daemon."""
        gone = 0.0 if self.watching is None else max(0.0, now - self.watching)
        return max(self.seconds - gone, self.seconds / 10)


@dataclass(frozen=True)
class Place:
    """Where the record of a configuration lies: `history` is the folder of its history. Everything
    here blocks."""

    config_file: Path
    history: Path

    @classmethod
    def of(cls, config_file: Path) -> Place | None:
        """As the sign beside the config file says; None where there is none."""
        config_file = config_file.absolute()
        try:
            said = beside(config_file, SIGN).read_bytes().rstrip(b"\n")
        except OSError:
            return None
        if b"\0" in said or not said.startswith(b"/"):
            # Not the whole of one: those are written whole or not at all.
            with contextlib.suppress(OSError):
                beside(config_file, SIGN).unlink()
            return None
        return cls(config_file, Path(os.fsdecode(said)))

    def read(self) -> Unfinished | None:
        """None when there is none, or none that can be read."""
        try:
            return msgspec.json.decode((self.history / FILE).read_bytes(), type=Unfinished)
        except (OSError, msgspec.DecodeError, RecursionError, ValueError):
            return None

    def begin(self, record: Unfinished) -> None:
        """Raises `CannotInstall`, and then nothing is on record."""
        sign = beside(self.config_file, SIGN)
        with refusing(self.config_file):
            try:
                self.write(record)
                durable.replace(sign, os.fsencode(self.history) + b"\n")
            except OSError:
                self.clear()
                raise

    def write(self, record: Unfinished) -> None:
        """Raises `OSError`."""
        durable.replace(self.history / FILE, msgspec.json.encode(record))

    def clear(self) -> None:
        """It is over, and the history says how. What stays behind here is removed by the next
        start."""
        for file in (self.history / FILE, beside(self.config_file, SIGN)):
            with contextlib.suppress(OSError):
                durable.part_of(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                durable.sync(file.parent)

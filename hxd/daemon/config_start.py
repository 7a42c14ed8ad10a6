"""What a daemon that starts makes of an apply that a former one has left unfinished: it goes on
from there, or puts the former files back. Only an apply: files that somebody has edited by hand are
his, and stay.

Everything here happens before there is a daemon, and blocks; what was done is told once there is.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import msgspec

from hxd.config import load
from hxd.config.files import snapshot
from hxd.config.history import History, Outcome
from hxd.config.install import install, recover
from hxd.config.load import load_as
from hxd.config.unfinished import FILE, MOST_ATTEMPTS, Place, Unfinished
from hxd.daemon.lock import alone
from hxd.errors import ConfigError, HxdError

log = logging.getLogger("hxd.config")


class Leftover:
    """`record` is what is still to be finished, None once it is taken back or turns out to be over.
    `told` are steps for the events, and what goes with them."""

    def __init__(self, place: Place, record: Unfinished) -> None:
        self.place = place
        self.record: Unfinished | None = record
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.revision = record.revision
        self.why, self.who, self.began = record.why, record.who, record.began
        self.reason: str | None = None
        self._history = History(place.history)

    @classmethod
    def find(cls, config_file: Path) -> Leftover | None:
        place = Place.of(config_file)
        if place is None:
            return None
        record = place.read()
        if record is None:
            if (place.history / FILE).exists():
                log.error("%s is damaged; the files count as they are", place.history / FILE)
            place.clear()
            return None
        return cls(place, record)

    def settle(self) -> None:
        """Decide. Afterwards the files are those of before or those that were to hold, whole; or
        somebody else's. Raises `ConfigError` when another daemon is at work on them."""
        record = self.record
        assert record is not None
        runtime = Path(record.runtime)
        # A box that was restarted has none yet.
        with contextlib.suppress(OSError):
            runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(runtime, self.place.config_file):
            try:
                self._history.prepare()
                for done in recover(self.place.config_file, self.place.history):
                    log.warning("configuration: %s", done)
                reason = self._reason_to_go_back(record)
            except HxdError as error:
                reason = str(error)
            if self.record is None:
                return
            if reason is not None:
                self._go_back(reason)
                return
            self.record = msgspec.structs.replace(record, attempts=record.attempts + 1)
            try:
                self.place.write(self.record)
            except OSError as error:
                log.error("%s: can't be written: %s", self.place.history / FILE, error.strerror)

    def take_back(self, reason: str) -> bool:
        """Put the former files back. False when that is not possible, nothing is on record, or
        another daemon has taken it up."""
        if self.record is None:
            return False
        try:
            with alone(Path(self.record.runtime), self.place.config_file):
                return self._go_back(reason)
        except ConfigError:
            return False

    def _go_back(self, reason: str) -> bool:
        record, self.record = self.record, None
        assert record is not None
        try:
            former = self._history.read(record.former)
            install(self.place.config_file, former, self.place.history)
        except HxdError as error:
            log.error("a change of the configuration that failed can't be taken back: %s", error)
            return False
        self._over(record, reason)
        return True

    def _reason_to_go_back(self, record: Unfinished) -> str | None:
        """None when it can go on, or when there is nothing any more that could."""
        if self._history.get(record.revision).outcome is not Outcome.PENDING:
            # The daemon died between saying how it ended and forgetting it.
            self.record = None
            self.place.clear()
            return None
        ours, former = self._history.read(record.revision), self._history.read(record.former)
        present = snapshot(self.place.config_file)
        foreign = sorted(
            name
            for name in ours.keys() | former.keys() | present.keys()
            if present.get(name) not in (ours.get(name), former.get(name))
        )
        if foreign:
            self._over(record, f"somebody has changed {', '.join(foreign)} meanwhile")
            return None
        if present == former:
            self._over(record, record.reason or "the daemon ended before the files had changed")
            return None
        if record.reason is not None:
            return record.reason
        if present != ours:
            return "only some of the files had changed when the daemon ended"
        if record.attempts >= MOST_ATTEMPTS:
            return f"the daemon ended {record.attempts} times in the middle of it"
        config, before = load(self.place.config_file), load_as(former, self.place.config_file)
        if config.paths != before.paths:
            return "paths would change, and the daemon ended before that was seen to work"
        return None

    def _over(self, record: Unfinished, reason: str) -> None:
        """It did not come to hold."""
        self.record, self.reason = None, reason
        self.told.append(("rolled_back", {"reason": reason}))
        log.warning("revision %d of the configuration was taken back: %s", record.revision, reason)
        try:
            self._history.settle(record.revision, Outcome.ROLLED_BACK, reason)
        except HxdError as error:
            log.error("revision %d: its outcome can't be kept: %s", record.revision, error)
        self.place.clear()

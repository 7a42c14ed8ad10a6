"""A file that is still arriving: `NAME.part`, and `NAME.state` with what of it is there.

After a kill at any moment the state claims no byte that is not in the part: data is synced first,
then the state is written beside, synced and renamed. What was written since the last time is asked
for again. Blocks; `write` may be called from several threads at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hxd.config import durable
from hxd.daemon.store import disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import StoreBroken
from hxd.daemon.store.pull.facts import Facts
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.medium import Medium, size_text
from hxd.daemon.store.pull.ranges import Ranges

FORMAT = 1
PART = ".part"
STATE = ".state"
_MAX_STATE = 1 << 20  # some ranges for each connection, so a few hundred bytes as a rule


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    facts: Facts
    ranges: list[tuple[int, int]]


class Part:
    """`facts` are the server's of now. `resumed`: bytes of an earlier run are in it. `size` is
    None until it is known."""

    def __init__(
        self,
        folder: Path,
        name: str,
        facts: Facts,
        limits: Limits,
        medium: Medium,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.final = folder / name
        self.path = folder / f"{name}{PART}"
        self.size = facts.size
        self.resumed = False
        self._state = folder / f"{name}{STATE}"
        self._folder = folder
        self._writing = f"write {name}, of which everything that arrived is kept"
        self._facts = facts
        self._limits = limits
        self._medium = medium
        self._now = now
        self._lock = threading.Lock()
        self._ranges = Ranges()
        self._saved = now()
        self._unsaved = 0
        self._saving = False
        with guarded(f"go on with what is in {folder}"):
            # Finished before, by a run whose result nobody took: it is checked like any other.
            if self.final.exists() and not self.path.exists():
                self.final.rename(self.path)
            self.descriptor = self._open()
            try:
                self._resume()
            except BaseException:
                os.close(self.descriptor)
                raise

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags, disk.FILE_MODE)

    def _resume(self) -> None:
        ranges = self._recorded()
        if ranges is None or (self._shared() and ranges.total != self.size):
            self._clear()
        else:
            self._ranges, self.resumed = ranges, ranges.total > 0

    def _shared(self) -> bool:
        """Whether the file is also a version's: after a crash between its publication and the end
        of this name. It may be read, and must never be written to."""
        return os.fstat(self.descriptor).st_nlink > 1

    def _recorded(self) -> Ranges | None:
        """What the state says is there; None when that is not about these bytes."""
        try:
            if self._state.stat().st_size > _MAX_STATE:
                return None
            state = msgspec.json.decode(self._state.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):
            return None
        if state.format != FORMAT or not state.facts.same_file(self._facts):
            return None
        length = os.fstat(self.descriptor).st_size
        at = 0
        for start, end in state.ranges:
            if not at <= start < end <= length:
                return None
            at = end
        if self.size is not None and length != self.size:
            return None
        return Ranges(state.ranges)

    def _clear(self) -> None:
        self._state.unlink(missing_ok=True)
        if self._shared():
            self.path.unlink()
            shared, self.descriptor = self.descriptor, self._open()
            os.close(shared)
        os.ftruncate(self.descriptor, 0)
        self._ranges, self.resumed = Ranges(), False
        if self.size is not None:
            # Sparse: room is checked, not taken, and pieces may come in any order.
            os.ftruncate(self.descriptor, self.size)

    @property
    def covered(self) -> int:
        """Bytes that are there."""
        with self._lock:
            return self._ranges.total

    @property
    def whole(self) -> bool:
        return self.size is not None and self.covered == self.size

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        with self._lock:
            return self._ranges.missing(start, end)

    def write(self, at: int, data: bytes) -> None:
        """Raises `StoreBroken`."""
        self._keep_reserve(len(data))
        with guarded(self._writing):
            self._medium.write(self.descriptor, data, at)
        with self._lock:
            self._ranges.add(at, at + len(data))
            self._unsaved += len(data)
            due = (
                self._unsaved >= self._limits.save_bytes
                or self._now() - self._saved >= self._limits.save_seconds
            )
            # One thread saves, the others go on writing.
            if not due or self._saving:
                return
            self._saving = True
        try:
            self._save()
        finally:
            with self._lock:
                self._saving = False

    def _keep_reserve(self, wanted: int) -> None:
        """A server that never says how much there is may never stop sending."""
        if self.size is not None:
            return
        with guarded(f"find out how much room is left in {self._folder}"):
            room = self._medium.room(self._folder)
            kept = disk.reserve(self._folder, self._limits.reserve)
        if room < kept + wanted:
            raise StoreBroken(
                f"only {size_text(room)} are left in {self._folder} and the server does not say "
                "how long the file is; what arrived is kept: make room and pull again"
            )

    def ended(self, size: int) -> None:
        """The size of a file that the server had not announced. Not a fact to compare with what
        it says next time."""
        with guarded(self._writing):
            os.ftruncate(self.descriptor, size)
        with self._lock:
            # An earlier answer that was cut off may have been longer.
            self._ranges = Ranges([(0, size)])
        self.size = size

    def save(self) -> None:
        """Write down what is there; no writer may be at work. Raises `StoreBroken`."""
        self._save()

    def _save(self) -> None:
        with self._lock:
            ranges, self._unsaved, self._saved = list(self._ranges), 0, self._now()
        beside = self._state.with_name(self._state.name + ".new")
        data = msgspec.json.encode(State(FORMAT, self._facts, ranges))
        with guarded(self._writing):
            os.fdatasync(self.descriptor)
            with beside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.rename(self._state)

    def publish(self) -> Path:
        """Give a whole, verified file its name. The state stays: a crash before the caller has
        taken the file costs a check and no download."""
        self._save()
        with guarded(f"give {self.final} its name"):
            os.fsync(self.descriptor)
            self.path.rename(self.final)
            durable.sync(self._folder)
        return self.final

    def discard(self) -> None:
        """Nothing of it is to be used again."""
        with guarded(f"remove {self.path}"):
            self._state.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """No writer may be at work. What could not be written down is asked for again."""
        try:
            if self.path.exists() and self.covered:
                with contextlib.suppress(StoreBroken):
                    self._save()
        finally:
            os.close(self.descriptor)

"""Folders to work in, on the store's file system: what is made there gets its place by a rename.

Downloads that can be resumed lie in `pull/`, one folder each, and are somebody else's; after a week
nobody comes back for them.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

from hxd.daemon.store import disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Conflict
from hxd.daemon.store.reference import VariantName

PULL = "pull"
PULL_KEPT = 7 * 86400
# Of `disk.write_atomic`: gone within a moment, except after a crash.
_PARTS = "write-"


class Workspaces:
    """Knows which ones threads of this process work in."""

    def __init__(self, folder: Path, wall: Callable[[], float]) -> None:
        self.folder = folder
        self._wall = wall
        self._lock = threading.Lock()
        self._live: set[str] = set()
        self._pulls: set[Path] = set()

    def make(self, purpose: str) -> Path:
        """A fresh one; `purpose` is how its name begins."""
        VariantName(purpose)
        with guarded("make a workspace"), self._lock:
            disk.make_folder(self.folder)
            path = Path(mkdtemp(prefix=f"{purpose}-", dir=self.folder))
            self._live.add(path.name)
            return path

    def drop(self, path: Path) -> None:
        """With all that is left in it; gone already is as good."""
        if path.parent != self.folder:
            raise BadName(f"{path} is not a workspace of the store")
        with guarded(f"remove {path}"):
            disk.delete(path)
        self.left(path)

    def left(self, path: Path) -> None:
        """Nobody works in it any more; it may have been renamed to where it belongs."""
        with self._lock:
            self._live.discard(path.name)

    @contextlib.contextmanager
    def alone(self, pull: Path) -> Iterator[None]:
        """A download's folder is one's own until what came is a version: who pulls the same
        meanwhile would write to files that have names in both. Raises `Conflict`."""
        with self._lock:
            if pull in self._pulls:
                raise Conflict(
                    "this is being pulled already, perhaps under another name; wait until that is "
                    "done (hxctl jobs)"
                )
            self._pulls.add(pull)
        try:
            yield
        finally:
            with self._lock:
                self._pulls.discard(pull)

    def contains(self, file: Path) -> bool:
        return self.folder in file.parents

    def leftovers(self, *, parts: bool = False) -> list[Path]:
        """Those nobody works in, and downloads past their time. `parts`: also files that a thread
        may be writing right now, which only a start may sweep up."""
        with self._lock:
            found = [
                path
                for path in _entries(self.folder)
                if path.name not in self._live
                and path.name != PULL
                and (parts or not path.name.startswith(_PARTS))
            ]
            pulls = [path for path in _entries(self.folder / PULL) if path not in self._pulls]
        now = self._wall()
        return found + [path for path in pulls if now - _touched(path) > PULL_KEPT]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _touched(path: Path) -> float:
    """Seconds since the epoch when it, or a file right in it, was last written. Others go on
    working in it meanwhile: what is gone by the time it is looked at does not count."""
    times = []
    with contextlib.suppress(FileNotFoundError):
        for one in (*([] if path.is_symlink() else _entries(path)), path):
            with contextlib.suppress(FileNotFoundError):
                times.append(one.lstat().st_mtime)
    return max(times, default=math.inf)

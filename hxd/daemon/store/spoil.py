"""A fault for drills: for a while, what is read of a version's file before it is loaded is a copy
with one byte flipped.

The file itself is neither written nor renamed. The copy lies in a workspace, and that it stands in
is known to this process only: whatever ends it leaves the store as it was, and a workspace that the
next start sweeps up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hxd.daemon.store import intake
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.library import Library
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work


@dataclass(frozen=True)
class Spoiled:
    """`offset` is where `copy` differs from `file`."""

    library: Library
    file: Path
    copy: Path
    offset: int

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Whoever wants to load the file is given the copy. Workers that have it already keep what
        they have."""
        self.library.stand_ins[self.file] = self.copy
        try:
            yield
        finally:
            self.library.stand_ins.pop(self.file, None)

    def drop(self) -> None:
        self.library.drop(self.copy.parent)


def spoil(library: Library, version: Version, variant: str, work: Work | None = None) -> Spoiled:
    """Of the first file of the variant; its middle lies in what is computed with. Blocks, and needs
    room for a copy where the file system can't clone. Raises `StoreError`."""
    file = version.files(variant)[0]
    folder = library.workspace("drill")
    try:
        with guarded(f"copy {file.name} for a drill"):
            (taken,) = intake.take([(file, folder / file.name)], "copy", work or Work())
            offset = taken.bytes // 2
            descriptor = os.open(taken.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                (byte,) = os.pread(descriptor, 1, offset)
                os.pwrite(descriptor, bytes([byte ^ 1]), offset)
            finally:
                os.close(descriptor)
    except BaseException:
        library.drop(folder)
        raise
    return Spoiled(library, file, taken.path, offset)

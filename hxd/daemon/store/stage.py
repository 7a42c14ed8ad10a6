"""A version before it is one: its files are in the store, hashed, and nobody sees them yet.

What comes between staging and publishing, such as a worker that loads the files and answers golden
prompts, is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from hxd.daemon.store.candidates import AnyHeader
from hxd.daemon.store.faults import Conflict
from hxd.daemon.store.intake import Taken
from hxd.daemon.store.manifest import FileEntry
from hxd.daemon.store.reference import ModelName, VariantName
from hxd.daemon.store.version import Version


class Publisher(Protocol):
    """The library, as a stage sees it."""

    def publish(
        self,
        stage: Stage,
        validation: Mapping[str, Any],
        labels: Sequence[str] | None,
        golden: bytes | None,
    ) -> Version: ...

    def drop(self, workspace: Path) -> None: ...


@dataclass
class Stage:
    """Use it as a context manager: what was not published is discarded at its end. `folder` is a
    workspace, `file` what a loader opens."""

    library: Publisher
    name: ModelName
    folder: Path
    format: str
    variant: VariantName
    entries: dict[str, FileEntry]
    headers: tuple[AnyHeader, ...]
    taken: list[Taken]
    origin: str
    origin_sha256: str
    description: str
    moves: bool
    _over: bool = False

    @property
    def file(self) -> Path:
        return self.taken[0].path

    @property
    def size(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    def publish(
        self,
        validation: Mapping[str, Any],
        *,
        labels: Sequence[str] | None = None,
        golden: bytes | None = None,
    ) -> Version:
        """A new version, on the disk when this returns. Without `labels`, `stable` points at it if
        it is the model's first. Raises `Conflict` where a version has the same content."""
        if self._over:
            raise Conflict("this stage was published or discarded before")
        version = self.library.publish(self, validation, labels, golden)
        self._over = True
        return version

    def discard(self) -> None:
        """Sources that were to be moved are where they were."""
        if not self._over:
            self._over = True
            self.library.drop(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

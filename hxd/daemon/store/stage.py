"""A version before it is one: its files are in the store, hashed, and nobody sees them yet.

What comes between staging and publishing, such as a worker that loads the files and answers golden
prompts, is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hxd.daemon.store import candidates, demo, intake
from hxd.daemon.store.candidates import AnyHeader
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict, Corrupt, SameContent, StoreError
from hxd.daemon.store.intake import Take, Taken
from hxd.daemon.store.labels import STABLE
from hxd.daemon.store.library import Library, check_golden
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.reference import Label, ModelName, VariantName
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work


@dataclass
class Stage:
    """Use it as a context manager: what was not published is discarded at its end. `folder` is a
    workspace, `file` what a loader opens."""

    library: Library
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

    @classmethod
    def of(
        cls,
        library: Library,
        files: Sequence[Path],
        name: str,
        *,
        take: Take = "share",
        origin: str = "",
        origin_sha256: str = "",
        urls: Sequence[str] = (),
        description: str = "",
        variant: str | None = None,
        work: Work | None = None,
    ) -> Self:
        """Checks headers, then brings the files into a workspace. `urls`, one per file in the order
        given, are where the same bytes can be had again.

        Raises `Corrupt` for files that are not what they claim, `Conflict` where a version has the
        same content, `StoreBroken`."""
        model = ModelName(name)
        if urls and len(urls) != len(files):
            raise StoreError(f"{len(urls)} urls for {len(files)} files")
        found = candidates.check(files)
        kind = VariantName(found.variant if variant is None else variant)
        if take == "share" and any(map(demo.owns, found.files)):
            # What happens to the store's files must not happen to the package's.
            take = "copy"
        places = dict(zip([file.resolve() for file in files], urls, strict=False))
        folder = library.workspace("stage")
        try:
            with guarded(f"bring {found.files[0].name} into the store"):
                targets = [folder / one for one in found.names]
                pairs = list(zip(found.files, targets, strict=True))
                taken = intake.take(pairs, take, work or Work())
            for one, header in zip(taken, found.headers, strict=True):
                # The path may hold something else by now than when its header was read.
                if candidates.read_header(one.path, one.source.name)[1] != header:
                    raise Corrupt(f"{one.source.name} changed while it was read")
            entries = {
                one.path.name: FileEntry(
                    one.sha256, one.bytes, kind, shard, places.get(one.source, "")
                )
                for shard, one in enumerate(taken)
            }
            _refuse_again(library, model, tuple(sorted(one.sha256 for one in taken)))
        except BaseException:
            library.drop(folder)
            raise
        return cls(
            library=library,
            name=model,
            folder=folder,
            format=found.format,
            variant=kind,
            entries=entries,
            headers=found.headers,
            taken=taken,
            origin=origin or str(found.files[0]),
            origin_sha256=origin_sha256,
            description=description,
            moves=take == "move",
        )

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
        library, name = self.library, self.name
        wanted = None if labels is None else [Label(label) for label in labels]
        check_golden(golden)
        with guarded(f"publish {name}"), library.writing:
            if wanted is None:
                wanted = [] if library.versions(name) else [STABLE]
            manifest = Manifest(
                name=name,
                version=library.next_number(name, library.labelled(name)),
                files=self.entries,
                created=library.today(),
                description=self.description,
                format="gguf" if self.format == "gguf" else "ggml",
                origin=self.origin,
                origin_sha256=self.origin_sha256,
                validation=dict(validation),
            )
            _refuse_again(library, name, manifest.digests)
            version = library.enter(
                self.folder,
                manifest,
                self.taken,
                labels=wanted,
                golden=golden,
                moves=self.moves,
            )
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


def _refuse_again(library: Library, name: ModelName, digests: tuple[str, ...]) -> None:
    for number in library.versions(name):
        try:
            version = library.version(name, number)
        except Corrupt:
            continue
        if version.manifest.digests == digests:
            then = (
                f"hxctl label {name} LABEL {number} points at it, hxctl model rm {version} "
                "removes it"
            )
            if version.quarantined:
                raise Conflict(
                    f"{version} has the same content, in quarantine: {version.quarantined}; {then}"
                )
            raise SameContent(f"{version} has the same content; {then}", name, number)

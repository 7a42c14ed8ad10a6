"""What a backup has and the store lacks comes back; what is whole in the store stays.

The backup may be hostile: all that is needed is copied into workspaces and checked, digests and
headers, before the first of it gets its place. One bad object, and nothing was changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hxd.daemon.store import candidates, disk, findings, intake, quarantine, snapshots
from hxd.daemon.store import mark as marking
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Corrupt, NotThere
from hxd.daemon.store.findings import What
from hxd.daemon.store.intake import Taken
from hxd.daemon.store.library import Library
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.mark import Mark
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.snapshots import SavedModel, SavedVersion, Snapshot
from hxd.daemon.store.version import VARIANTS, Version
from hxd.daemon.store.work import Work

# Faults of a file that the backup's copy mends.
_MENDED = frozenset({What.MISSING, What.SIZE, What.DIGEST, What.LINK})


@dataclass
class Restored:
    """`versions` came back whole, `files` were replaced in versions that had lost them, `kept`
    says what was left as it is, and why."""

    snapshot: str = ""
    versions: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    bytes: int = 0

    def to_body(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "versions": self.versions,
            "variants": self.variants,
            "files": self.files,
            "kept": self.kept,
            "labels": self.labels,
            "bytes": self.bytes,
        }


@dataclass
class _Part:
    """A version, a derived variant, or single files of one, on the way from a workspace to its
    place. `wanted` are names in the manifest."""

    manifest: Manifest
    place: Path
    wanted: list[str]
    variant: str | None = None
    repairs: bool = False
    instead: bool = False
    quarantined: str = ""
    workspace: Path | None = None
    taken: list[Taken] = field(default_factory=list)

    @property
    def entries(self) -> list[tuple[str, FileEntry]]:
        return [(name, self.manifest.files[name]) for name in self.wanted]


def restore(
    library: Library,
    target: Path,
    work: Work | None = None,
    names: Collection[str] | None = None,
    snapshot: str | None = None,
    *,
    labels: bool = False,
    only: Collection[tuple[str, int]] | None = None,
) -> Restored:
    """From the newest snapshot, or the one named. `labels`: the snapshot's replace the store's;
    else only those that are missing are set. `only`: these versions, and no labels.

    Raises `Corrupt` for a backup that is not what it claims, `NotThere`, `StoreBroken`."""
    work = work or Work()
    root = disk.resolved(target)
    there = snapshots.ids(root)
    table = snapshots.load(root, snapshot)
    report = Restored(snapshot if snapshot is not None else there[-1])
    models = _chosen(table, names)
    parts: list[_Part] = []
    for model in models:
        for number, saved in model.versions.items():
            if only is None or (model.name, number) in only:
                parts += _missing(library, model.name, number, saved, report, work)
    with _workspaces(library, parts), guarded("restore"):
        _fetch(library, root, parts, work)
        for part in parts:
            _place(library, part, report)
    for part in parts:
        if part.repairs:
            _release(library, part, work)
    if only is None:
        for model in models:
            _labels(library, model, report, labels)
    return report


def _chosen(table: Snapshot, names: Collection[str] | None) -> list[SavedModel]:
    if names is None:
        return list(table.models.values())
    for name in names:
        if ModelName(name) not in table.models:
            raise NotThere(
                f"no model {name} in the snapshot; there are {', '.join(table.models) or 'none'}"
            )
    return [table.models[name] for name in names]


def _missing(
    library: Library,
    name: ModelName,
    number: int,
    saved: SavedVersion,
    report: Restored,
    work: Work,
) -> Iterator[_Part]:
    """What the store lacks of a version."""
    folder = library.folder(name) / str(number)
    whole = _Part(saved.manifest, folder, list(saved.manifest.files), quarantined=saved.quarantined)
    variants = {
        variant: _Part(
            made,
            folder / VARIANTS / variant,
            list(made.files),
            variant,
            quarantined=saved.marks.get(variant, ""),
        )
        for variant, made in saved.variants.items()
    }
    if not os.path.lexists(folder):
        yield whole
        yield from variants.values()
        return
    try:
        version = library.version(name, number)
    except (Corrupt, NotThere):
        whole.instead = True
        yield whole
        yield from variants.values()
        return
    if version.manifest.digests != saved.manifest.digests:
        report.kept.append(f"{version}: it has another content than the backup's")
        return
    lost = _lost(library, version, work)
    if not lost:
        report.kept.append(f"{version}: whole")
    if own := [file for file in version.manifest.files if file in lost]:
        yield _Part(version.manifest, folder, own, repairs=True)
    for variant, part in variants.items():
        if variant not in version.derived:
            part.instead = os.path.lexists(part.place)
            yield part
        elif version.derived[variant].digests == part.manifest.digests:
            part.manifest = version.derived[variant]
            part.wanted = [
                file for file in part.manifest.files if f"{VARIANTS}/{variant}/{file}" in lost
            ]
            part.repairs = True
            if part.wanted:
                yield part


def _lost(library: Library, version: Version, work: Work) -> set[str]:
    found = findings.examine(library.tree, library.digests, version, work)
    return {finding.file for finding in found if finding.what in _MENDED}


@contextlib.contextmanager
def _workspaces(library: Library, parts: list[_Part]) -> Iterator[None]:
    try:
        for part in parts:
            part.workspace = library.workspace("restore")
        yield
    finally:
        for part in parts:
            if part.workspace is not None:
                library.drop(part.workspace)


def _fetch(library: Library, root: Path, parts: list[_Part], work: Work) -> None:
    """Every object that is needed, checked. Raises `Corrupt` for the first that is not right."""
    tree = Beneath(root)
    wanted = sum(entry.bytes for part in parts for _, entry in part.entries)
    disk.check_room(library.root, wanted, "restore")
    for part in parts:
        for name, entry in part.entries:
            part.taken.append(fetch_object(tree, entry, _inside(part) / name, work))


def fetch_object(tree: Beneath, entry: FileEntry, target: Path, work: Work) -> Taken:
    """An object of the backup `tree`, copied to `target` and found to be what `entry` says; raises
    `NotThere` and `Corrupt`."""
    source = snapshots.object_path(tree.root, entry.sha256)
    try:
        descriptor = tree.open(source)
    except FileNotFoundError:
        raise NotThere(f"the backup lacks {source}; another snapshot may do") from None
    try:
        size = os.fstat(descriptor).st_size
        if size != entry.bytes:
            raise Corrupt(f"{source} has {size} bytes, the snapshot says {entry.bytes}")
        taken = intake.copy(descriptor, source, target, work)
    finally:
        os.close(descriptor)
    if taken.sha256 != entry.sha256:
        raise Corrupt(f"{source} is corrupted: its sha256 is {taken.sha256.short}")
    candidates.read_header(target, f"{source} ({target.name})")
    return taken


def _place(library: Library, part: _Part, report: Restored) -> None:
    label = f"{part.manifest.name}@{part.manifest.version}"
    inside = _inside(part)
    if part.repairs:
        for taken in part.taken:
            library.put_file(part.place / taken.path.name, taken)
            report.files.append(f"{label}/{taken.path.name}")
    else:
        if part.quarantined:
            mark = Mark(part.quarantined, library.today())
            disk.write_new(inside / marking.FILE, marking.write(mark))
        if part.instead:
            quarantine.impound(library, part.place, "replaced by the backup's")
        if part.variant is None:
            library.enter(inside, part.manifest, part.taken)
            report.versions.append(label)
        else:
            library.enter_variant(inside, part.manifest, part.taken)
            report.variants.append(f"{label}:{part.variant}")
    report.bytes += sum(taken.bytes for taken in part.taken)


def _release(library: Library, part: _Part, work: Work) -> None:
    """What was in quarantine for the bytes that were just replaced may be loaded again."""
    version = library.version(part.manifest.name, part.manifest.version)
    mark = version.mark if part.variant is None else version.marks.get(part.variant)
    if mark is not None and mark.cause == "bytes":
        with contextlib.suppress(Corrupt):  # Another file of it is damaged too.
            quarantine.release(library, version.name, version.number, part.variant, work)


def _inside(part: _Part) -> Path:
    assert part.workspace is not None
    return part.workspace


def _labels(library: Library, model: SavedModel, report: Restored, replace: bool) -> None:
    name = model.name
    there = library.versions(name)
    saved = {label: at for label, at in model.labels.items() if at in there}
    with guarded(f"label {name}"), library.writing:
        now = library.labels(name)
        merged: Mapping[str, int] = {**now, **saved} if replace else {**saved, **now}
        report.labels += [
            f"{name}@{label} = {at}" for label, at in merged.items() if now.get(label) != at
        ]
        library.save_labels(name, merged, model.next)
        if model.golden is not None and there and (replace or library.golden(name) is None):
            library.set_golden(name, model.golden)

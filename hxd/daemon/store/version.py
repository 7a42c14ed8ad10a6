"""One version of a model as it lies on the disk: its manifest, its derived variants, its mark."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hxd.daemon.store import manifest as manifests
from hxd.daemon.store import mark as marking
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.faults import BadName, Corrupt, NotThere
from hxd.daemon.store.manifest import Manifest
from hxd.daemon.store.mark import Mark
from hxd.daemon.store.reference import ModelName, VariantName, shown
from hxd.errors import nearest

VARIANTS = "variants"


@dataclass(frozen=True)
class Version:
    """`derived` has the manifests of the variants made here, `marks` their marks."""

    name: ModelName
    number: int
    folder: Path
    manifest: Manifest
    derived: Mapping[str, Manifest] = field(default_factory=dict)
    mark: Mark | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def quarantined(self) -> str | None:
        """Why the version must not be loaded, if so."""
        return None if self.mark is None else str(self.mark)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return self.manifest.size + sum(manifest.size for manifest in self.derived.values())

    def variants(self) -> dict[str, tuple[Path, ...]]:
        """Files by variant, those that were imported first; of a split model all shards in order,
        of which a loader opens the first."""
        return {name: self.files(name) for name in (*self.manifest.variants(), *self.derived)}

    def files(self, variant: str) -> tuple[Path, ...]:
        """Raises `NotThere`, naming what there is."""
        folder, manifest = self.part(variant)
        return tuple(folder / name for name in manifest.variants()[variant])

    def part(self, variant: str) -> tuple[Path, Manifest]:
        """The folder and the manifest that a variant is in; raises `NotThere`."""
        own = self.manifest.variants()
        if variant in own:
            return self.folder, self.manifest
        if variant in self.derived:
            return self.folder / VARIANTS / variant, self.derived[variant]
        there = [*own, *self.derived]
        raise NotThere(
            f"no variant {shown(variant)} of {self}.{nearest(variant, there)} "
            f"There are: {', '.join(there)}; hxctl model quantize {self} VARIANT makes others"
        )


def read(tree: Beneath, name: ModelName, number: int, folder: Path) -> Version:
    """Raises `FileNotFoundError` where there is no manifest, `Corrupt` and `OSError`."""
    manifest = read_manifest(tree, folder)
    if (manifest.name, manifest.version) != (name, number):
        raise Corrupt(
            f"{folder / manifests.FILE} is of {manifest.name}@{manifest.version}, not of "
            f"{name}@{number}. Run hxctl model doctor"
        )
    derived: dict[str, Manifest] = {}
    marks: dict[str, Mark] = {}
    for variant in variant_folders(folder):
        below = folder / VARIANTS / variant
        try:
            made = read_manifest(tree, below)
        except (Corrupt, FileNotFoundError):
            continue  # The doctor finds it; the version serves without it.
        if belongs(made, manifest, variant):
            derived[variant] = made
            if (mark := read_mark(tree, below)) is not None:
                marks[variant] = mark
    return Version(name, number, folder, manifest, derived, read_mark(tree, folder), marks)


def belongs(made: Manifest, parent: Manifest, variant: str) -> bool:
    """Whether the manifest is of this derived variant of this version."""
    return (
        (made.name, made.version) == (parent.name, parent.version)
        and tuple(made.variants()) == (variant,)
        and variant not in parent.variants()
        and set(made.made_from) <= set(parent.digests)
    )


def read_manifest(tree: Beneath, folder: Path) -> Manifest:
    """Raises `FileNotFoundError`, `Corrupt` and `OSError`."""
    file = folder / manifests.FILE
    return manifests.read(tree.read(file, manifests.MAX_BYTES), str(file))


def read_mark(tree: Beneath, folder: Path) -> Mark | None:
    try:
        return marking.read(tree.read(folder / marking.FILE, marking.MAX_BYTES))
    except FileNotFoundError:
        return None
    except Corrupt:
        return Mark("its mark is not a file")


def variant_folders(folder: Path) -> list[str]:
    """Names in `variants/` that may be variants."""
    try:
        with os.scandir(folder / VARIANTS) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and _is_variant(entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_variant(name: str) -> bool:
    try:
        VariantName(name)
    except BadName:
        return False
    return True

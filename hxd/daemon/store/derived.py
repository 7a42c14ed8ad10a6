"""A variant that was made here of a version, and becomes part of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hxd.daemon.store import candidates, intake
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName
from hxd.daemon.store.library import Library
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.reference import VariantName
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work


def add_variant(
    library: Library,
    version: Version,
    variant: str,
    file: Path,
    *,
    made_by: str,
    validation: Mapping[str, Any] | None = None,
    work: Work | None = None,
) -> Version:
    """`file`, which lies in a workspace, becomes a derived variant and is gone from there. Raises
    `Conflict` where the version has one of this name."""
    kind = VariantName(variant)
    if not library.workspaces.contains(file):
        raise BadName(f"{file} is not in a workspace of the store")
    found = candidates.check([file])
    folder = library.workspace("variant")
    try:
        with guarded(f"add {kind} to {version}"):
            (taken,) = intake.take([(file, folder / found.names[0])], "move", work or Work())
        manifest = Manifest(
            name=version.name,
            version=version.number,
            files={taken.path.name: FileEntry(taken.sha256, taken.bytes, kind)},
            created=library.today(),
            format="gguf" if found.format == "gguf" else "ggml",
            origin=f"{version}",
            made_from=version.manifest.digests,
            made_by=made_by,
            validation=dict(validation or {}),
        )
        return library.enter_variant(folder, manifest, [taken], moves=True)
    finally:
        library.drop(folder)

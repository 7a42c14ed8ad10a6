"""What differs between a version's manifest and its files."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hxd.daemon.store import candidates, version
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store import mark as marking
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.digests import Digests
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.version import VARIANTS, Version
from hxd.daemon.store.work import Work


class What(enum.StrEnum):
    MISSING = "missing"
    SIZE = "size"
    DIGEST = "digest"
    HEADER = "header"
    EXTRA = "extra"
    LINK = "link"
    MANIFEST = "manifest"


@dataclass(frozen=True)
class Finding:
    """`file` is below the version's folder."""

    name: str
    number: int
    file: str
    what: What
    detail: str

    def to_body(self) -> dict[str, object]:
        return {
            "name": str(self.name),
            "version": self.number,
            "file": self.file,
            "what": str(self.what),
            "detail": self.detail,
        }


def examine(
    tree: Beneath, digests: Digests, found: Version, work: Work, *, deep: bool = True
) -> Iterator[Finding]:
    """All files of a version whose manifest is good; `deep` reads them, else only their sizes."""
    known = {manifests.FILE, marking.FILE, *found.manifest.files}
    if found.derived:
        known.add(VARIANTS)
    yield from _part(tree, digests, found, "", found.manifest, known, work, deep)
    for variant, manifest in found.derived.items():
        below = f"{VARIANTS}/{variant}/"
        yield from _part(
            tree,
            digests,
            found,
            below,
            manifest,
            {manifests.FILE, marking.FILE, *manifest.files},
            work,
            deep,
        )
    there = found.folder / VARIANTS
    if there.is_dir() and not there.is_symlink():
        for name in _names(there):
            if name not in found.derived:
                yield _finding(
                    found,
                    f"{VARIANTS}/{name}",
                    What.MANIFEST if name in version.variant_folders(found.folder) else What.EXTRA,
                    "its manifest is missing, unreadable or of something else",
                )


def _part(
    tree: Beneath,
    digests: Digests,
    found: Version,
    below: str,
    manifest: Manifest,
    known: set[str],
    work: Work,
    deep: bool,
) -> Iterator[Finding]:
    folder = found.folder / below
    for name, entry in manifest.files.items():
        fault = _fault(tree, digests, folder / name, entry, work, deep)
        if fault is not None:
            yield _finding(found, below + name, *fault)
    for name in _names(folder):
        path = folder / name
        if path.is_symlink():
            if name not in manifest.files:
                yield _finding(found, below + name, What.LINK, "a symbolic link, never followed")
        elif name not in known and not (name == VARIANTS and path.is_dir()):
            yield _finding(found, below + name, What.EXTRA, "not in the manifest")


def differs(
    tree: Beneath, digests: Digests, path: Path, entry: FileEntry, work: Work
) -> str | None:
    """How a file differs from its entry, phrased to follow its name; None where it does not. What
    is remembered of the file is believed."""
    try:
        descriptor = tree.open(path)
    except FileNotFoundError:
        return "is missing"
    try:
        size = os.fstat(descriptor).st_size
        if size != entry.bytes:
            return f"has {size} bytes, the manifest says {entry.bytes}"
        digest = digests.of(descriptor, path.name, work)
    finally:
        os.close(descriptor)
    if digest != entry.sha256:
        return f"is corrupted: its sha256 is {digest.short}, the manifest says {entry.sha256.short}"
    return None


def _fault(
    tree: Beneath, digests: Digests, path: Path, entry: FileEntry, work: Work, deep: bool
) -> tuple[What, str] | None:
    work.check()
    try:
        descriptor = tree.open(path)
    except FileNotFoundError:
        return What.MISSING, f"{entry.bytes} bytes of it are in the manifest"
    except Corrupt as error:
        return What.LINK, error.message
    except OSError as error:
        return What.MISSING, f"can't be opened: {error.strerror}"
    try:
        size = os.fstat(descriptor).st_size
        if size != entry.bytes:
            return What.SIZE, f"{size} bytes; the manifest says {entry.bytes}"
        if not deep:
            return None
        digest = digests.recompute(descriptor, path.name, work)
        if digest != entry.sha256:
            return What.DIGEST, f"sha256 {digest.short}; the manifest says {entry.sha256.short}"
        # The file that was hashed, whatever its path names by now.
        candidates.read_header(Path(f"/proc/self/fd/{descriptor}"), path.name)
    except OSError as error:
        return What.DIGEST, f"can't be read: {error.strerror}"
    except Corrupt as error:
        return What.HEADER, error.message
    finally:
        os.close(descriptor)
    return None


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _finding(found: Version, file: str, what: What, detail: str) -> Finding:
    return Finding(found.name, found.number, file, what, detail)

"""What must not be used: versions and variants that are marked where they lie, and what was taken
out of the store altogether, into its folder `quarantine/`.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

import tomli_w

from hxd.config import durable
from hxd.daemon.store import disk, integrity
from hxd.daemon.store import mark as marking
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.findings import What
from hxd.daemon.store.library import QUARANTINE, Library
from hxd.daemon.store.mark import Cause, Mark
from hxd.daemon.store.reference import shown
from hxd.daemon.store.version import VARIANTS
from hxd.daemon.store.work import Work

_REASON = "reason.toml"


def impose(
    library: Library,
    name: str,
    number: int,
    why: str,
    variant: str | None = None,
    *,
    cause: Cause = "behaviour",
) -> None:
    """From now on it is not loaded. `cause` is `bytes` where mending the files is enough to let it
    out again; the doctor then does so."""
    with guarded(f"quarantine {shown(name)}@{number}"), library.writing:
        file = _folder(library, name, number, variant) / marking.FILE
        mark = marking.write(Mark(why, library.today(), cause))
        disk.write_atomic(file, mark, library.workspaces.folder)


def release(
    library: Library, name: str, number: int, variant: str | None = None, work: Work | None = None
) -> None:
    """Lifts the quarantine; raises `Corrupt` while a file is not the manifest's."""
    below = f"{VARIANTS}/{variant}/" if variant is not None else ""
    for finding in integrity.verify(library, name, number, work):
        # What ails a derived variant keeps only that one in.
        ours = finding.file.startswith(below or f"{VARIANTS}/") == bool(below)
        if ours and finding.what is not What.EXTRA:
            raise Corrupt(
                f"{shown(name)}@{number} stays in quarantine: {finding.file}: "
                f"{finding.detail}. Run hxctl model doctor"
            )
    with guarded(f"release {shown(name)}@{number}"), library.writing:
        folder = _folder(library, name, number, variant)
        (folder / marking.FILE).unlink(missing_ok=True)
        durable.sync(folder)


def impound(library: Library, path: Path, why: str) -> Path:
    """Takes something out of the store, into a folder of `quarantine/` with the reason beside it;
    returns where it lies. A symbolic link goes as a link."""
    with guarded(f"take {path} out of the store"), library.writing:
        when = library.today().replace(":", "").replace("-", "")
        disk.make_folder(library.root / QUARANTINE)
        folder = library.root / QUARANTINE / f"{when}-{secrets.token_hex(4)}"
        disk.make_folder(folder)
        reason = {"was": str(path.relative_to(library.root)), "why": why, "since": library.today()}
        text = tomli_w.dumps(reason).encode("utf-8", "backslashreplace")
        disk.write_new(folder / _REASON, text)
        # A name of its own: what is impounded may be called reason.toml.
        disk.move(path, folder / f"was-{path.name}"[:255])
        return folder


def sweep(library: Library) -> None:
    """Removes reasons of what was not taken out after all: the daemon died before."""
    for folder in (library.root / QUARANTINE).iterdir():
        with contextlib.suppress(OSError):
            if not folder.is_symlink() and {one.name for one in folder.iterdir()} <= {_REASON}:
                disk.delete(folder)


def _folder(library: Library, name: str, number: int, variant: str | None) -> Path:
    """A variant that was imported is the version itself."""
    version = library.version(name, number)
    return version.folder if variant is None else version.part(variant)[0]

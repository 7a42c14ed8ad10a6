"""Whether the files of versions are what their manifests say: of all that is there when somebody
asks, of one variant each time before it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from hxd.daemon.store import findings
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict, Corrupt
from hxd.daemon.store.findings import Finding, What
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work


def verify(
    library: Library, name: str | None = None, number: int | None = None, work: Work | None = None
) -> list[Finding]:
    """Reads every file again, whatever is remembered of it."""
    found: list[Finding] = []
    for one in library.names() if name is None else [name]:
        model = ModelName(one)
        numbers = library.versions(model) if number is None else [number]
        if not numbers:
            raise library.unknown(model)
        for each in numbers:
            try:
                version = library.version(model, each)
            except Corrupt as error:
                found.append(Finding(model, each, manifests.FILE, What.MANIFEST, error.message))
            else:
                with guarded(f"verify {version}"):
                    found += findings.examine(
                        library.tree, library.digests, version, work or Work()
                    )
    return found


def ensure(library: Library, version: Version, variant: str, work: Work | None = None) -> Path:
    """What a loader opens, once every file of the variant is known to be the manifest's.

    Raises `Corrupt` naming the file that is not, `Conflict` for what is in quarantine. A file that
    did not change since it was last hashed is not read again."""
    _, manifest = version.part(variant)
    # By the disk, not by what was read when the caller got the version.
    now = library.version(version.name, version.number)
    if (mark := now.mark or now.marks.get(variant)) is not None:
        raise Conflict(
            f"{version}:{variant} is in quarantine: {mark}. Run hxctl model doctor, or import "
            "another version"
        )
    files = version.files(variant)
    with guarded(f"check {version}:{variant}"):
        for file in files:
            entry = manifest.files[file.name]
            read = library.stand_ins.get(file, file)
            wrong = findings.differs(library.tree, library.digests, read, entry, work or Work())
            if wrong is not None:
                raise Corrupt(f"{read} {wrong}. {version} is not loaded; run hxctl model doctor")
    return library.stand_ins.get(files[0], files[0])

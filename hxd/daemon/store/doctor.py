"""Mends the store as far as it can be mended, and says what else an operator can do.

Nothing is deleted but leftovers and what is only remembered: what does not belong is taken out to
`quarantine/` with the reason beside it. Good bytes come from the built-in demo model, from a backup
or from where they were fetched at first, and are believed by their digest only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hxd.daemon.store import candidates, disk, intake, quarantine, restore, seed
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.examine import examine, label_troubles
from hxd.daemon.store.faults import Cancelled, Corrupt, NotThere, StoreError
from hxd.daemon.store.findings import What
from hxd.daemon.store.intake import Taken
from hxd.daemon.store.labels import STABLE
from hxd.daemon.store.library import Library
from hxd.daemon.store.manifest import FileEntry
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.troubles import Cure, Kind, Trouble
from hxd.daemon.store.version import VARIANTS
from hxd.daemon.store.work import Work
from hxd.errors import HxdError

__all__ = ["Cure", "Fetch", "Kind", "Trouble", "examine", "mend"]

# An URL, the sha256 that is expected there, the new file to write, and whom to tell.
Fetch = Callable[[str, str, Path, Work], None]

_ORDER = (
    Kind.LEFTOVER,
    Kind.CACHE,
    Kind.LINK,
    Kind.EXTRA,
    Kind.OWNER,
    Kind.MODE,
    Kind.MANIFEST,
    Kind.VARIANT,
    Kind.FILE,
    Kind.QUARANTINED,
)


def mend(
    library: Library,
    troubles: Sequence[Trouble],
    work: Work | None = None,
    *,
    backup: Path | None = None,
    fetch: Fetch | None = None,
) -> list[Cure]:
    """One cure for each trouble, and for labels that point nowhere once the others are mended.
    What was mended meanwhile, by somebody else or together with another, is cured too."""
    return _Doctor(library, work or Work(), backup, fetch).mend(troubles)


class _Doctor:
    def __init__(
        self, library: Library, work: Work, backup: Path | None, fetch: Fetch | None
    ) -> None:
        self.library = library
        self.work = work
        self.backup = None if backup is None else disk.resolved(backup)
        self.fetch = fetch

    def mend(self, troubles: Sequence[Trouble]) -> list[Cure]:
        by_kind: dict[Kind, Callable[[Trouble], Cure]] = {
            Kind.LEFTOVER: self._leftover,
            Kind.CACHE: self._cache,
            Kind.LINK: self._foreign,
            Kind.EXTRA: self._foreign,
            Kind.OWNER: self._owner,
            Kind.MODE: self._mode,
            Kind.MANIFEST: self._manifest,
            Kind.VARIANT: self._variant,
            Kind.FILE: self._file,
            Kind.QUARANTINED: self._quarantined,
        }
        cures = []
        for kind in _ORDER:
            for trouble in troubles:
                if trouble.kind is kind:
                    self.work.check()
                    cures.append(self._try(by_kind[kind], trouble))
        # After the files: a version that could not be mended is one that labels leave.
        touched = {trouble.name for trouble in troubles if trouble.name}
        for name in sorted(touched | set(self.library.names())):
            for trouble in label_troubles(self.library, ModelName(name)):
                cures.append(self._try(self._labels, trouble))
        return cures

    def _try(self, cure: Callable[[Trouble], Cure], trouble: Trouble) -> Cure:
        """One trouble that can't be mended must not keep the others from being."""
        try:
            with guarded(f"mend {trouble.path}"):
                return cure(trouble)
        except Cancelled:
            raise
        except HxdError as error:
            return Cure(trouble, False, error.message)

    def _path(self, trouble: Trouble) -> Path:
        return self.library.root / trouble.path

    def _impound(self, path: Path, trouble: Trouble) -> Path:
        return quarantine.impound(self.library, path, trouble.detail)

    def _leftover(self, trouble: Trouble) -> Cure:
        path = self._path(trouble)
        if path in self.library.workspaces.leftovers():
            disk.delete(path)
        return Cure(trouble, True, "removed")

    def _cache(self, trouble: Trouble) -> Cure:
        self.library.digests.forget()
        return Cure(trouble, True, "removed; files are read again at their next use")

    def _foreign(self, trouble: Trouble) -> Cure:
        path = self._path(trouble)
        if not os.path.lexists(path):
            return Cure(trouble, True, "gone")
        return Cure(trouble, True, f"taken out to {self._impound(path, trouble)}")

    def _owner(self, trouble: Trouble) -> Cure:
        path, owner = self._path(trouble), self.library.root.stat()
        try:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        except FileNotFoundError:
            return Cure(trouble, True, "gone")
        except PermissionError:
            return Cure(trouble, False, f"as root: chown -R {owner.st_uid} {self.library.root}")
        return Cure(trouble, True, f"given to user {owner.st_uid}")

    def _mode(self, trouble: Trouble) -> Cure:
        path = self._path(trouble)
        if path.is_symlink() or not path.exists():
            return Cure(trouble, True, "gone")
        path.chmod(disk.FOLDER_MODE if path.is_dir() else disk.FILE_MODE)
        return Cure(trouble, True, "only hxd may use it now")

    def _manifest(self, trouble: Trouble) -> Cure:
        name, number = ModelName(trouble.name), trouble.version
        path = self._path(trouble)
        if not os.path.lexists(path):
            # Removed meanwhile: it must not come back.
            return Cure(trouble, True, "gone")
        with contextlib.suppress(StoreError):
            self.library.version(name, number)
            return Cure(trouble, True, "there is a manifest now")
        came = self._bring_version(name, number)
        if came:
            return Cure(trouble, True, came)
        lies = self._impound(path, trouble) if os.path.lexists(path) else "nowhere"
        return Cure(
            trouble,
            False,
            f"what was left is in {lies}; import its files again (hxctl model import PATH --name "
            f"{name}), or run hxctl model restore with a backup that has it",
        )

    def _bring_version(self, name: ModelName, number: int) -> str:
        """In the place of what is left of it; how, or nothing where it can't be had."""
        if name == seed.NAME and seed.replace(self.library, number):
            return "the built-in model was put in again"
        if self.backup is not None:
            with contextlib.suppress(StoreError):
                done = restore.restore(
                    self.library, self.backup, self.work, [name], only=[(name, number)]
                )
                if done.versions:
                    return f"restored from the backup of {done.snapshot}"
        return ""

    def _variant(self, trouble: Trouble) -> Cure:
        path = self._path(trouble)
        again = f"hxctl model quantize {trouble.name}@{trouble.version} {trouble.variant}"
        if trouble.variant in self.library.version(trouble.name, trouble.version).derived:
            return Cure(trouble, True, "there is a manifest now")
        if os.path.lexists(path):
            lies = self._impound(path, trouble)
            return Cure(trouble, True, f"taken out to {lies}; {again} makes it again")
        return Cure(trouble, True, f"gone; {again} makes it again")

    def _file(self, trouble: Trouble) -> Cure:
        version = self.library.version(trouble.name, trouble.version)
        path = self._path(trouble)
        derived = trouble.variant
        manifest = version.derived.get(derived, version.manifest)
        if derived and derived not in version.derived:
            return Cure(trouble, True, "taken out with its variant")
        entry = manifest.files[path.name]
        space = self.library.workspace("mend")
        try:
            taken, where = None, ""
            if trouble.what != What.HEADER:  # Those are the manifest's bytes; no copy is better.
                taken, where = self._good_copy(entry, space / path.name)
            if taken is not None:
                if os.path.lexists(path):
                    self._impound(path, trouble)
                self.library.put_file(path, taken)
                return Cure(trouble, True, f"put in again, from {where}")
        finally:
            self.library.drop(space)
        if derived:
            lies = self._impound(version.folder / VARIANTS / derived, trouble)
            return Cure(
                trouble,
                True,
                f"the variant was taken out to {lies}; hxctl model quantize {version} {derived} "
                "makes it again",
            )
        if os.path.lexists(path) and trouble.what != What.HEADER:
            self._impound(path, trouble)
        if version.mark is None:
            why = f"{path.name}: {trouble.detail}"
            quarantine.impose(self.library, version.name, version.number, why, cause="bytes")
        return Cure(
            trouble,
            False,
            f"{version} is in quarantine. {where or trouble.detail}. Run hxctl model doctor "
            f"with a backup that has sha256 {entry.sha256}, or hxctl model rm {version} and import "
            "it again",
        )

    def _good_copy(self, entry: FileEntry, target: Path) -> tuple[Taken | None, str]:
        """With where it came from; without a copy, why there is none."""
        failed = []
        source = seed.find(entry.sha256)
        if source is not None:
            (taken,) = intake.take([(source, target)], "copy", self.work)
            if taken.sha256 == entry.sha256:
                return taken, "the built-in model"
            failed.append(f"{source} is corrupted too")
            target.unlink()
        if self.backup is None:
            failed.append("no backup was named")
        else:
            try:
                tree = Beneath(self.backup)
                taken = restore.fetch_object(tree, entry, target, self.work)
                return taken, f"the backup {self.backup}"
            except (NotThere, Corrupt) as error:
                failed.append(error.message)
                target.unlink(missing_ok=True)
            except OSError as error:
                failed.append(f"the backup can't be read: {error.strerror}")
                target.unlink(missing_ok=True)
        if not entry.url:
            failed.append("the manifest has no URL for it")
        elif self.fetch is None:
            failed.append(f"{entry.url} was not asked")
        else:
            try:
                return self._fetched(self.fetch, entry, target), entry.url
            except Cancelled:
                raise
            except StoreError as error:
                failed.append(error.message)
        return None, "; ".join(failed)

    def _fetched(self, fetch: Fetch, entry: FileEntry, target: Path) -> Taken:
        part = target.with_name(f"fetched-{target.name}"[:255])
        fetch(entry.url, str(entry.sha256), part, self.work)
        descriptor = intake.open_source(part)
        try:
            taken = intake.copy(descriptor, part, target, self.work)
        finally:
            os.close(descriptor)
            part.unlink()
        if taken.sha256 != entry.sha256:
            target.unlink()
            raise Corrupt(f"{entry.url} has other bytes now: sha256 {taken.sha256.short}")
        candidates.read_header(target, target.name)
        return taken

    def _quarantined(self, trouble: Trouble) -> Cure:
        version = self.library.version(trouble.name, trouble.version)
        variant = trouble.variant or None
        mark = version.mark if variant is None else version.marks.get(variant)
        if mark is None:
            return Cure(trouble, True, "out of quarantine")
        if mark.cause == "bytes":
            quarantine.release(self.library, version.name, version.number, variant, self.work)
            return Cure(trouble, True, "its files are the manifest's again; out of quarantine")
        return Cure(
            trouble,
            False,
            "its files are as they were imported; import a better version, or hxctl model rm "
            f"{version}",
        )

    def _labels(self, trouble: Trouble) -> Cure:
        """A labelled version is never removed, so one that is not there was lost. Where it can't
        be had again: to the highest version that is not in quarantine, else to the highest."""
        library, name = self.library, ModelName(trouble.name)
        if trouble.kind is Kind.LABEL and trouble.version not in library.versions(name):
            came = self._bring_version(name, trouble.version)
            if came:
                return Cure(trouble, True, f"{name}@{trouble.version} is back: {came}")
        with library.writing:
            there = library.versions(name)
            good = [one for one in there if not library.version(name, one).quarantined]
            best = max(good or there, default=None)
            if trouble.kind is Kind.LABEL:
                known = library.labels(name)
            else:
                self._impound(self._path(trouble), trouble)
                known = {STABLE: 0}
            moved = [label for label, at in known.items() if at not in there]
            kept = {label: at for label, at in known.items() if at in there}
            if best is not None:
                kept |= dict.fromkeys(moved, best)
            library.save_labels(name, kept)
        words = ", ".join(str(label) for label in moved)
        if not moved:
            return Cure(trouble, True, "mended with the others")
        if best is None:
            return Cure(trouble, True, f"{words}: removed, since {name} has no version")
        return Cure(trouble, True, f"{words} of {name}: now at {best}; hxctl label moves it")

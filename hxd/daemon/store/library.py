"""The store as its only writer sees it: versions come in whole, and labels change in one step.

A crash at any moment leaves every version as it was or not there: what is written becomes a version
by one rename, and stops being one by another (`removal`, `quarantine.impound`). Digests protect
against bytes that changed by themselves or by mistake; whoever may write manifests is trusted.

`stage` and `derived` bring the files of a version into a workspace, `integrity` judges what is
there, before a load too.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from hxd.config import durable
from hxd.daemon.store import disk, intake
from hxd.daemon.store import labels as labelling
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.digests import Digests
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Conflict, Corrupt, NotThere, StoreError
from hxd.daemon.store.intake import Taken
from hxd.daemon.store.journal import FILE as JOURNAL
from hxd.daemon.store.journal import Journal
from hxd.daemon.store.labels import STABLE, Labels
from hxd.daemon.store.lockfile import locked
from hxd.daemon.store.manifest import Manifest
from hxd.daemon.store.reference import Label, ModelName
from hxd.daemon.store.shelf import GOLDEN, MAX_GOLDEN, Shelf, numbered
from hxd.daemon.store.unseeded import FILE as UNSEEDED
from hxd.daemon.store.unseeded import Unseeded
from hxd.daemon.store.version import VARIANTS, Version
from hxd.daemon.store.workspaces import PULL, Workspaces

log = logging.getLogger("hxd.store")

WORKSPACES = "tmp"
QUARANTINE = "quarantine"
DIGESTS = "digests.json"


class Library(Shelf):
    """One process at a time (`lock`), any of its threads. Everything here blocks."""

    def __init__(self, root: Path, wall: Callable[[], float] = time.time) -> None:
        super().__init__(root)
        self.wall = wall
        self.workspaces = Workspaces(root / WORKSPACES, wall)
        self.digests = Digests(root / DIGESTS, root / WORKSPACES, wall)
        # Whoever changes what others may see holds it, and for no longer than renames take.
        self.writing = threading.RLock()
        # Of a drill: what is read of a file when it is to be loaded, in its place.
        self.stand_ins: dict[Path, Path] = {}
        self._journal = Journal(root / JOURNAL, root / WORKSPACES)
        self.unseeded = Unseeded(root / UNSEEDED, root / WORKSPACES)

    # Life

    def lock(self) -> AbstractContextManager[None]:
        """Keeps other processes from writing; raises `Conflict` naming the one that does."""
        return locked(self.root, "ask the daemon, or stop it first (systemctl stop hxd)")

    def prepare(self) -> None:
        """At every start, since the last exit may have been a crash: folders, leftovers, what was
        half published, the built-in demo model. The demo comes last: where it can't be written,
        the error says so and the rest is done."""
        # Here, since they work through this class.
        from hxd.daemon.store.quarantine import sweep
        from hxd.daemon.store.seed import seed

        with guarded("prepare the store"), self.writing:
            for folder in (self.models, self.workspaces.folder / PULL, self.root / QUARANTINE):
                disk.make_folder(folder)
            for path in self.workspaces.leftovers(parts=True):
                disk.delete(path)
            sweep(self)
            try:
                self._finish_publication()
            except OSError as error:
                # On a full disk, perhaps. What serves needs none of it; the next change does it.
                log.error("%s", disk.broken("finish what was half published", error))
        seed(self)

    def workspace(self, purpose: str) -> Path:
        """A fresh folder on the store's file system; give it to `drop` when done."""
        return self.workspaces.make(purpose)

    def drop(self, workspace: Path) -> None:
        """A workspace and what is left in it; gone already is as good."""
        self.workspaces.drop(workspace)

    # Coming in

    def enter(
        self,
        folder: Path,
        manifest: Manifest,
        taken: Sequence[Taken],
        *,
        labels: Sequence[Label] = (),
        golden: bytes | None = None,
        moves: bool = False,
    ) -> Version:
        """A workspace with synced files becomes the version that the manifest says, with its
        labels, or nothing has changed. Raises `Conflict` where it is there."""
        name, number = manifest.name, manifest.version
        target = self.folder(name) / str(number)
        with guarded(f"publish {name}@{number}"), self.writing:
            self._finish_publication()
            if os.path.lexists(target):
                raise Conflict(f"{name}@{number} is there already; hxctl model verify {name}")
            if labels:
                labelling.check_count({*self.labelled(name).labels, *labels})
            if labels or golden is not None:
                self._journal.begin(name, number, labels, golden)
            try:
                self._settle(folder, target, manifest)
                self._finish_publication()
            except BaseException:
                self._take_back(target, folder, manifest)
                raise
            version = self.version(name, number)
        self._remember(taken, moves)
        return version

    def enter_variant(
        self, folder: Path, manifest: Manifest, taken: Sequence[Taken], *, moves: bool = False
    ) -> Version:
        """A workspace with a synced file becomes a derived variant of the manifest's version."""
        (kind,) = manifest.variants()
        name, number = manifest.name, manifest.version
        with guarded(f"add {kind} to {name}@{number}"), self.writing:
            parent = self.version(name, number)
            target = parent.folder / VARIANTS / kind
            if kind in parent.variants() or os.path.lexists(target):
                raise Conflict(
                    f"{parent} has a variant {kind} already; hxctl model rm {name}:{kind}@{number} "
                    "removes it"
                )
            self._settle(folder, target, manifest)
            version = self.version(name, number)
        self._remember(taken, moves)
        return version

    def put_file(self, file: Path, taken: Taken) -> None:
        """A file of a version is replaced, in one step, by one from a workspace. The caller knows
        that its digest is the manifest's."""
        with guarded(f"replace {file}"), self.writing:
            taken.path.replace(file)
            durable.sync(file.parent)
        self._remember([taken], moves=False)

    def set_golden(self, name: str, data: bytes) -> None:
        """The model's golden prompts, in whatever form their reader wants."""
        model = ModelName(name)
        check_golden(data)
        with guarded(f"write the golden prompts of {model}"), self.writing:
            self._finish_publication()
            if not self.versions(model):
                raise self.unknown(model)
            disk.write_atomic(self.folder(model) / GOLDEN, data, self.workspaces.folder)

    # Labels

    def set_label(self, name: str, label: str, number: int | None) -> None:
        """Points the label at a version, or removes it with None."""
        model, word = ModelName(name), Label(label)
        with guarded(f"label {model}"), self.writing:
            self._finish_publication()
            known = self.labelled(model)
            if number is not None:
                version = self.version(model, number)
                if version.quarantined:
                    raise Conflict(
                        f"{version} is in quarantine: {version.quarantined}. hxctl model doctor "
                        "says more"
                    )
                self.save_labels(model, {**known.labels, word: number})
            elif word not in known.labels:
                raise NotThere(f"{model} has no label {word}", param="label")
            elif word == STABLE:
                raise Conflict(
                    f"stable can't be removed; hxctl label {model} stable VERSION moves it"
                )
            else:
                rest = {one: at for one, at in known.labels.items() if one != word}
                self.save_labels(model, rest)

    def save_labels(self, name: ModelName, labels: Mapping[str, int], next: int = 1) -> None:
        """All of them at once. The number of the next version never goes down."""
        known = None
        with contextlib.suppress(Corrupt):  # Replacing it is what mends it.
            known = self.labelled(name)
            next = max(next, known.next)
        saved = Labels(max(next, self.next_number(name, Labels())), dict(labels))
        file = self.folder(name) / labelling.FILE
        if saved == known and file.exists():
            return
        disk.write_atomic(file, labelling.write(saved), self.workspaces.folder)

    def next_number(self, name: ModelName, labels: Labels) -> int:
        """Of the model's next version, with the labels that it has or is to have."""
        return max([labels.next, *(one + 1 for one in numbered(self.folder(name)))])

    # Parts

    def today(self) -> str:
        """The ISO time, in UTC."""
        now = datetime.datetime.fromtimestamp(self.wall(), datetime.UTC)
        return now.isoformat(timespec="seconds").replace("+00:00", "Z")

    def _settle(self, folder: Path, target: Path, manifest: Manifest) -> None:
        """The rename that makes a version or variant of a workspace."""
        file = folder / manifests.FILE
        file.unlink(missing_ok=True)
        disk.write_new(file, manifests.write(manifest))
        durable.sync(folder)
        disk.make_folder(target.parent)
        disk.move(folder, target)
        self.workspaces.left(folder)

    def _take_back(self, target: Path, folder: Path, manifest: Manifest) -> None:
        """A version that can't have its labels is a workspace again: who is told that it failed
        may try again, and no later start gives it labels that somebody has moved since."""
        with contextlib.suppress(OSError, StoreError):  # What can't be undone, a start finishes.
            labels = self.labelled(manifest.name).labels
            if manifest.version not in labels.values():
                if os.path.lexists(target):
                    disk.move(target, folder)
                self._journal.done()

    def _finish_publication(self) -> None:
        """Labels and golden prompts of a version whose rename is done. Of one from before a crash,
        before anything else is changed: it came first."""
        half = self._journal.begun()
        if half is None:
            return
        with contextlib.suppress(StoreError):
            name = self.version(half.name, half.version).name
            if half.golden is not None:
                file = self.folder(name) / GOLDEN
                disk.write_atomic(file, half.golden, self.workspaces.folder)
            words = {str(Label(label)): half.version for label in half.labels}
            self.save_labels(name, {**self.labelled(name).labels, **words})
        self._journal.done()

    def _remember(self, taken: Sequence[Taken], moves: bool) -> None:
        """Spares the first load the hashing."""
        found = {one.seen: one.sha256 for one in taken if not moves or one.how == "copy"}
        if moves:
            found |= intake.give_up_sources(taken)
        if found:
            self.digests.remember(found, self.wall())


def check_golden(golden: bytes | None) -> None:
    if golden is not None and len(golden) > MAX_GOLDEN:
        raise StoreError(
            f"{len(golden)} bytes of golden prompts; {MAX_GOLDEN} are possible", param="golden"
        )

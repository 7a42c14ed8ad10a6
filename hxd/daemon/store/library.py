"""The store's only writer: versions come in whole, go whole, and labels change in one step.

A crash at any moment leaves every version as it was or not there: what is written becomes a version
by one rename, and stops being one by another. Digests protect against bytes that changed by
themselves or by mistake; whoever may write manifests is trusted.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from hxd.daemon.store import candidates, demo, disk, findings, intake, quarantine
from hxd.daemon.store import labels as labelling
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.digests import Digests, Seen
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Conflict, Corrupt, NotThere, StoreError
from hxd.daemon.store.findings import Finding, What
from hxd.daemon.store.intake import Take, Taken
from hxd.daemon.store.labels import STABLE, Labels
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.quarantine import Cause, Mark
from hxd.daemon.store.reference import Digest, Label, ModelName, VariantName, shown
from hxd.daemon.store.shelf import GOLDEN, MAX_GOLDEN, Shelf, numbered
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.version import VARIANTS, Version
from hxd.daemon.store.work import Work

WORKSPACES = "tmp"
QUARANTINE = "quarantine"
JOURNAL = "journal.json"
LOCK = "lock"
# Downloads that can be resumed lie here, one folder each; after a week nobody comes back for them.
PULL = "pull"
PULL_KEPT = 7 * 86400


class _Publication(msgspec.Struct, frozen=True):
    """In the journal from before the rename until the labels are set."""

    name: str
    version: int
    labels: tuple[str, ...]
    golden: bytes | None


class Library(Shelf):
    """One process at a time, any of its threads. Everything here blocks."""

    def __init__(self, root: Path, wall: Callable[[], float] = time.time) -> None:
        super().__init__(root)
        self.wall = wall
        self.workspaces = root / WORKSPACES
        self.digests = Digests(root / "digests.json", self.workspaces, wall)
        self._journal = root / JOURNAL
        self._writing = threading.RLock()
        self._live: set[str] = set()

    # Life

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing; raises `Conflict` naming the one that does."""
        with guarded("lock the store"):
            disk.make_folder(self.root)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.root / LOCK, flags, disk.FILE_MODE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise Conflict(
                    f"the store {self.root} is in use by process {owner or 'unknown'}; ask the "
                    "daemon (hxctl without --offline), or stop it first"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """At every start, since the last exit may have been a crash: folders, leftovers, what was
        half published, the built-in demo model. The demo comes last: where it can't be written,
        the error says so and the rest is done."""
        with guarded("prepare the store"), self._writing:
            for folder in (self.models, self.workspaces / PULL, self.root / QUARANTINE):
                disk.make_folder(folder)
            for path in self.leftovers():
                disk.delete(path)
            self._finish_publication()
        self._seed_demo()

    def workspace(self, purpose: str) -> Path:
        """A fresh folder on the store's file system; give it to `drop` when done."""
        VariantName(purpose)
        with guarded("make a workspace"), self._writing:
            disk.make_folder(self.workspaces)
            path = Path(mkdtemp(prefix=f"{purpose}-", dir=self.workspaces))
            self._live.add(path.name)
            return path

    def drop(self, workspace: Path) -> None:
        """A workspace and what is left in it; gone already is as good."""
        with guarded(f"remove {workspace}"):
            if workspace.parent != self.workspaces:
                raise BadName(f"{workspace} is not a workspace of the store")
            disk.delete(workspace)
            self._live.discard(workspace.name)

    def leftovers(self) -> list[Path]:
        """Workspaces that no thread of this process works in, and downloads past their time."""
        with self._writing:
            found = [
                path
                for path in _entries(self.workspaces)
                if path.name not in self._live and path.name != PULL
            ]
            now = self.wall()
            pulls = _entries(self.workspaces / PULL)
            return found + [path for path in pulls if now - _touched(path) > PULL_KEPT]

    # Coming in

    def stage(
        self,
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
    ) -> Stage:
        """Checks headers, then brings the files into a workspace. `urls`, one per file in the order
        given, are where the same bytes can be had again.

        Raises `Corrupt` for files that are not what they claim, `Conflict` where a version has the
        same content, `StoreBroken`."""
        work = work or Work()
        model = ModelName(name)
        if urls and len(urls) != len(files):
            raise StoreError(f"{len(urls)} urls for {len(files)} files")
        found = candidates.check(files)
        kind = VariantName(found.variant if variant is None else variant)
        places = dict(zip([file.resolve() for file in files], urls, strict=False))
        folder = self.workspace("stage")
        try:
            with guarded(f"bring {found.files[0].name} into the store"):
                targets = [folder / one for one in found.names]
                taken = intake.take(list(zip(found.files, targets, strict=True)), take, work)
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
            self._refuse_again(model, tuple(sorted(one.sha256 for one in taken)))
        except BaseException:
            self.drop(folder)
            raise
        return Stage(
            library=self,
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

    def publish(
        self,
        stage: Stage,
        validation: Mapping[str, Any],
        labels: Sequence[str] | None,
        golden: bytes | None,
    ) -> Version:
        """What `Stage.publish` does."""
        name = stage.name
        wanted = None if labels is None else tuple(Label(label) for label in labels)
        _check_golden(golden)
        with guarded(f"publish {name}"), self._writing:
            manifest = Manifest(
                name=name,
                version=1,
                files=stage.entries,
                created=self.today(),
                description=stage.description,
                format="gguf" if stage.format == "gguf" else "ggml",
                origin=stage.origin,
                origin_sha256=stage.origin_sha256,
                validation=dict(validation),
            )
            self._refuse_again(name, manifest.digests)
            known = self.labelled(name)
            number = self._next(name, known)
            if wanted is None:
                wanted = () if self.versions(name) else (STABLE,)
            manifest = msgspec.structs.replace(manifest, version=number)
            version = self._enter(stage.folder, manifest, wanted, golden)
        remembered = {
            one.seen: one.sha256 for one in stage.taken if not stage.moves or one.how == "copy"
        }
        if stage.moves:
            remembered |= intake.give_up_sources(stage.taken)
        self._remember(remembered)
        return version

    def add_variant(
        self,
        version: Version,
        variant: str,
        file: Path,
        *,
        made_by: str,
        validation: Mapping[str, Any] | None = None,
        work: Work | None = None,
    ) -> Version:
        """`file`, which lies in a workspace, becomes a derived variant. Raises `Conflict` where the
        version has one of this name."""
        kind = VariantName(variant)
        if self.workspaces not in file.parents:
            raise BadName(f"{file} is not in a workspace of the store")
        found = candidates.check([file])
        folder = self.workspace("variant")
        try:
            with guarded(f"add {kind} to {version}"):
                target = folder / found.names[0]
                (taken,) = intake.take([(file, target)], "move", work or Work())
            manifest = Manifest(
                name=version.name,
                version=version.number,
                files={target.name: FileEntry(taken.sha256, taken.bytes, kind)},
                created=self.today(),
                format="gguf" if found.format == "gguf" else "ggml",
                origin=f"{version}",
                made_from=version.manifest.digests,
                made_by=made_by,
                validation=dict(validation or {}),
            )
            return self._enter_variant(version, kind, folder, manifest, [taken])
        except BaseException:
            self.drop(folder)
            raise

    def set_golden(self, name: str, data: bytes) -> None:
        """The model's golden prompts, in whatever form their reader wants."""
        model = ModelName(name)
        _check_golden(data)
        with guarded(f"write the golden prompts of {model}"), self._writing:
            if not self.versions(model):
                raise self._unknown(model)
            disk.write_atomic(self.folder(model) / GOLDEN, data, self.workspaces)

    # Labels and removal

    def set_label(self, name: str, label: str, number: int | None) -> None:
        """Points the label at a version, or removes it with None."""
        model, word = ModelName(name), Label(label)
        with guarded(f"label {model}"), self._writing:
            if number is None:
                self._remove_label(model, word)
                return
            version = self.version(model, number)
            if version.quarantined:
                raise Conflict(
                    f"{version} is in quarantine: {version.quarantined}. hxctl model verify "
                    f"{version} and hxctl model doctor say more"
                )
            self._label(model, {word: number})

    def remove(
        self,
        name: str,
        number: int,
        *,
        keep: Collection[int] = (),
        variant: str | None = None,
    ) -> None:
        """A version, or one derived variant of it. `keep`: versions in use. Raises `Conflict` for
        those and for labelled ones."""
        model = ModelName(name)
        with guarded(f"remove {model}@{number}"):
            space = self.workspace("removed")
            try:
                with self._writing:
                    self._move_out(model, number, variant, keep, space)
            finally:
                self.drop(space)

    def remove_model(self, name: str, *, keep: Collection[int] = ()) -> None:
        """All versions with their labels and golden prompts. Raises `Conflict` where one is in
        use."""
        model = ModelName(name)
        numbers = self.versions(model)
        if not numbers:
            raise self._unknown(model)
        if used := sorted(set(numbers) & set(keep)):
            raise Conflict(f"{model}@{used[0]} is in use; take {model} out of the config first")
        with guarded(f"remove {model}"):
            space = self.workspace("removed")
            try:
                with self._writing:
                    self._save_labels(model, Labels(self._next(model, self.labelled(model))))
                    for number in numbers:
                        disk.move(self.folder(model) / str(number), space / str(number))
                    (self.folder(model) / GOLDEN).unlink(missing_ok=True)
            finally:
                self.drop(space)

    # Judging what is there

    def verify(
        self, name: str | None = None, number: int | None = None, work: Work | None = None
    ) -> list[Finding]:
        """Reads every file again, whatever is remembered of it."""
        found: list[Finding] = []
        for one in self.names() if name is None else [name]:
            model = ModelName(one)
            numbers = self.versions(model) if number is None else [number]
            if not numbers:
                raise self._unknown(model)
            for each in numbers:
                try:
                    version = self.version(model, each)
                except Corrupt as error:
                    found.append(Finding(model, each, manifests.FILE, What.MANIFEST, error.message))
                    continue
                with guarded(f"verify {version}"):
                    found += findings.examine(self.tree, self.digests, version, work or Work())
        return found

    def ensure(self, version: Version, variant: str, work: Work | None = None) -> Path:
        """What a loader opens, once every file of the variant is known to be the manifest's.

        Raises `Corrupt` naming the file that is not, `Conflict` for what is in quarantine. A file
        that did not change since it was last hashed is not read again."""
        folder, manifest = version.part(variant)
        with guarded(f"check {version}:{variant}"):
            self._refuse_marked(version, variant)
            for name in manifest.variants()[variant]:
                self._check_file(version, folder / name, manifest.files[name], work or Work())
        return version.files(variant)[0]

    def quarantine(
        self,
        name: str,
        number: int,
        why: str,
        variant: str | None = None,
        *,
        cause: Cause = "behaviour",
    ) -> None:
        """From now on `ensure` refuses it. `cause` is `bytes` where mending the files is enough to
        let it out again; the doctor then does so."""
        with guarded(f"quarantine {shown(name)}@{number}"), self._writing:
            folder = self._marked_folder(name, number, variant)
            mark = Mark(why, self.today(), cause)
            disk.write_atomic(folder / quarantine.FILE, quarantine.write(mark), self.workspaces)

    def release(
        self, name: str, number: int, variant: str | None = None, work: Work | None = None
    ) -> None:
        """Lifts the quarantine; raises `Corrupt` while a file is not the manifest's."""
        below = f"{VARIANTS}/{variant}/" if variant is not None else ""
        wrong = [
            finding
            for finding in self.verify(name, number, work)
            if finding.file.startswith(below) and finding.what is not What.EXTRA
        ]
        if wrong:
            raise Corrupt(
                f"{shown(name)}@{number} stays in quarantine: {wrong[0].file}: {wrong[0].detail}. "
                "Run hxctl model doctor"
            )
        with guarded(f"release {shown(name)}@{number}"), self._writing:
            folder = self._marked_folder(name, number, variant)
            (folder / quarantine.FILE).unlink(missing_ok=True)
            disk.sync_folder(folder)

    # Parts

    def today(self) -> str:
        now = datetime.datetime.fromtimestamp(self.wall(), datetime.UTC)
        return now.isoformat(timespec="seconds").replace("+00:00", "Z")

    def _remember(self, found: dict[Seen, Digest]) -> None:
        if found:
            self.digests.remember(found, self.wall())

    def _next(self, name: ModelName, labels: Labels) -> int:
        return max([labels.next, *(one + 1 for one in numbered(self.folder(name)))])

    def _refuse_again(self, name: ModelName, digests: tuple[str, ...]) -> None:
        for number in self.versions(name):
            try:
                version = self.version(name, number)
            except StoreError:
                continue
            if version.manifest.digests == digests:
                state = f", in quarantine: {version.quarantined}" if version.quarantined else ""
                raise Conflict(
                    f"{version} has the same content{state}; hxctl label {name} LABEL {number} "
                    f"points at it, hxctl model rm {version} removes it"
                )

    def _enter(
        self,
        folder: Path,
        manifest: Manifest,
        labels: Sequence[str],
        golden: bytes | None = None,
    ) -> Version:
        """A workspace with synced files becomes a version. The caller holds the lock."""
        name, number = manifest.name, manifest.version
        target = self.folder(name) / str(number)
        disk.write_new(folder / manifests.FILE, manifests.write(manifest))
        disk.sync_folder(folder)
        disk.make_folder(target.parent)
        if labels or golden is not None:
            words = tuple(str(label) for label in labels)
            half = msgspec.json.encode(_Publication(str(name), number, words, golden))
            disk.write_atomic(self._journal, half, self.workspaces)
        try:
            disk.move(folder, target)
        except BaseException:
            self._journal.unlink(missing_ok=True)
            (folder / manifests.FILE).unlink(missing_ok=True)
            raise
        self._live.discard(folder.name)
        self._finish_publication()
        return self.version(name, number)

    def _finish_publication(self) -> None:
        """Labels and golden prompts of a version whose rename is done."""
        try:
            data = self._journal.read_bytes()
        except FileNotFoundError:
            return
        with contextlib.suppress(msgspec.DecodeError, BadName, NotThere, Corrupt):
            half = msgspec.json.decode(data, type=_Publication)
            name = self.version(half.name, half.version).name
            if half.golden is not None:
                disk.write_atomic(self.folder(name) / GOLDEN, half.golden, self.workspaces)
            self._label(name, {Label(label): half.version for label in half.labels})
        self._journal.unlink()

    def _enter_variant(
        self,
        version: Version,
        kind: VariantName,
        folder: Path,
        manifest: Manifest,
        taken: Iterable[Taken] = (),
    ) -> Version:
        with guarded(f"add {kind} to {version}"), self._writing:
            parent = self.version(version.name, version.number)
            target = parent.folder / VARIANTS / kind
            if kind in parent.variants() or target.exists():
                raise Conflict(
                    f"{parent} has a variant {kind} already; hxctl model rm {parent.name}:{kind}"
                    f"@{parent.number} removes it"
                )
            disk.write_new(folder / manifests.FILE, manifests.write(manifest))
            disk.sync_folder(folder)
            disk.make_folder(target.parent)
            disk.move(folder, target)
            self._live.discard(folder.name)
            result = self.version(version.name, version.number)
        self._remember(intake.give_up_sources(list(taken)))
        return result

    def _label(self, name: ModelName, changes: Mapping[str, int]) -> None:
        known = self.labelled(name)
        self._save_labels(name, Labels(self._next(name, known), {**known.labels, **dict(changes)}))

    def _save_labels(self, name: ModelName, labels: Labels) -> None:
        file = self.folder(name) / labelling.FILE
        disk.write_atomic(file, labelling.write(labels), self.workspaces)

    def _remove_label(self, name: ModelName, label: Label) -> None:
        known = self.labelled(name)
        if label not in known.labels:
            raise NotThere(f"{name} has no label {label}", param="label")
        if label == STABLE:
            raise Conflict(f"stable can't be removed; hxctl label {name} stable VERSION moves it")
        rest = {word: number for word, number in known.labels.items() if word != label}
        self._save_labels(name, Labels(self._next(name, known), rest))

    def _move_out(
        self,
        name: ModelName,
        number: int,
        variant: str | None,
        keep: Collection[int],
        space: Path,
    ) -> None:
        version = self.version(name, number)
        if variant is not None:
            folder, _ = version.part(variant)
            if folder == version.folder:
                raise Conflict(f"{variant} is what was imported; hxctl model rm {version}")
            disk.move(folder, space / variant)
            return
        known = self.labelled(name)
        pointing = sorted(label for label, at in known.labels.items() if at == number)
        if pointing:
            raise Conflict(
                f"{version} is labelled {', '.join(pointing)}; hxctl label {name} {pointing[0]} "
                "VERSION moves the label first"
            )
        if number in keep:
            raise Conflict(
                f"{version} is in use; hxctl swap {name} VERSION first, or take it out of the "
                "config"
            )
        if known.next <= number:
            self._save_labels(name, Labels(self._next(name, known), known.labels))
        disk.move(version.folder, space / str(number))

    def _refuse_marked(self, version: Version, variant: str) -> None:
        """By the disk, not by what was read earlier."""
        now = self.version(version.name, version.number)
        mark = now.mark or now.marks.get(variant)
        if mark is not None:
            raise Conflict(
                f"{version}:{variant} is in quarantine: {mark}. Run hxctl model doctor, or import "
                "another version"
            )

    def _check_file(self, version: Version, path: Path, entry: FileEntry, work: Work) -> None:
        mend = f"{version} is not loaded; run hxctl model doctor"
        try:
            descriptor = self.tree.open(path)
        except FileNotFoundError:
            raise Corrupt(f"{path} is missing. {mend}") from None
        try:
            size = os.fstat(descriptor).st_size
            if size != entry.bytes:
                raise Corrupt(f"{path} has {size} bytes, the manifest says {entry.bytes}. {mend}")
            digest = self.digests.of(descriptor, path.name, work)
        finally:
            os.close(descriptor)
        if digest != entry.sha256:
            raise Corrupt(
                f"{path} is corrupted: its sha256 is {digest.short}, the manifest says "
                f"{entry.sha256.short}. {mend}"
            )

    def _marked_folder(self, name: str, number: int, variant: str | None) -> Path:
        version = self.version(name, number)
        return version.folder if variant is None else version.part(variant)[0]

    def _seed_demo(self) -> None:
        name = ModelName(demo.NAME)
        for source in sorted(demo.folder().glob("[0-9]*/manifest.toml")):
            target = self.folder(name) / source.parent.name
            if not (target / manifests.FILE).exists():
                self._copy_demo(name, source, target)
        with guarded("label the demo model"), self._writing:
            if not (self.folder(name) / labelling.FILE).exists():
                self._label(name, {STABLE: demo.STABLE})

    def _copy_demo(self, name: ModelName, source: Path, target: Path) -> None:
        """Copied and never linked: what happens to the store must not happen to the package."""
        folder = self.workspace("demo")
        try:
            with guarded("put the demo model into the store"), self._writing:
                manifest = manifests.read(source.read_bytes(), str(source))
                files = [(source.parent / one, folder / one) for one in manifest.files]
                taken = intake.take(files, "copy", Work())
                for one in taken:
                    if one.sha256 != manifest.files[one.path.name].sha256:
                        raise Corrupt(f"{one.source} is corrupted; install hxd again")
                disk.delete(target)
                origin = f"builtin:demo@{manifest.version}"
                self._enter(folder, msgspec.structs.replace(manifest, origin=origin), ())
        except BaseException:
            self.drop(folder)
            raise
        self._remember({one.seen: one.sha256 for one in taken})


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _touched(path: Path) -> float:
    """Seconds since the epoch when it, or a file right in it, was last written."""
    below = _entries(path) if not path.is_symlink() else []
    return max(one.lstat().st_mtime for one in (path, *below))


def _check_golden(golden: bytes | None) -> None:
    if golden is not None and len(golden) > MAX_GOLDEN:
        raise StoreError(
            f"{len(golden)} bytes of golden prompts; {MAX_GOLDEN} are possible", param="golden"
        )

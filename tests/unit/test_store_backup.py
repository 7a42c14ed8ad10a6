"""Backups hold each file once, are believed only as far as they can be checked, and bring back what
was lost and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.daemon.store import quarantine, removal
from hxd.daemon.store import snapshots as tables
from hxd.daemon.store.backup import backup, restore, snapshots
from hxd.daemon.store.derived import add_variant
from hxd.daemon.store.doctor import examine, mend
from hxd.daemon.store.faults import (
    BadName,
    Cancelled,
    Conflict,
    Corrupt,
    NotThere,
    StoreBroken,
    StoreError,
)
from hxd.daemon.store.integrity import verify
from hxd.daemon.store.library import Library
from hxd.daemon.store.lockfile import locked
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.work import Work
from tests import tiny
from tests.bad_sector import unreadable

Edit = Callable[[str], str]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """`org/m` with two versions, a variant, labels and golden prompts."""
    library = Library(tmp_path / "store")
    for seed in (1, 2):
        with Stage.of(library, [tiny.write(tmp_path / "m.gguf", seed)], "org/m") as stage:
            stage.publish({"passed": True}, golden=b"\xffgolden")
        (tmp_path / "m.gguf").unlink()
    library.set_label("org/m", "canary", 2)
    space = library.workspace("quantize")
    file = tiny.write(space / "q.gguf", 9, file_type=2)
    add_variant(library, library.version("org/m", 1), "q4_0", file, made_by="x")
    library.drop(space)
    return library


def content(library: Library) -> dict[str, bytes]:
    """Everything that matters below `org/m`."""
    folder = library.models / "org"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def objects(target: Path) -> list[Path]:
    return sorted(path for path in (target / "objects").rglob("*") if path.is_file())


def test_a_second_backup_copies_only_what_is_new(library: Library, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    first = backup(library, target, names=["org/m"])
    assert (first.copied, first.kept, first.problems) == (3, 0, [])
    assert first.versions == ["org/m@1", "org/m@2"]
    with Stage.of(library, [tiny.write(tmp_path / "n.gguf", 3)], "org/m") as stage:
        stage.publish({})
    second = backup(library, target, names=["org/m"])
    assert (second.copied, second.kept) == (1, 3)
    listed = snapshots(target)
    assert [one.id for one in listed] == [first.snapshot, second.snapshot]
    assert listed[1].versions == ("org/m@1", "org/m@2", "org/m@3") and listed[1].fault is None
    assert [file.stat().st_nlink for file in objects(target)] == [1] * 4


def test_what_rotted_in_a_backup_is_found_by_verify_and_replaced(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    whole = backup(library, target)
    rotten, bad, *_ = sorted(objects(target))
    good = rotten.read_bytes()
    rotten.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert (backup(library, target).kept, rotten.read_bytes() == good) == (whole.copied, False)
    unreadable(monkeypatch, [bad])
    again = backup(library, target, verify=True)
    assert (again.copied, again.replaced, again.problems) == (2, 2, [])
    assert again.kept == whole.copied - 2
    assert rotten.read_bytes() == good
    assert backup(library, target, verify=True).copied == 0


def test_a_lost_model_comes_back_as_it_was(library: Library, tmp_path: Path) -> None:
    before = content(library)
    quarantine.impose(library, "org/m", 2, "crashes")
    backup(library, tmp_path / "backup")
    shutil.rmtree(library.models / "org")
    done = restore(library, tmp_path / "backup")
    assert done.versions == ["org/m@1", "org/m@2"] and done.variants == ["org/m@1:q4_0"]
    assert library.version("org/m", 2).mark is not None
    (library.models / "org/m/2/quarantined.toml").unlink()
    assert content(library) == before
    assert verify(library) == []


def test_a_second_restore_changes_nothing(library: Library, tmp_path: Path) -> None:
    backup(library, tmp_path / "backup")
    before = content(library)
    done = restore(library, tmp_path / "backup")
    assert done.kept == ["org/m@1: whole", "org/m@2: whole"]
    assert not (done.versions or done.variants or done.files or done.labels)
    assert content(library) == before


def test_only_damaged_files_are_replaced_and_whole_versions_kept(
    library: Library, tmp_path: Path
) -> None:
    before = content(library)
    backup(library, tmp_path / "backup")
    tiny.flip(library.version("org/m", 2).files("f16")[0])
    library.version("org/m", 1).files("q4_0")[0].unlink()
    done = restore(library, tmp_path / "backup", names=["org/m"])
    assert done.files == ["org/m@1/q.gguf", "org/m@2/m.gguf"] and not done.versions
    assert content(library) == before


def test_a_version_that_the_disk_does_not_give_is_left_out_and_reported(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(monkeypatch, library.version("org/m", 1).files("f16"))
    done = backup(library, tmp_path / "backup")
    assert done.versions == ["org/m@2"]
    (problem,) = done.problems
    assert "m.gguf can't be read: Input/output error; run hxctl model doctor" in problem


def test_what_was_in_quarantine_for_its_bytes_comes_out_with_good_ones(
    library: Library, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    backup(library, target)
    tiny.flip(library.version("org/m", 2).files("f16")[0])
    assert not all(cure.done for cure in mend(library, examine(library)))
    assert library.version("org/m", 2).quarantined
    # Its object is in the backup already, and good.
    assert backup(library, target).problems == []
    other = Library(tmp_path / "other")
    restore(other, target)
    assert other.version("org/m", 2).mark is None
    restore(library, target)
    assert library.version("org/m", 2).mark is None and verify(library, "org/m") == []


def test_what_was_in_quarantine_for_its_behaviour_stays_so(
    library: Library, tmp_path: Path
) -> None:
    quarantine.impose(library, "org/m", 1, "answers nonsense", "q4_0")
    quarantine.impose(library, "org/m", 2, "crashes")
    backup(library, tmp_path / "backup")
    other = Library(tmp_path / "other")
    restore(other, tmp_path / "backup")
    assert [str(mark.why) for mark in other.version("org/m", 1).marks.values()] == [
        "answers nonsense"
    ]
    found = other.version("org/m", 2).mark
    assert found is not None and (found.why, found.cause) == ("crashes", "behaviour")


def test_a_folder_that_is_a_link_to_itself_is_told(library: Library, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for act in (
        lambda: backup(library, tmp_path / "loop"),
        lambda: restore(library, tmp_path / "loop"),
        lambda: snapshots(tmp_path / "loop"),
        lambda: mend(library, [], backup=tmp_path / "loop"),
    ):
        with pytest.raises(BadName, match="leads nowhere"):
            act()


def test_a_version_with_another_content_is_never_replaced(library: Library, tmp_path: Path) -> None:
    backup(library, tmp_path / "backup")
    shutil.rmtree(library.models / "org")
    with Stage.of(library, [tiny.write(tmp_path / "m.gguf", 77)], "org/m") as stage:
        stage.publish({})
    done = restore(library, tmp_path / "backup", names=["org/m"])
    assert done.kept == ["org/m@1: it has another content than the backup's"]
    assert done.versions == ["org/m@2"]
    assert library.version("org/m", 1).manifest.files["m.gguf"].bytes
    assert verify(library, "org/m") == []


def test_a_version_whose_manifest_is_lost_is_replaced_and_kept_aside(
    library: Library, tmp_path: Path
) -> None:
    before = content(library)
    backup(library, tmp_path / "backup")
    (library.models / "org/m/2/manifest.toml").write_text("nonsense")
    assert restore(library, tmp_path / "backup").versions == ["org/m@2"]
    assert content(library) == before
    assert [path.name for path in (library.root / "quarantine").rglob("was-*")] == ["was-2"]


def test_labels_are_set_where_they_are_missing_or_on_request(
    library: Library, tmp_path: Path
) -> None:
    backup(library, tmp_path / "backup")
    library.set_label("org/m", "stable", 2)
    library.set_label("org/m", "canary", None)
    library.set_golden("org/m", b"newer")
    assert restore(library, tmp_path / "backup").labels == ["org/m@canary = 2"]
    assert library.labels("org/m") == {"stable": 2, "canary": 2}
    assert library.golden("org/m") == b"newer"
    restore(library, tmp_path / "backup", labels=True)
    assert library.labels("org/m") == {"stable": 1, "canary": 2}
    assert library.golden("org/m") == b"\xffgolden"


def test_an_older_snapshot_can_be_named(library: Library, tmp_path: Path) -> None:
    first = backup(library, tmp_path / "backup", names=["org/m"])
    removal.remove_model(library, "org/m")
    backup(library, tmp_path / "backup")
    with pytest.raises(NotThere, match="no model org/m in the snapshot"):
        restore(library, tmp_path / "backup", names=["org/m"])
    with pytest.raises(NotThere, match="no snapshot"):
        restore(library, tmp_path / "backup", snapshot="../../etc/passwd")
    restore(library, tmp_path / "backup", snapshot=first.snapshot)
    assert library.versions("org/m") == [1, 2]
    with Stage.of(library, [tiny.write(tmp_path / "m.gguf", 5)], "org/m") as stage:
        assert stage.publish({}).number == 3


def test_a_damaged_version_is_not_backed_up_and_the_others_are(
    library: Library, tmp_path: Path
) -> None:
    tiny.flip(library.version("org/m", 2).files("f16")[0])
    done = backup(library, tmp_path / "backup", names=["org/m"])
    assert done.versions == ["org/m@1"]
    assert len(done.problems) == 1 and "corrupted" in done.problems[0]
    assert tables.load(tmp_path / "backup").models["org/m"].labels == {"stable": 1}


def test_where_a_backup_may_not_lie(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="in the store itself"):
        backup(library, library.root / "backup")
    with pytest.raises(NotThere, match="no backup in"):
        restore(library, tmp_path / "none")
    with pytest.raises(StoreError):
        backup(library, tmp_path / "backup", names=["nobody"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreBroken):
        backup(library, tmp_path / "file")


def test_two_backups_at_once_do_not_meet(library: Library, tmp_path: Path) -> None:
    with locked(tmp_path / "backup", "wait"), pytest.raises(Conflict, match="wait for it"):
        backup(library, tmp_path / "backup")


def test_a_backup_that_was_stopped_is_none_and_the_next_completes_it(
    library: Library, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    work = Work(lambda *_: work.stop() if len(objects(target)) == 1 else None)
    with pytest.raises(Cancelled):
        backup(library, target, work, names=["org/m"])
    assert snapshots(target) == [] and len(objects(target)) == 1
    done = backup(library, target, names=["org/m"])
    assert (done.copied, done.kept) == (2, 1)
    assert sorted(path.name for path in target.iterdir()) == [
        ".hxd-unfinished",
        "lock",
        "objects",
        "snapshots",
    ]
    assert list((target / ".hxd-unfinished").iterdir()) == []


def test_what_else_lies_in_the_folder_stays_and_links_in_it_are_not_followed(
    library: Library, tmp_path: Path
) -> None:
    target = tmp_path / "disk"
    (target / "tmp").mkdir(parents=True)
    (target / "tmp/mine").write_text("x")
    backup(library, target, names=["org/m"])
    assert (target / "tmp/mine").read_text() == "x"
    shutil.rmtree(target / "objects")
    (target / "objects").symlink_to(tmp_path)
    with pytest.raises(Conflict, match="symbolic link"):
        backup(library, target, names=["org/m"])


HOSTILE: dict[str, Edit] = {
    "a model's name": lambda text: text.replace('"org/m"', '"../../m"'),
    "a model of another name": lambda text: text.replace('name = "org/m"', 'name = "x"', 1),
    "a file's name": lambda text: text.replace('"m.gguf"', '"../../../m.gguf"'),
    "a file's name is absolute": lambda text: text.replace('"m.gguf"', '"/etc/passwd"'),
    "a digest": lambda text: text.replace('sha256 = "', 'sha256 = "../'),
    "an upper-case digest": lambda text: text.replace('sha256 = "', 'sha256 = "A'),
    "a variant's name": lambda text: text.replace("q4_0", "../q4_0"),
    "a variant of something else": lambda text: text.replace("q4_0", "f16"),
    "a version": lambda text: text.replace("version = 2", "version = 2000000000"),
    "a version twice": lambda text: text.replace("version = 2", "version = 1"),
    "a label": lambda text: text.replace("canary =", '"../x" ='),
    "a label that points nowhere": lambda text: text.replace("canary = 2", "canary = 7"),
    "the next number": lambda text: text.replace("next = 3", "next = -1"),
    "golden prompts": lambda text: text.replace('golden = "', 'golden = "!'),
    "an unknown key": lambda text: text.replace("next =", "run = 1\nnext ="),
    "another format": lambda text: text.replace("hxd_backup = 1", "hxd_backup = 2"),
    "no TOML": lambda text: text + "[[[",
    "depth": lambda text: text + "x = " + "[" * 5000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_snapshot_is_refused_whole(library: Library, tmp_path: Path, what: str) -> None:
    done = backup(library, tmp_path / "backup", names=["org/m"])
    file = tmp_path / f"backup/snapshots/{done.snapshot}.toml"
    text = file.read_text()
    edited = HOSTILE[what](text)
    assert edited != text
    file.write_text(edited)
    shutil.rmtree(library.models / "org")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((Corrupt, BadName)):
        restore(library, tmp_path / "backup")
    assert sorted(tmp_path.rglob("*")) == before
    assert snapshots(tmp_path / "backup")[0].fault


def swap_for_link(path: Path) -> None:
    content = path.with_name("aside")
    path.rename(content)
    path.symlink_to(content)


def swap_folder_for_link(path: Path) -> None:
    path.parent.rename(path.parents[1] / "aside")
    path.parent.symlink_to("aside")


BAD_OBJECTS: dict[str, Callable[[Path], object]] = {
    "flipped": tiny.flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": Path.unlink,
    "a link": swap_for_link,
    "below a link": swap_folder_for_link,
}


@pytest.mark.parametrize("what", BAD_OBJECTS)
def test_one_bad_object_and_nothing_is_restored(
    library: Library, tmp_path: Path, what: str
) -> None:
    backup(library, tmp_path / "backup", names=["org/m"])
    entry = library.version("org/m", 2).manifest.files["m.gguf"]
    BAD_OBJECTS[what](tables.object_path(tmp_path / "backup", entry.sha256))
    shutil.rmtree(library.models / "org")
    before = sorted(library.root.rglob("*"))
    with pytest.raises((Corrupt, NotThere)):
        restore(library, tmp_path / "backup")
    assert sorted(library.root.rglob("*")) == before


def test_an_object_that_is_no_model_is_not_restored_though_its_digest_is_right(
    library: Library, tmp_path: Path
) -> None:
    done = backup(library, tmp_path / "backup", names=["org/m"])
    data = b"\x80\x04 a pickle"
    digest = hashlib.sha256(data).hexdigest()
    place = tmp_path / f"backup/objects/{digest[:2]}/{digest}"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    file = tmp_path / f"backup/snapshots/{done.snapshot}.toml"
    entry = library.version("org/m", 2).manifest.files["m.gguf"]
    text = file.read_text().replace(entry.sha256, digest)
    file.write_text(text.replace(f"bytes = {entry.bytes}", f"bytes = {len(data)}"))
    shutil.rmtree(library.models / "org")
    with pytest.raises(Corrupt):
        restore(library, tmp_path / "backup")
    assert library.names() == []

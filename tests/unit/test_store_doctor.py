"""Whatever ails a store is found, mended where good bytes can be had, and said where not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.daemon.store import quarantine
from hxd.daemon.store.backup import backup
from hxd.daemon.store.derived import add_variant
from hxd.daemon.store.doctor import Cure, Kind, Trouble, examine, mend
from hxd.daemon.store.faults import Conflict, SourceFailed
from hxd.daemon.store.integrity import ensure, verify
from hxd.daemon.store.library import Library
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.work import Work
from tests import tiny
from tests.bad_sector import unreadable

MANY = 7


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """`org/m` with two versions, the first with a variant; `stable` at the first."""
    library = Library(tmp_path / "store")
    for seed in (1, 2):
        source = tiny.write(tmp_path / "m.gguf", seed)
        url = f"https://example.org/{seed}"
        with Stage.of(library, [source], "org/m", urls=[url]) as stage:
            stage.publish({})
        source.unlink()
    space = library.workspace("quantize")
    file = tiny.write(space / "q.gguf", 9, file_type=2)
    add_variant(library, library.version("org/m", 1), "q4_0", file, made_by="x")
    library.drop(space)
    return library


def kinds(troubles: list[Trouble]) -> list[str]:
    return [str(trouble.kind) for trouble in troubles]


def healed(library: Library, *, saved: Path | None = None) -> list[Cure]:
    """Mends, and sees to it that only what was said to be incurable is found again."""
    cures = mend(library, examine(library), backup=saved)
    hopeless = {(cure.trouble.name, cure.trouble.version) for cure in cures if not cure.done}
    for trouble in examine(library):
        assert (trouble.name, trouble.version) in hopeless, trouble
    assert [cure.done for cure in mend(library, examine(library), backup=saved)] == [
        False for _ in examine(library)
    ]
    return cures


def test_a_whole_store_has_no_troubles(library: Library) -> None:
    assert examine(library) == [] and mend(library, []) == []


def test_a_flipped_byte_comes_back_from_the_backup(library: Library, tmp_path: Path) -> None:
    backup(library, tmp_path / "backup")
    version = library.version("org/m", 2)
    tiny.flip(version.files("f16")[0])
    (cure,) = healed(library, saved=tmp_path / "backup")
    assert cure.done and "from the backup" in cure.what
    assert verify(library) == [] and ensure(library, version, "f16")
    assert len(list((library.root / "quarantine").rglob("was-m.gguf"))) == 1


def test_the_built_in_model_mends_itself_without_a_backup(library: Library) -> None:
    library.prepare()
    tiny.flip(library.version("hxd-demo", 2).files("f16")[0])
    (library.models / "hxd-demo/1/manifest.toml").unlink()
    cures = healed(library)
    assert [cure.done for cure in cures] == [True, True]
    assert "built-in" in cures[0].what and "built-in" in cures[1].what
    assert verify(library) == [] and library.labels("hxd-demo") == {"stable": 2}


def test_a_file_is_fetched_again_and_believed_by_its_digest(library: Library) -> None:
    file = library.version("org/m", 2).files("f16")[0]
    whole = file.read_bytes()
    file.unlink()
    asked: list[str] = []

    def wrong(url: str, sha256: str, into: Path, work: Work) -> None:
        asked.append(url)
        into.write_bytes(whole + b"x")

    def refused(url: str, sha256: str, into: Path, work: Work) -> None:
        raise SourceFailed("the server said 404")

    def right(url: str, sha256: str, into: Path, work: Work) -> None:
        into.write_bytes(whole)

    for fetch, words in ((wrong, "has other bytes now"), (refused, "said 404")):
        cures = mend(library, examine(library), fetch=fetch)
        assert not cures[0].done and words in cures[0].what
    assert asked == ["https://example.org/2"]
    cures = mend(library, examine(library), fetch=right)
    assert [cure.done for cure in cures] == [True, True]
    assert examine(library) == [] and library.version("org/m", 2).mark is None


def test_what_nothing_mends_is_quarantined_and_the_operator_told(library: Library) -> None:
    version = library.version("org/m", 2)
    tiny.flip(version.files("f16")[0])
    (cure,) = healed(library)
    sha256 = version.manifest.files["m.gguf"].sha256
    assert not cure.done and sha256 in cure.what and "hxctl model rm org/m@2" in cure.what
    with pytest.raises(Conflict, match="in quarantine"):
        ensure(library, version, "f16")
    assert ensure(library, library.version("org/m", 1), "f16")


def test_a_mended_version_leaves_quarantine_only_if_its_bytes_were_why(
    library: Library, tmp_path: Path
) -> None:
    backup(library, tmp_path / "backup")
    quarantine.impose(library, "org/m", 1, "crashes workers")
    quarantine.impose(library, "org/m", 2, "rotten", cause="bytes")
    for number in (1, 2):
        tiny.flip(library.version("org/m", number).files("f16")[0])
    cures = healed(library, saved=tmp_path / "backup")
    assert {(cure.trouble.version, str(cure.trouble.kind)): cure.done for cure in cures} == {
        (1, "file"): True,
        (2, "file"): True,
        (1, "quarantined"): False,
        (2, "quarantined"): True,
    }
    assert library.version("org/m", 1).mark and not library.version("org/m", 2).mark


def test_a_variant_that_is_lost_is_taken_out_and_can_be_made_again(library: Library) -> None:
    tiny.flip(library.version("org/m", 1).files("q4_0")[0])
    (cure,) = healed(library)
    assert cure.done and "hxctl model quantize org/m@1 q4_0" in cure.what
    assert list(library.version("org/m", 1).variants()) == ["f16"]


def test_a_variant_of_another_parent_is_taken_out(library: Library) -> None:
    shutil.copytree(library.models / "org/m/1/variants", library.models / "org/m/2/variants")
    assert kinds(examine(library)) == ["variant"]
    (cure,) = healed(library)
    assert cure.done


def test_labels_leave_versions_that_are_gone(library: Library, tmp_path: Path) -> None:
    library.set_label("org/m", "canary", 2)
    (library.models / "org/m/2/manifest.toml").write_bytes(b"\0")
    cures = healed(library)
    assert [str(cure.trouble.kind) for cure in cures] == ["manifest", "label"]
    assert not cures[0].done and "what was left is in" in cures[0].what
    assert cures[1].done and "canary of org/m: now at 1" in cures[1].what
    assert library.labels("org/m") == {"stable": 1, "canary": 1}
    shutil.rmtree(library.models / "org/m/1")
    assert all(cure.done for cure in healed(library)) and library.labels("org/m") == {}


def test_a_file_that_the_backup_can_not_give_is_asked_for_elsewhere(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(library, tmp_path / "backup")
    good = library.version("org/m", 2).files("f16")[0]
    data = good.read_bytes()
    sha256 = library.version("org/m", 2).manifest.files["m.gguf"].sha256
    tiny.flip(good)
    unreadable(monkeypatch, [tmp_path / "backup/objects" / sha256[:2] / sha256])

    def fetch(url: str, sha256: str, target: Path, work: Work) -> None:
        target.write_bytes(data)

    (cure,) = mend(library, examine(library), backup=tmp_path / "backup", fetch=fetch)
    assert cure.done and good.read_bytes() == data


def test_a_version_that_is_removed_meanwhile_does_not_come_back(
    library: Library, tmp_path: Path
) -> None:
    backup(library, tmp_path / "backup")
    (library.models / "org/m/2/manifest.toml").unlink()
    troubles = examine(library)
    shutil.rmtree(library.models / "org/m/2")
    (cure,) = mend(library, troubles, backup=tmp_path / "backup")
    assert (cure.done, cure.what) == (True, "gone") and library.versions("org/m") == [1]


def test_a_version_without_a_manifest_comes_back_from_the_backup(
    library: Library, tmp_path: Path
) -> None:
    backup(library, tmp_path / "backup")
    (library.models / "org/m/1/manifest.toml").unlink()
    (cure,) = healed(library, saved=tmp_path / "backup")
    assert cure.done and "restored" in cure.what
    assert verify(library) == [] and library.labels("org/m") == {"stable": 1}


def test_a_labelled_version_that_is_gone_comes_back_from_the_backup(
    library: Library, tmp_path: Path
) -> None:
    backup(library, tmp_path / "backup")
    shutil.rmtree(library.models / "org/m/1")
    (cure,) = healed(library, saved=tmp_path / "backup")
    assert cure.done and "org/m@1 is back" in cure.what
    assert library.labels("org/m") == {"stable": 1} and verify(library) == []


def test_an_unreadable_label_file_is_made_anew(library: Library) -> None:
    (library.models / "org/m/labels.toml").write_text("next = 'many'")
    (cure,) = healed(library)
    assert cure.done and library.labels("org/m") == {"stable": 2}


def test_what_does_not_belong_is_taken_out_and_not_deleted(
    library: Library, tmp_path: Path
) -> None:
    (library.models / "stray.txt").write_text("keep me")
    (library.models / "org/m/1/reason.toml").write_text("x")
    (library.models / "evil").symlink_to("/etc")
    (library.models / "org/m/3").symlink_to(tmp_path)
    (library.models / "org/.hidden dir").mkdir(0o700)
    (library.models / "org/m/1/variants/UP").mkdir(0o700)
    cures = healed(library)
    assert len(cures) == 6 and all(cure.done for cure in cures)
    kept = library.root / "quarantine"
    assert [path.read_text() for path in kept.rglob("was-stray.txt")] == ["keep me"]
    assert Path("/etc").is_dir() and verify(library) == []


def test_leftovers_go_and_workspaces_in_use_stay(library: Library) -> None:
    mine = library.workspace("stage")
    (library.workspaces.folder / "stage-old").mkdir()
    (library.workspaces.folder / "file").write_text("x")
    assert kinds(examine(library)) == ["leftover", "leftover"]
    assert all(cure.done for cure in healed(library)) and mine.is_dir()


def test_nonsense_about_digests_is_dropped(library: Library) -> None:
    library.digests.file.write_text("nonsense")
    assert kinds(examine(library)) == ["cache"]
    assert all(cure.done for cure in healed(library))


def test_rights_are_narrowed_but_not_those_of_the_operators_own_file(
    library: Library, tmp_path: Path
) -> None:
    source = tiny.write(tmp_path / "mine.gguf", 5)
    source.chmod(0o666)
    with Stage.of(library, [source], "mine") as stage:
        linked = stage.taken[0].how == "link"
        stage.publish({})
    (library.models / "org").chmod(0o755)
    library.version("org/m", 2).files("f16")[0].chmod(0o666)
    assert set(kinds(examine(library))) == {"mode"}
    assert all(cure.done for cure in healed(library))
    assert (library.models / "org").stat().st_mode & 0o777 == 0o700
    assert source.stat().st_mode & 0o777 == 0o666 or not linked


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_is_given_to_the_stores(library: Library) -> None:
    file = library.version("org/m", 2).files("f16")[0]
    os.chown(file, 12345, 12345)
    assert kinds(examine(library)) == ["owner"]
    assert all(cure.done for cure in healed(library))
    assert file.stat().st_uid == library.root.stat().st_uid


BREAKS: list[Callable[[Library], object]] = [
    lambda one: tiny.flip(one.version("org/m", 1).files("f16")[0]),
    lambda one: one.version("org/m", 2).files("f16")[0].unlink(),
    lambda one: tiny.flip(one.version("org/m", 1).files("q4_0")[0]),
    lambda one: (one.models / "org/m/2/manifest.toml").write_text("["),
    lambda one: (one.models / "org/m/1/variants/q4_0/manifest.toml").unlink(),
    lambda one: (one.models / "org/m/labels.toml").write_text("next = 1\n[labels]\nstable = 9\n"),
    lambda one: (one.models / "org/m/labels.toml").write_text("]"),
    lambda one: (one.models / "org/m/golden.toml").symlink_to("/etc/passwd"),
    lambda one: (one.models / "org/m/7").mkdir(),
]


@pytest.mark.parametrize("seed", range(MANY))
@pytest.mark.parametrize("with_backup", [False, True])
def test_any_two_faults_at_once_are_mended_or_said_and_found_no_second_time(
    library: Library, tmp_path: Path, seed: int, with_backup: bool
) -> None:
    saved = tmp_path / "backup"
    if with_backup:
        backup(library, saved, names=["org/m"])
    first, second = BREAKS[seed % len(BREAKS)], BREAKS[(seed * 7 + 3) % len(BREAKS)]
    second(library)
    if first is not second:
        try:
            first(library)
        except Exception as error:  # The other fault took away what this one would break.
            assert error.__class__.__name__ in ("Corrupt", "NotThere", "KeyError")
    cures = healed(library, saved=saved if with_backup else None)
    assert cures
    for name in library.names():
        assert set(library.labels(name).values()) <= set(library.versions(name))
    if with_backup:
        assert library.versions("org/m") == [1, 2]
        assert all(cure.done for cure in cures if cure.trouble.kind is not Kind.MANIFEST)


def test_records_are_plain_enough_for_json(library: Library) -> None:
    tiny.flip(library.version("org/m", 2).files("f16")[0])
    troubles = examine(library)
    cures = mend(library, troubles)
    text = json.dumps([*(one.to_body() for one in troubles), *(one.to_body() for one in cures)])
    assert "org/m" in text

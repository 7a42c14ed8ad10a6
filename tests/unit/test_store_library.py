"""Versions, labels, variants and digests of a store on a real disk."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hxd.daemon.store import demo, disk, quarantine, removal
from hxd.daemon.store.derived import add_variant
from hxd.daemon.store.digests import Seen
from hxd.daemon.store.faults import (
    BadName,
    Cancelled,
    Conflict,
    Corrupt,
    NotThere,
    StoreBroken,
    StoreError,
)
from hxd.daemon.store.findings import What
from hxd.daemon.store.integrity import ensure, verify
from hxd.daemon.store.journal import FILE, Journal
from hxd.daemon.store.labels import MAX_LABELS
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName, Reference
from hxd.daemon.store.seed import bring_back
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.version import Version
from hxd.daemon.store.work import Work
from tests import tiny
from tests.support import ROOT

DAY = 86400.0


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "store")
    library.prepare()
    return library


@pytest.fixture
def publish(library: Library, tmp_path: Path) -> Callable[..., Version]:
    """A version with a file of its own; `seed` makes its content."""

    def act(name: str = "m", seed: int = 0, labels: list[str] | None = None) -> Version:
        source = tiny.write(tmp_path / f"{seed}.gguf", seed)
        with Stage.of(library, [source], name) as stage:
            version = stage.publish({}, labels=labels)
        source.unlink()
        return version

    return act


def variant(library: Library, version: Version, name: str = "q4_0", seed: int = 99) -> Version:
    space = library.workspace("quantize")
    try:
        file = tiny.write(space / f"{name}.gguf", seed, file_type=2)
        return add_variant(library, version, name, file, made_by="llama_cpp 1.0")
    finally:
        library.drop(space)


def test_a_bare_name_means_stable_and_without_that_label_the_highest(
    library: Library, publish: Callable[..., Version]
) -> None:
    for seed in range(3):
        publish("org/m", seed)
    assert library.resolve(Reference.parse("org/m")).number == 1
    assert library.resolve(Reference.parse("org/m@3")).number == 3
    library.set_label("org/m", "canary", 2)
    assert library.resolve(Reference.parse("org/m@canary")).number == 2
    publish("other", 10, labels=[])
    publish("other", 11, labels=[])
    assert library.resolve(Reference.parse("other")).number == 2


def test_what_is_not_there_is_said_with_what_is(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish("phi-3-mini")
    for text, words in {
        "phi-3-mni": "Did you mean 'phi-3-mini'.*hxctl model import",
        "phi-3-mini@2": "no version 2 of phi-3-mini; there are 1",
        "phi-3-mini@canary": "no label canary.*There are: stable.*hxctl label",
    }.items():
        with pytest.raises(NotThere, match=words):
            library.resolve(Reference.parse(text))
    with pytest.raises(NotThere, match=r"no variant 'q8_0'.*There are: f16; hxctl model quantize"):
        library.version("phi-3-mini", 1).files("q8_0")


def test_a_number_is_never_given_twice(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    publish(seed=1)
    publish(seed=2)
    removal.remove(library, "m", 2)
    assert publish(seed=3).number == 3
    removal.remove_model(library, "m")
    assert library.names() == ["hxd-demo"]
    again = Library(tmp_path / "store")
    again.prepare()
    with Stage.of(again, [tiny.write(tmp_path / "x.gguf", 1)], "m") as stage:
        assert stage.publish({}).number == 4
    assert again.labels("m") == {"stable": 4}


def test_models_whose_names_begin_alike_do_not_touch_each_other(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish("a", 1)
    publish("a/b", 2)
    publish("a/b/c", 3)
    assert library.names() == ["a", "a/b", "a/b/c", "hxd-demo"]
    removal.remove_model(library, "a/b")
    assert library.names() == ["a", "a/b/c", "hxd-demo"]
    assert verify(library) == []


def test_labelled_and_used_versions_are_not_removed(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish(seed=1)
    publish(seed=2)
    with pytest.raises(Conflict, match="m@1 is labelled stable; hxctl label m stable VERSION"):
        removal.remove(library, "m", 1)
    with pytest.raises(Conflict, match="m@2 is in use"):
        removal.remove(library, "m", 2, keep={2})
    with pytest.raises(Conflict, match="m@2 is in use"):
        removal.remove_model(library, "m", keep=[2])
    with pytest.raises(NotThere):
        removal.remove(library, "m", 3)
    library.set_label("m", "stable", 2)
    removal.remove(library, "m", 1)
    assert library.versions("m") == [2]


def test_labels_move_and_go_and_stable_stays(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish(seed=1)
    publish(seed=2, labels=["canary", "blue"])
    assert library.labels("m") == {"stable": 1, "canary": 2, "blue": 2}
    library.set_label("m", "canary", None)
    assert library.labels("m") == {"stable": 1, "blue": 2}
    with pytest.raises(Conflict, match="stable can't be removed"):
        library.set_label("m", "stable", None)
    with pytest.raises(NotThere, match="no version 9"):
        library.set_label("m", "stable", 9)
    with pytest.raises(NotThere, match="no label canary"):
        library.set_label("m", "canary", None)
    for bad in ("7", "Stable", "a b", "../x", ""):
        with pytest.raises(BadName):
            library.set_label("m", bad, 1)


@pytest.mark.parametrize("name", ["../m", "a/../b", "m\0", "/m", "a/1", ""])
def test_a_bad_name_ends_before_any_file_is_touched(name: str, tmp_path: Path) -> None:
    library = Library(tmp_path / "nowhere")
    for act in (
        lambda: library.versions(name),
        lambda: library.labels(name),
        lambda: library.version(name, 1),
        lambda: library.golden(name),
        lambda: library.set_golden(name, b""),
        lambda: library.set_label(name, "stable", 1),
        lambda: removal.remove(library, name, 1),
        lambda: verify(library, name),
        lambda: quarantine.impose(library, name, 1, "why"),
    ):
        with pytest.raises(BadName):
            act()
    assert list(tmp_path.iterdir()) == []


def test_a_derived_variant_comes_and_goes_without_its_parent(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = variant(library, publish())
    assert list(version.variants()) == ["f16", "q4_0"]
    made = version.derived["q4_0"]
    assert (made.made_by, made.made_from) == ("llama_cpp 1.0", version.manifest.digests)
    assert ensure(library, version, "q4_0").name == "q4_0.gguf"
    with pytest.raises(Conflict, match="has a variant q4_0 already"):
        variant(library, version)
    with pytest.raises(Conflict, match="imported as"):
        removal.remove(library, "m", 1, variant="f16")
    removal.remove(library, "m", 1, variant="q4_0")
    assert list(library.version("m", 1).variants()) == ["f16"]
    assert verify(library, "m") == [] and library.workspaces.leftovers() == []


def test_a_variant_from_outside_a_workspace_or_that_is_no_model_is_refused(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    version = publish()
    with pytest.raises(BadName, match="not in a workspace"):
        add_variant(library, version, "q4_0", tiny.write(tmp_path / "q.gguf"), made_by="x")
    space = library.workspace("quantize")
    (space / "q.gguf").write_bytes(b"GGUF")
    with pytest.raises(Corrupt):
        add_variant(library, version, "q4_0", space / "q.gguf", made_by="x")


def test_an_unchanged_file_is_hashed_once_also_across_restarts(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    version = publish()
    os.utime(version.files("f16")[0])
    # What was written this very moment is not remembered: wait as an operator would.
    late = Library(library.root, lambda: 4e9)
    late.prepare()
    read: list[str] = []
    work = Work(lambda step, *_: read.append(step))
    ensure(late, version, "f16", work)
    assert read
    read.clear()
    for again in (late, Library(library.root, lambda: 4e9)):
        ensure(again, version, "f16", work)
    assert read == []


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[[1,2]]", b'[[1,2,3,4,5,"../x"]]', b"\xff" * 99])
def test_nonsense_where_digests_are_remembered_is_dropped(
    library: Library, publish: Callable[..., Version], nonsense: bytes
) -> None:
    version = publish()
    library.digests.file.write_bytes(nonsense)
    again = Library(library.root)
    assert ensure(again, version, "f16") == version.files("f16")[0]


def test_a_flipped_byte_is_found_before_the_load_and_the_file_named(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = publish()
    path = ensure(library, version, "f16")
    tiny.flip(path)
    with pytest.raises(
        Corrupt, match=rf"{path.name} is corrupted: .*…, the manifest says .*doctor"
    ):
        ensure(library, version, "f16")
    (found,) = verify(library, "m")
    assert (found.what, found.file) == (What.DIGEST, path.name)


def test_rot_that_leaves_the_times_alone_is_found_by_verify_and_then_by_the_next_load(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = publish()
    file = version.files("f16")[0]
    tiny.flip(file)
    # The disk's own rot changes no time: the wrong bytes are remembered as the right ones.
    right = version.manifest.files[file.name].sha256
    descriptor = os.open(file, os.O_RDONLY)
    late = Library(library.root, lambda: 4e9)
    late.digests.remember({Seen.of(descriptor): right}, 4e9)
    os.close(descriptor)
    assert ensure(late, version, "f16") == file
    assert [finding.what for finding in verify(late, "m")] == [What.DIGEST]
    with pytest.raises(Corrupt):
        ensure(late, version, "f16")


def test_each_way_to_lose_a_file_has_its_word(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    version = publish()
    file = version.files("f16")[0]
    whole = file.read_bytes()

    def found() -> list[What]:
        return [finding.what for finding in verify(library, "m")]

    file.unlink()
    assert found() == [What.MISSING]
    with pytest.raises(Corrupt, match="is missing"):
        ensure(library, version, "f16")
    file.write_bytes(whole[:-1])
    assert found() == [What.SIZE]
    with pytest.raises(Corrupt, match="bytes, the manifest says"):
        ensure(library, version, "f16")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(whole)
    assert found() == [What.LINK]
    with pytest.raises(Corrupt, match="symbolic link"):
        ensure(library, version, "f16")
    file.unlink()
    file.write_bytes(whole)
    (version.folder / "extra").write_text("x")
    (version.folder / "link").symlink_to("/etc")
    assert found() == [What.EXTRA, What.LINK]
    (version.folder / "manifest.toml").write_text("no")
    assert found() == [What.MANIFEST]


def test_links_planted_for_folders_are_not_followed(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    version = publish()
    version.folder.rename(tmp_path / "away")
    version.folder.symlink_to(tmp_path / "away")
    with pytest.raises(Corrupt, match="symbolic link"):
        ensure(library, version, "f16")
    assert library.versions("m") == []
    library.folder(version.name).rename(tmp_path / "model")
    library.folder(version.name).symlink_to(tmp_path / "model")
    assert library.names() == ["hxd-demo"]


def test_quarantine_keeps_a_version_from_being_loaded_until_it_is_whole(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = publish()
    quarantine.impose(library, "m", 1, "crashed 5 workers\nin a row")
    marked = library.resolve(Reference.parse("m"))
    assert marked.quarantined is not None and "crashed 5 workers" in marked.quarantined
    with pytest.raises(Conflict, match="in quarantine: crashed 5 workers"):
        ensure(library, version, "f16")
    with pytest.raises(Conflict, match="in quarantine"):
        library.set_label("m", "canary", 1)
    tiny.flip(version.files("f16")[0])
    with pytest.raises(Corrupt, match="stays in quarantine"):
        quarantine.release(library, "m", 1)
    tiny.flip(version.files("f16")[0])
    quarantine.release(library, "m", 1)
    assert ensure(library, version, "f16") and library.version("m", 1).quarantined is None


def test_a_derived_variant_is_quarantined_alone(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = variant(library, publish())
    quarantine.impose(library, "m", 1, "wrong answers", "q4_0")
    with pytest.raises(Conflict, match="wrong answers"):
        ensure(library, version, "q4_0")
    assert ensure(library, version, "f16")
    assert library.version("m", 1).marks["q4_0"].why == "wrong answers"
    quarantine.release(library, "m", 1, "q4_0")
    assert ensure(library, version, "q4_0")


def test_golden_prompts_are_kept_within_bounds(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    assert library.golden("m") is None
    with pytest.raises(NotThere):
        library.set_golden("m", b"x")
    with Stage.of(library, [tiny.write(tmp_path / "m.gguf")], "m") as stage:
        stage.publish({}, golden=b"prompt = 1\n")
    assert library.golden("m") == b"prompt = 1\n"
    library.set_golden("m", b"\xff" * (1 << 20))
    with pytest.raises(StoreError, match="1048577 bytes of golden"):
        library.set_golden("m", b"x" * ((1 << 20) + 1))
    assert library.golden("m") == b"\xff" * (1 << 20)


def test_a_label_file_that_can_not_be_read_leaves_numbers_usable(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish()
    (library.folder(publish(seed=1).name) / "labels.toml").write_text("stable = [")
    with pytest.raises(Corrupt, match="by number; run hxctl model doctor"):
        library.resolve(Reference.parse("m"))
    assert library.resolve(Reference.parse("m@2")).number == 2
    library.prepare()


HOLD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hxd.daemon.store.library import Library
with Library(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_store(library: Library) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, library.root],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"in use by process {child.pid}"), library.lock():
            pass
        child.kill()
    with library.lock():
        pass


def test_a_disk_that_takes_nothing_keeps_nobody_from_the_lock(library: Library) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with library.lock():
            with pytest.raises(Conflict, match="in use by process"), library.lock():
                pass
            library.prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_start_sweeps_up_and_keeps_downloads_for_a_week(tmp_path: Path) -> None:
    now = [1e9]
    library = Library(tmp_path / "store", lambda: now[0])
    library.prepare()
    mine = library.workspace("stage")
    for name in ("stage-abc", "pull/new", "pull/old"):
        (library.workspaces.folder / name).mkdir()
        (library.workspaces.folder / name / "part").write_text("half")
    (library.workspaces.folder / "write-abc").write_text("half")
    for name, age in {"pull/new": 6 * DAY, "pull/old": 8 * DAY}.items():
        for path in (f"{name}/part", name):
            os.utime(library.workspaces.folder / path, times=(1e9 - age, 1e9 - age))
    again = Library(library.root, lambda: now[0])
    found = {path.name for path in again.workspaces.leftovers()}
    assert found == {mine.name, "stage-abc", "old"}
    again.prepare()
    assert sorted(path.name for path in again.workspaces.folder.iterdir()) == ["pull"]
    assert [path.name for path in (again.workspaces.folder / "pull").iterdir()] == ["new"]


def test_a_version_that_can_not_have_its_labels_is_not_there(
    library: Library, publish: Callable[..., Version], tmp_path: Path
) -> None:
    publish("m", 1)
    (library.models / "m/golden.toml").mkdir()  # Nothing can be written there.
    file = tiny.write(tmp_path / "m.gguf", 2)
    with Stage.of(library, [file], "m") as stage, pytest.raises(StoreBroken, match="publish m@2"):
        stage.publish({}, labels=["canary"], golden=b"golden")
    assert library.versions("m") == [1] and library.workspaces.leftovers() == []
    (library.models / "m/golden.toml").rmdir()
    with Stage.of(library, [file], "m") as stage:
        stage.publish({}, labels=["canary"], golden=b"golden")
    library.set_label("m", "canary", 1)
    library.prepare()
    assert library.labels("m") == {"canary": 1, "stable": 1} and library.versions("m") == [1, 2]


def test_what_can_not_be_finished_keeps_no_daemon_from_starting(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish("m", 1)
    publish("m", 2)
    # As a crash after the rename of version 2 leaves it, and then a disk that takes nothing.
    journal = Journal(library.root / FILE, library.workspaces.folder)
    journal.begin("m", 2, ["canary", "mine"], b"golden")
    (library.models / "m/golden.toml").mkdir()
    library.prepare()
    assert library.labels("m") == {"stable": 1}
    (library.models / "m/golden.toml").rmdir()
    library.set_label("m", "canary", 1)
    library.prepare()
    assert library.labels("m") == {"canary": 1, "mine": 2, "stable": 1}
    assert library.golden("m") == b"golden"


def test_a_label_too_many_is_refused_before_anything_is_published(
    library: Library, publish: Callable[..., Version]
) -> None:
    publish("m", 1)
    most = {f"l{number}": 1 for number in range(MAX_LABELS)}
    library.save_labels(ModelName("m"), most)
    with pytest.raises(StoreError, match="1000 labels already"):
        publish("m", 2, labels=["new"])
    assert library.versions("m") == [1]
    library.prepare()
    assert publish("m", 3, labels=["l7"]).number == 2


def test_a_download_belongs_to_one_at_a_time(library: Library) -> None:
    folder = library.workspaces.folder / "pull/x"
    folder.mkdir()
    os.utime(folder, times=(0, 0))
    with library.workspaces.alone(folder):
        with pytest.raises(Conflict, match="pulled already"), library.workspaces.alone(folder):
            pass
        assert library.workspaces.leftovers() == []
    assert library.workspaces.leftovers() == [folder]
    with library.workspaces.alone(folder):
        pass


def test_leftovers_are_found_while_downloads_go_on(library: Library) -> None:
    folder = library.workspaces.folder / "pull/x"
    folder.mkdir()
    over = threading.Event()

    def download() -> None:
        while not over.is_set():
            (folder / "m.state.new").touch()
            (folder / "m.state.new").rename(folder / "m.state")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(download)
        try:
            for _ in range(300):
                assert library.workspaces.leftovers() == []
        finally:
            over.set()
        running.result()


def test_a_start_does_not_undo_the_operators_labels_of_the_built_in_model(
    library: Library,
) -> None:
    library.set_label("hxd-demo", "stable", 1)
    library.prepare()
    assert library.labels("hxd-demo") == {"stable": 1}


def test_a_built_in_version_that_was_removed_stays_so_and_a_damaged_one_heals(
    library: Library,
) -> None:
    removal.remove(library, "hxd-demo", 1)
    disk.delete(library.models / "hxd-demo/2/manifest.toml")
    library.prepare()
    assert library.versions("hxd-demo") == [2]
    removal.remove_model(library, "hxd-demo")
    Library(library.root).prepare()
    assert library.names() == []


def test_a_newer_built_in_version_comes_though_older_ones_were_removed(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removal.remove_model(library, "hxd-demo")
    package = tmp_path / "package"
    shutil.copytree(demo.folder(), package)
    shutil.copytree(package / "2", package / "3")
    manifest = package / "3/manifest.toml"
    manifest.write_text(manifest.read_text().replace("version = 2", "version = 3"))
    monkeypatch.setattr(demo, "folder", lambda: package)
    library.prepare()
    assert library.versions("hxd-demo") == [3]


def test_a_removed_built_in_version_comes_back_when_it_is_asked_for(library: Library) -> None:
    removal.remove_model(library, "hxd-demo")
    assert bring_back(library, [1]) == [1]
    assert (library.versions("hxd-demo"), library.labels("hxd-demo")) == ([1], {})
    assert bring_back(library, [1, 2]) == [2]
    assert library.labels("hxd-demo") == {"stable": 2}
    assert bring_back(library, [1, 2]) == []
    # From now on it heals again.
    disk.delete(library.models / "hxd-demo/1")
    library.prepare()
    assert library.versions("hxd-demo") == [1, 2]


def test_a_note_of_removed_versions_that_can_not_be_read_counts_as_none(library: Library) -> None:
    removal.remove(library, "hxd-demo", 1)
    (library.root / "removed.json").write_text("[1,")
    library.prepare()
    assert library.versions("hxd-demo") == [1, 2]


def test_folders_are_for_nobody_else(library: Library, publish: Callable[..., Version]) -> None:
    variant(library, publish("a/b"))
    modes = {path.stat().st_mode & 0o777 for path in library.root.rglob("*") if path.is_dir()}
    assert modes == {0o700}


def test_threads_that_publish_at_once_get_numbers_of_their_own(
    library: Library, tmp_path: Path
) -> None:
    files = [tiny.write(tmp_path / f"{seed}.gguf", seed) for seed in range(8)]

    def act(file: Path) -> int:
        with Stage.of(library, [file], "m") as stage:
            return stage.publish({}).number

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(act, files)) == list(range(1, 9))
    assert library.labels("m").keys() == {"stable"} and verify(library, "m") == []


def test_threads_that_load_one_file_read_it_once(
    library: Library, publish: Callable[..., Version]
) -> None:
    version = publish()
    late = Library(library.root, lambda: 4e9)
    late.digests.forget()
    read: list[str] = []
    work = Work(lambda step, *_: read.append(step))
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda _: ensure(late, version, "f16", work), range(8))
        assert set(found) == set(version.files("f16"))
    assert len(read) == 1


def test_verifying_can_be_stopped(library: Library) -> None:
    work = Work()
    work.stop()
    with pytest.raises(Cancelled):
        verify(library, work=work)

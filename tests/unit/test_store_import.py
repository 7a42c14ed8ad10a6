"""What a path holds is judged by headers before a byte is copied; bytes are hashed as they come."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hxd import gguf
from hxd.daemon.store import candidates, quarantine, removal
from hxd.daemon.store.candidates import collect
from hxd.daemon.store.faults import (
    BadName,
    Cancelled,
    Conflict,
    Corrupt,
    NotThere,
    StoreBroken,
    StoreError,
)
from hxd.daemon.store.integrity import ensure, verify
from hxd.daemon.store.labels import Labels
from hxd.daemon.store.library import Library
from hxd.daemon.store.reference import ModelName, Reference
from hxd.daemon.store.seed import bring_back
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.work import Work
from tests import legacy, tiny
from tests.support import ROOT
from tests.unit.test_gguf import LIES


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "store")
    library.prepare()
    return library


def left(library: Library) -> list[Path]:
    return [path for path in library.workspaces.folder.iterdir() if path.name != "pull"]


def test_a_file_is_staged_validated_and_published(library: Library, tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "My Model (1).gguf")
    told: list[tuple[str, int, int]] = []
    work = Work(lambda *progress: told.append(progress))
    with Stage.of(library, collect(source), "org/m", description="d", work=work) as stage:
        assert gguf.read_header(stage.file).architecture == "llama"
        assert library.names() == ["hxd-demo"]
        version = stage.publish({"suite": {"passed": True, "perplexity": 7.5}})
    assert (version.name, version.number, version.size) == ("org/m", 1, source.stat().st_size)
    assert version.manifest.validation["suite"]["perplexity"] == 7.5
    (entry,) = version.manifest.files.values()
    assert entry.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert version.variants() == {"f16": (version.folder / "My_Model__1_.gguf",)}
    assert library.labels("org/m") == {"stable": 1}
    assert library.names() == ["hxd-demo", "org/m"]
    assert told[-1][1:] == (version.size, version.size)
    assert source.exists() and left(library) == []


def test_a_stage_that_is_not_published_leaves_nothing(library: Library, tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "m.gguf")
    with Stage.of(library, [source], "m", take="move") as stage:
        assert stage.file.exists()
    assert left(library) == [] and library.versions("m") == [] and source.exists()
    with pytest.raises(Conflict, match="discarded"):
        stage.publish({})


def test_a_moved_file_is_gone_from_where_it_was_only_after_the_publication(
    library: Library, tmp_path: Path
) -> None:
    source = tiny.write(tmp_path / "m.gguf")
    with Stage.of(library, [source], "m", take="move") as stage:
        assert source.exists()
        version = stage.publish({})
    assert not source.exists()
    assert ensure(library, version, "f16").stat().st_mode & 0o077 == 0


def test_a_moved_file_that_somebody_took_away_meanwhile_is_a_version_all_the_same(
    library: Library, tmp_path: Path
) -> None:
    source = tiny.write(tmp_path / "m.gguf")
    with Stage.of(library, [source], "m", take="move") as stage:
        source.unlink()
        version = stage.publish({})
    assert verify(library, "m") == []
    assert library.labels("m") == {"stable": version.number}


def test_all_shards_of_a_folder_become_one_version_in_order(
    library: Library, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    files = tiny.write_split(folder, 3)
    (folder / "README.md").write_text("hello")
    (folder / "config.json").write_text('{"architectures": []}')
    with Stage.of(library, collect(folder), "m") as stage:
        version = stage.publish({})
    (shards,) = version.variants().values()
    assert [shard.name for shard in shards] == [file.name for file in files]
    assert ensure(library, version, "f16") == shards[0]
    assert verify(library, "m") == []


def test_shards_keep_the_ending_that_names_them_whatever_comes_before_it(tmp_path: Path) -> None:
    for name in ("\u043c\u043e\u0434\u0435\u043b\u044c", "..m\u00f6del 7b"):
        taken = candidates.check(tiny.write_split(tmp_path, 2, name=name)).names
        assert all(candidates.SHARD.fullmatch(shard) for shard in taken), taken
        assert taken[0].removesuffix("-00001-of-00002.gguf") + "-00002-of-00002.gguf" == taken[1]


def test_shards_in_any_order_are_sorted_and_a_missing_one_is_named(
    library: Library, tmp_path: Path
) -> None:
    files = tiny.write_split(tmp_path, 3)
    assert candidates.check(files[::-1]).files == tuple(files)
    with pytest.raises(Corrupt, match=r"2 of 3 shards .* missing: 2"):
        Stage.of(library, [files[0], files[2]], "m")
    with pytest.raises(Corrupt, match="one of '3' shards"):
        Stage.of(library, files[:1], "m")


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    files = tiny.write_split(tmp_path, 2)
    tiny.write(files[1], split__no=0, split__count=2)
    with pytest.raises(Corrupt, match="says it is shard"):
        candidates.check(files)
    tiny.write(files[1], split__no=1, split__count=2, tensors=5)
    with pytest.raises(Corrupt, match="the shards have 7 tensors, the header says 4"):
        candidates.check(files)
    others = tiny.write_split(tmp_path, 2, name="other")
    with pytest.raises(Corrupt, match="different models"):
        candidates.check([files[0], others[1]])
    with pytest.raises(Corrupt, match="not a shard"):
        candidates.check([tiny.write(tmp_path / "a.gguf"), tiny.write(tmp_path / "b.gguf")])


def test_a_merged_file_whose_header_still_has_a_split_of_0_is_taken(tmp_path: Path) -> None:
    assert candidates.check([tiny.write(tmp_path / "m.gguf", split__count=0)]).variant == "f16"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("pytorch_model.bin", b"PK\x03\x04 data.pkl", "a zip archive"),
        ("model.bin", b"\x80\x04\x95abc", "a Python pickle"),
        ("weights.pkl", b"\x80\x04", "runs code when it is loaded"),
        ("consolidated.00.pth", b"PK", "a pickle that runs code"),
        ("MODEL.PT", b"PK", "a pickle that runs code"),
        ("model.safetensors", b"", "convert it to GGUF"),
        ("config.json", b'{"auto_map": {"AutoModel": "x.Evil"}}', "names code to run"),
    ],
)
def test_a_folder_with_what_runs_code_is_refused_beside_a_good_file(
    library: Library, tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    folder = tiny.put_all(tmp_path / "in", {"m.gguf": tiny.gguf(), name: data})
    with pytest.raises(Corrupt, match=words):
        collect(folder)


def test_a_folder_with_two_models_or_none_asks_for_the_file(tmp_path: Path) -> None:
    folder = tiny.put_all(tmp_path / "in", {"a.gguf": tiny.gguf(), "b.gguf": tiny.gguf(1)})
    with pytest.raises(StoreError, match=r"2 models .* 'a.gguf', 'b.gguf'"):
        collect(folder)
    with pytest.raises(NotThere, match="no GGUF"):
        collect(tiny.put_all(tmp_path / "none", {"x.txt": b""}))
    with pytest.raises(NotThere, match="no such file"):
        collect(tmp_path / "nowhere")


def test_an_older_file_in_a_folder_is_taken(library: Library, tmp_path: Path) -> None:
    legacy.write(tmp_path / "in.bin", "gpt2")
    folder = tiny.put_all(tmp_path / "in", {"ggml-model.bin": (tmp_path / "in.bin").read_bytes()})
    with Stage.of(library, collect(folder), "old") as stage:
        version = stage.publish({})
    assert (version.manifest.format, list(version.variants())) == ("ggml", ["f32"])


@pytest.mark.parametrize("lie", LIES)
def test_a_hostile_header_ends_before_a_copy(library: Library, tmp_path: Path, lie: str) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(LIES[lie][0])
    with pytest.raises(Corrupt, match="is refused"):
        Stage.of(library, [source], "m")
    assert left(library) == []


def test_pipes_folders_and_missing_files_are_refused_without_waiting(
    library: Library, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(StoreError, match="not a regular file"):
        collect(tmp_path / "pipe.gguf")
    with pytest.raises(StoreError, match="not a regular file"):
        Stage.of(library, [tmp_path / "pipe.gguf"], "m")
    with pytest.raises(NotThere):
        Stage.of(library, [tmp_path / "none.gguf"], "m")
    with pytest.raises(BadName):
        Stage.of(library, [tmp_path / "none.gguf"], "../m")


def test_a_link_that_the_operator_names_is_followed_and_gives_the_name(
    library: Library, tmp_path: Path
) -> None:
    blob = tiny.write(tmp_path / ("ab" * 32))
    link = tmp_path / "phi-q4.gguf"
    link.symlink_to(blob)
    with Stage.of(library, collect(link), "m") as stage:
        version = stage.publish({})
    assert version.files("f16")[0].name == "phi-q4.gguf"
    assert not version.files("f16")[0].is_symlink()


def test_the_same_content_is_not_taken_twice_in_a_model(library: Library, tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "m.gguf")
    with Stage.of(library, [source], "m") as stage, Stage.of(library, [source], "m") as second:
        stage.publish({})
        with pytest.raises(Conflict, match="m@1 has the same content"):
            second.publish({})
    with pytest.raises(Conflict, match="m@1 has the same content"):
        Stage.of(library, [source], "m")
    with Stage.of(library, [source], "other") as stage:
        assert stage.publish({}).number == 1
    assert left(library) == []


def test_a_source_that_grows_while_it_is_read_is_refused(library: Library, tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "m.gguf", size=4 << 20)

    def grow(step: str, done: int, total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(Corrupt, match="changed while it was read"):
        Stage.of(library, [source], "m", work=Work(grow))
    assert left(library) == []


def test_stopped_work_leaves_nothing(library: Library, tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "m.gguf", size=4 << 20)
    work = Work(lambda *_: work.stop())
    with pytest.raises(Cancelled):
        Stage.of(library, [source], "m", work=work)
    assert left(library) == [] and library.versions("m") == []


def test_a_variant_that_the_header_does_not_name_can_be_given(
    library: Library, tmp_path: Path
) -> None:
    source = tiny.write(tmp_path / "m.gguf", file_type=99)
    with Stage.of(library, [source], "m") as stage:
        assert stage.variant == "unknown"
    with Stage.of(library, [source], "m", variant="iq2_xxs") as stage:
        assert list(stage.publish({}).variants()) == ["iq2_xxs"]


def test_a_source_on_another_file_system_is_copied(library: Library) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == library.root.stat().st_dev:
        pytest.skip("no second file system here")
    source = tiny.write(shm / f"hxd-test-{os.getpid()}.gguf", size=3 << 20)
    try:
        with Stage.of(library, [source], "m", take="move") as stage:
            assert stage.taken[0].how == "copy"
            version = stage.publish({})
        assert not source.exists()
        assert verify(library, "m") == [] and ensure(library, version, "f16").is_file()
    finally:
        source.unlink(missing_ok=True)


def test_the_built_in_model_is_a_copy_and_served_by_its_label(library: Library) -> None:
    version = library.resolve(Reference.parse("hxd-demo"))
    assert version.number == 2
    for number in (1, 2):
        (file,) = library.version("hxd-demo", number).files("f16")
        shipped = ROOT / f"hxd/demo/{number}/hxd-demo-f16.gguf"
        assert file.stat().st_nlink == 1 and not file.samefile(shipped)
    with Stage.of(library, [shipped], "again") as stage:
        assert stage.publish({}).manifest.files


FILL = """
import resource, signal, sys
from pathlib import Path
from hxd.daemon.store.faults import StoreBroken
from hxd.daemon.store.library import Library
from hxd.daemon.store.stage import Stage
library = Library(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    Stage.of(library, [Path(sys.argv[2])], "m")
except StoreBroken as error:
    print(error.status, error.message)
"""


def test_a_file_larger_than_a_limit_allows_is_said_so_and_leaves_nothing(
    library: Library,
) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == library.root.stat().st_dev:
        pytest.skip("no second file system here, and only a copy writes")
    source = tiny.write(shm / f"hxd-test-{os.getpid()}-large.gguf", size=3 << 20)
    try:
        done = subprocess.run(
            [sys.executable, "-c", FILL, library.root, source],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        source.unlink()
    assert "507 can't bring" in done.stdout and "LimitFSIZE" in done.stdout
    assert left(library) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20


def test_a_full_disk_is_said_so_before_the_copy_and_while_it_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "none", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    try:
        library = Library(disk / "store")
        library.prepare()
        source = tiny.write(tmp_path / "m.gguf", size=90 << 20)
        before = sorted(disk.rglob("*"))
        with pytest.raises(StoreBroken, match=r"(?s)a reserve of 4 MiB .*hxctl model rm"):
            Stage.of(library, [source], "m")
        (disk / "filler").write_bytes(b"\0" * (os.statvfs(disk).f_bavail * 4096))
        for act in (
            lambda: library.set_label("hxd-demo", "canary", 1),
            lambda: library.set_golden("hxd-demo", b"x" * 10_000),
            lambda: quarantine.impose(library, "hxd-demo", 1, "x" * 1000),
        ):
            with pytest.raises(StoreBroken, match="No space left"):
                act()
        (disk / "filler").unlink()
        assert sorted(disk.rglob("*")) == before
        (disk / "filler").write_bytes(b"\0" * (os.statvfs(disk).f_bavail * 4096))
        # What makes room has to work without any.
        removal.remove(library, "hxd-demo", 1)
        Library(disk / "store").prepare()
        assert library.versions("hxd-demo") == [2]
        (disk / "filler").write_bytes(b"\0" * (os.statvfs(disk).f_bavail * 4096))
        removal.remove_model(library, "hxd-demo")
        assert library.labelled(ModelName("hxd-demo")) == Labels(3)
        (disk / "filler").unlink()
        bring_back(library, [1, 2])
        assert verify(library) == [] and library.labels("hxd-demo") == {"stable": 2}
    finally:
        subprocess.run(["umount", disk], check=True)

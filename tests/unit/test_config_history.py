"""Kept configurations, and putting one in place: what a crash or a full disk leaves is whole.

Crashes are real: a child process kills itself with SIGKILL at the n-th thing it asks of the disk,
for every n, and others are killed from outside at times drawn with `HXD_SEED`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.config import load
from hxd.config.files import snapshot, stage
from hxd.config.history import (
    KEEP,
    CannotKeep,
    DamagedRevision,
    History,
    NoSuchRevision,
    Outcome,
    Why,
)
from hxd.config.install import JOURNAL, CannotInstall, install, recover
from hxd.config.load import load_as
from hxd.errors import ConfigError
from tests.dying import at_touch, die, ended, fail, fork, until_it_lives

SEED = int(os.environ.get("HXD_SEED", "1"))
KILLS = 20
A = {"hxd.toml": b"# a\n", "conf.d/keep.toml": b"# k\n", "conf.d/a-gone.toml": b"# g\n"}
B = {"hxd.toml": b"# b\n", "conf.d/keep.toml": b"# k\n", "conf.d/come.toml": b"# c\n"}


# --- children that die, and disks that fail ---------------------------------------------------


UNREACHED = 3


def put(config_file: Path, files: dict[str, bytes]) -> None:
    """By hand, as an operator would."""
    shutil.rmtree(config_file.parent, ignore_errors=True)
    for name, data in files.items():
        file = config_file if name == "hxd.toml" else config_file.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def lying_about(config_file: Path) -> set[str]:
    """Every file below the config's folder that is none of the configuration's."""
    root = config_file.parent
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return found - {config_file.name} - set(snapshot(config_file))


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A config file with `A` in place, and the folder for the journal."""
    config_file = tmp_path / "etc/main.toml"
    put(config_file, A)
    return config_file, tmp_path / "state"


# --- install ----------------------------------------------------------------------------------


def test_a_set_takes_the_place_of_another_and_leaves_nothing_else(place: tuple[Path, Path]) -> None:
    config_file, state = place
    kept = (config_file.parent / "conf.d/keep.toml").stat()
    assert install(config_file, B, state) == ["conf.d/a-gone.toml", "conf.d/come.toml", "hxd.toml"]
    assert snapshot(config_file) == B
    assert lying_about(config_file) == set() and not (state / JOURNAL).exists()
    assert (config_file.parent / "conf.d/keep.toml").stat() == kept
    assert install(config_file, B, state) == []


def test_owners_and_modes_stay_and_a_new_file_has_those_of_the_main_file(
    place: tuple[Path, Path],
) -> None:
    config_file, state = place
    config_file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config_file, 1, 2)
    install(config_file, B, state)
    for file in (config_file, config_file.parent / "conf.d/come.toml"):
        found = file.stat()
        assert found.st_mode & 0o7777 == 0o640
        assert os.geteuid() != 0 or (found.st_uid, found.st_gid) == (1, 2)


def test_a_crash_at_any_point_leaves_the_old_set_or_the_new_one(place: tuple[Path, Path]) -> None:
    config_file, state = place
    seen = []

    def act(number: int) -> None:
        at_touch(number, die)
        install(config_file, B, state)

    def check() -> None:
        recover(config_file, state)
        found = snapshot(config_file)
        assert found in (A, B)
        assert lying_about(config_file) == set() and not (state / JOURNAL).exists()
        seen.append(found == B)
        put(config_file, A)

    points = until_it_lives(act, check)
    assert points > 30 and snapshot(config_file) == B
    # Once the journal stands it goes forward, and never again back.
    assert seen == sorted(seen) and set(seen) == {False, True}


def test_a_crash_during_the_recovery_from_a_crash_does_no_harm(place: tuple[Path, Path]) -> None:
    config_file, state = place

    def count() -> int:
        reached = [at_touch(number, lambda: None) for number in range(1, 200)]
        install(config_file, B, state)
        return sum(one() for one in reached)

    def half(at: int) -> None:
        def act() -> None:
            at_touch(at, die)
            install(config_file, B, state)

        put(config_file, A)
        assert ended(fork(act)) == -signal.SIGKILL

    def again(number: int) -> None:
        at_touch(number, die)
        recover(config_file, state)

    def check() -> None:
        recover(config_file, state)
        assert snapshot(config_file) in (A, B) and lying_about(config_file) == set()
        half(first)

    points = ended(fork(count))
    deaths = 0
    # In the last third there is a journal.
    for first in random.Random(SEED).sample(range(points * 2 // 3, points), 5):
        half(first)
        deaths += until_it_lives(again, check)
        assert snapshot(config_file) in (A, B) and lying_about(config_file) == set()
    assert deaths > 30


def test_a_kill_at_any_time_leaves_the_old_set_or_the_new_one(place: tuple[Path, Path]) -> None:
    config_file, state = place
    rng = random.Random(SEED)

    def act() -> None:
        while True:
            install(config_file, B, state)
            install(config_file, A, state)

    for kill in range(KILLS):
        child = fork(act)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        recover(config_file, state)
        assert snapshot(config_file) in (A, B), f"HXD_SEED={SEED}, kill {kill}"
        assert lying_about(config_file) == set()


@pytest.mark.parametrize("for_good", [False, True])
def test_a_disk_that_fails_at_any_point_leaves_a_whole_set(
    place: tuple[Path, Path], for_good: bool
) -> None:
    config_file, state = place

    def act(number: int) -> int:
        reached = at_touch(number, fail, and_after=for_good)
        try:
            install(config_file, B, state)
        except CannotInstall:
            die()
        return 0 if reached() else UNREACHED

    told = set()
    for number in range(1, 200):
        code = ended(fork(lambda number=number: act(number)))
        told.add(code)
        if code != -signal.SIGKILL or not for_good:
            # What is told is what is, with no recovery in between, unless the disk is gone.
            assert snapshot(config_file) == (A if code == -signal.SIGKILL else B)
        recover(config_file, state)
        assert snapshot(config_file) in (A, B) and lying_about(config_file) == set()
        put(config_file, A)
        if code == UNREACHED:
            break
    # What fails once all is in place is no reason to say that it is not.
    assert told == {-signal.SIGKILL, 0, UNREACHED}


def test_a_crash_on_the_way_back_does_not_go_forward_again(place: tuple[Path, Path]) -> None:
    config_file, state = place

    def act(number: int) -> None:
        # The journal's, that of the file that comes, and that of the main file.
        at_touch(3, fail, of=("os.rename",))
        at_touch(number, die)
        with contextlib.suppress(CannotInstall):
            install(config_file, B, state)

    def check() -> None:
        recover(config_file, state)
        assert snapshot(config_file) in (A, B)
        assert lying_about(config_file) == set() and not (state / JOURNAL).exists()
        put(config_file, A)

    assert until_it_lives(act, check) > 60
    assert snapshot(config_file) == A


def test_a_file_that_was_written_since_the_crash_is_left_alone(place: tuple[Path, Path]) -> None:
    config_file, state = place
    by_hand = config_file.parent / "conf.d/a-gone.toml"

    def act() -> None:
        # The first is the journal's.
        at_touch(2, die, of=("os.rename",))
        install(config_file, B, state)

    assert ended(fork(act)) == -signal.SIGKILL
    by_hand.write_bytes(b"# mine\n")
    told = recover(config_file, state)
    assert snapshot(config_file) == {**B, "conf.d/a-gone.toml": b"# mine\n"}
    assert told[0].endswith("has been finished")
    assert told[1:] == [f"{by_hand} was left alone: somebody has changed it since"]
    assert recover(config_file, state) == []


def test_a_damaged_journal_is_set_aside_and_told(place: tuple[Path, Path]) -> None:
    config_file, state = place
    state.mkdir()
    (state / JOURNAL).write_bytes(b'{"config_file": 1')
    assert "is damaged" in recover(config_file, state)[0]
    assert recover(config_file, state) == []


def test_a_link_is_replaced_by_nothing_and_may_stay_as_it_is(place: tuple[Path, Path]) -> None:
    config_file, state = place
    link = config_file.parent / "conf.d/keep.toml"
    target = config_file.parent / "elsewhere"
    link.rename(target)
    link.symlink_to(target)
    assert install(config_file, B, state) != []
    assert link.is_symlink()
    for other in ({**B, "conf.d/keep.toml": b"# x\n"}, {"hxd.toml": b"# x\n"}):
        with pytest.raises(CannotInstall, match=r"keep.toml is a link to .* replaces no links"):
            install(config_file, other, state)
        assert snapshot(config_file) == B


@pytest.mark.parametrize(
    "name", ["conf.d/../x.toml", "conf.d/x", "x.toml", "/etc/x.toml", "conf.d/\x1b.toml", ""]
)
def test_names_that_lead_elsewhere_are_refused(place: tuple[Path, Path], name: str) -> None:
    config_file, state = place
    with pytest.raises(CannotInstall, match="not a file of a configuration"):
        install(config_file, {**B, name: b""}, state)
    with pytest.raises(ConfigError, match="not a file of a configuration"):
        load_as({**B, name: b""}, config_file)
    with pytest.raises(CannotKeep, match="not a file of a configuration"):
        History(state).record({**B, name: b""}, Why.APPLY, "me", 0)
    assert snapshot(config_file) == A


@contextlib.contextmanager
def open_to_all() -> Iterator[Path]:
    """pytest's own folders are closed to others than their owner."""
    folder = Path(tempfile.mkdtemp(prefix="hxd-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("writable", [[], ["."], ["conf.d"], [".", "conf.d"]])
def test_a_folder_that_hxd_may_not_write_is_told_and_nothing_has_changed(
    writable: list[str],
) -> None:
    """Where it may write both, it still may not give the new files to their owner."""
    with open_to_all() as folder:
        config_file = folder / "etc/hxd.toml"
        put(config_file, A)
        for name in (".", "conf.d"):
            (config_file.parent / name).chmod(0o777 if name in writable else 0o555)
        state = folder / "state"
        state.mkdir()
        state.chmod(0o777)

        def act() -> None:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            elif len(writable) == 2:
                die()
            try:
                install(config_file, B, state)
            except CannotInstall as error:
                assert "ReadWritePaths=" in error.message and "hxctl reload" in error.message
                die()

        assert ended(fork(act)) == -signal.SIGKILL
        assert snapshot(config_file) == A and lying_about(config_file) == set()
        assert not list(state.iterdir())


# --- loading from elsewhere -------------------------------------------------------------------

part = st.sampled_from(
    [
        b"",
        b"[listen]\nhttp = '127.0.0.1:1'\n",
        b"[models.a]\nsource = 'm.gguf'\n",
        b"[models.a]\nplugin = 'echo'\n",
        b"[paths]\nstate = 's'\n",
        b"[log]\nlevle = 'info'\n",
        b"\xff",
        b"[a\n",
        b"[log]\n[log]\n",
        b"#" * ((1 << 20) + 1),
    ]
)


def outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except ConfigError as error:
        return error.findings


@given(part, st.dictionaries(st.sampled_from(["1.toml", "2.toml", ".3.toml"]), part))
def test_files_in_memory_load_as_they_would_from_the_disk(
    main: bytes, others: dict[str, bytes]
) -> None:
    files = {"hxd.toml": main} | {f"conf.d/{name}": data for name, data in others.items()}
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder) / "other-name.toml"
        put(config_file, files)
        from_disk = outcome(lambda: load(config_file))
        assert from_disk == outcome(lambda: load_as(files, config_file))
        if not isinstance(from_disk, tuple):
            assert snapshot(config_file) == files


def test_a_candidate_is_read_as_if_it_lay_at_the_real_place(place: tuple[Path, Path]) -> None:
    config_file, _ = place
    folder = config_file.parent.parent / "candidate"
    put(folder / "hxd.toml", {"hxd.toml": b"[paths]\nstate = 's'\n"})
    files = stage(folder, config_file)
    assert set(files) == {"hxd.toml"}
    assert load_as(files, config_file).paths.state == config_file.parent / "s"
    assert load_as(files, config_file).origin == config_file
    alone = stage(folder / "hxd.toml", config_file)
    assert alone == {**A, "hxd.toml": files["hxd.toml"]}


def test_what_can_not_be_read_is_a_finding(place: tuple[Path, Path]) -> None:
    config_file, _ = place
    with pytest.raises(ConfigError, match=r"none.toml: can't be read: No such file"):
        stage(config_file.parent / "none.toml", config_file)
    (config_file.parent / "conf.d/x.toml").mkdir()
    (config_file.parent / "conf.d/y.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError) as caught:
        snapshot(config_file)
    assert caught.value.findings == outcome(lambda: load(config_file))


# --- history ----------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "config-history")
    history.prepare()
    return history


def numbered(number: int) -> dict[str, bytes]:
    return {"hxd.toml": f"# {number}\n".encode(), "conf.d/x.toml": b"\xff\r\n"}


def test_a_revision_is_kept_whole_with_who_why_and_how_it_ended(
    history: History, tmp_path: Path
) -> None:
    first = history.record(A, Why.START, "systemd", 10.0)
    second = history.record(B, Why.APPLY, "key \x1b[31m" + "x" * 999, 20.0)
    assert (first.number, second.number) == (1, 2)
    assert second.who.startswith("key \\x1b[31mx") and len(second.who) == 200
    assert first.outcome is Outcome.PENDING
    history.settle(2, Outcome.ROLLED_BACK, "a worker\ndid not start")
    again = History(tmp_path / "config-history")
    again.prepare()
    assert [r.number for r in again.all()] == [1, 2]
    assert again.get(2).reason == "a worker\\ndid not start"
    assert (again.read(1), again.read(2)) == (A, B)
    modes = {p.stat().st_mode & 0o077 for p in (tmp_path / "config-history").rglob("*")}
    assert modes == {0}


def test_the_same_content_makes_no_new_revision_unless_it_was_rolled_back(history: History) -> None:
    history.record(A, Why.START, "", 0)
    history.settle(1, Outcome.APPLIED)
    assert history.record(A, Why.RELOAD, "", 1) == history.get(1)
    history.record(B, Why.APPLY, "", 2)
    assert history.record(A, Why.ROLLBACK, "", 3).number == 3
    history.settle(3, Outcome.ROLLED_BACK, "because")
    assert history.record(A, Why.APPLY, "", 4).number == 4


def test_old_revisions_go_and_the_newest_and_the_last_good_one_never(history: History) -> None:
    history.record(numbered(0), Why.START, "", 0)
    history.settle(1, Outcome.APPLIED)
    for number in range(1, KEEP + 5):
        history.record(numbered(number), Why.APPLY, "", number)
    kept = [revision.number for revision in history.all()]
    assert kept == [1, *range(KEEP + 5 - KEEP + 2, KEEP + 6)] and len(kept) == KEEP
    assert history.last_good() == history.get(1)
    with pytest.raises(NoSuchRevision, match=r"no revision 2 of .*; there are 1 to 105"):
        history.read(2)


def test_what_is_unreadable_is_skipped_and_told_and_its_number_not_used_again(
    history: History, tmp_path: Path
) -> None:
    for number in range(4):
        history.record(numbered(number), Why.APPLY, "", number)
        history.settle(number + 1, Outcome.APPLIED)
    folder = tmp_path / "config-history"
    (folder / "000002/revision.json").write_bytes(b"{")
    (folder / "000003/files/hxd.toml").write_bytes(b"# other\n")
    entry = json.loads((folder / "000004/revision.json").read_bytes())
    entry["sha256"]["../../../etc/passwd"] = "0" * 64
    (folder / "000004/revision.json").write_text(json.dumps(entry))
    (folder / "stray").mkdir()
    assert [revision.number for revision in history.all()] == [1, 3]
    assert [what.split("/")[-2] for what in history.unreadable()] == ["000002", "000004"]
    for number in (2, 3, 4):
        with pytest.raises(DamagedRevision):
            history.read(number)
    assert history.last_good() == history.get(1)
    assert history.record(numbered(2), Why.APPLY, "", 9).number == 5


def test_the_last_good_one_before_another_is_found(history: History) -> None:
    for number in range(3):
        history.record(numbered(number), Why.APPLY, "", number)
    assert history.last_good() is None
    history.settle(1, Outcome.APPLIED)
    history.settle(2, Outcome.APPLIED)
    assert history.last_good() == history.get(2)
    assert history.last_good(before=2) == history.get(1)


def test_a_crash_while_recording_leaves_a_whole_history(tmp_path: Path) -> None:
    folder = tmp_path / "config-history"
    History(folder).record(A, Why.START, "", 0)

    def act(number: int) -> None:
        at_touch(number, die)
        history = History(folder)
        history.record(B, Why.APPLY, "", 1)
        history.settle(2, Outcome.APPLIED)

    def check() -> None:
        history = History(folder)
        history.prepare()
        assert history.unreadable() == []
        assert [history.read(r.number) for r in history.all()] in ([A], [A, B])
        assert not [p for p in folder.rglob("*") if p.name.startswith(".")]
        shutil.rmtree(folder / "000002", ignore_errors=True)

    assert until_it_lives(act, check) > 20


def test_a_disk_that_fails_while_recording_is_told(tmp_path: Path) -> None:
    history = History(tmp_path / "config-history")
    history.record(A, Why.START, "", 0)

    def act(number: int) -> None:
        at_touch(number, fail)
        try:
            history.record(B, Why.APPLY, "", 1)
        except CannotKeep:
            die()

    def check() -> None:
        assert history.unreadable() == []
        assert [history.read(r.number) for r in history.all()] in ([A], [A, B])
        shutil.rmtree(tmp_path / "config-history/000002", ignore_errors=True)

    until_it_lives(act, check)

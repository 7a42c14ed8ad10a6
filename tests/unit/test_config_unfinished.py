"""An apply that a daemon has left unfinished: what the next one finds, and what it makes of it, for
every point at which the former one can have died."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hxd.conditions import Condition
from hxd.config.files import snapshot
from hxd.config.history import History, Outcome, Why
from hxd.config.install import install, recover
from hxd.config.unfinished import FILE, MOST_ATTEMPTS, SIGN, Place, Unfinished
from hxd.daemon.config_start import Leftover
from hxd.errors import ConfigError
from tests.dying import at_touch, die, until_it_lives

PATHS = b"""[paths]
state = "../state"
runtime = "../run"
logs = "../logs"
cache = "../cache"
"""
A = {"hxd.toml": PATHS, "conf.d/old.toml": b"[log]\nlevel = 'info'\n"}
B = {"hxd.toml": PATHS + b"[log]\nlevel = 'debug'\n", "conf.d/new.toml": b"[auth]\n"}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
# Two that don't go together: the log level of both.
HALF = {"hxd.toml": B["hxd.toml"], "conf.d/old.toml": A["conf.d/old.toml"]}


class Box:
    """A config file with `A`, which holds as revision 1, while `B` is on its way as revision 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "etc/hxd.toml"
        self.place = Place(self.config_file, folder / "state/config-history")
        self.history = History(self.place.history)
        self.record = Unfinished(
            revision=2,
            former=1,
            why=Why.APPLY,
            who="root",
            began=1e9,
            seconds=30.0,
            runtime=str(folder / "run"),
            before=(Condition("model-refused", "m", "a detail", 1e9),),
        )

    def build(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.put(A)
        self.history.prepare()
        self.history.settle(self.history.record(A, Why.START, "start", 1e9).number, Outcome.APPLIED)
        self.history.record(B, Why.APPLY, "root", 1e9)

    def put(self, files: dict[str, bytes]) -> None:
        shutil.rmtree(self.config_file.parent, ignore_errors=True)
        (self.config_file.parent / "conf.d").mkdir(parents=True)
        for name, data in files.items():
            (self.config_file.parent / name).write_bytes(data)

    def apply(self) -> None:
        """As a daemon does, up to the watch."""
        self.place.begin(self.record)
        install(self.config_file, B, self.place.history)
        self.place.write(msgspec.structs.replace(self.record, watching=1e9))

    def start(self) -> Leftover | None:
        leftover = Leftover.find(self.config_file)
        if leftover is not None:
            leftover.settle()
        else:
            recover(self.config_file, self.place.history)
            self.place.clear()
        return leftover

    @property
    def files(self) -> dict[str, bytes]:
        return snapshot(self.config_file)

    @property
    def outcome(self) -> Outcome:
        return self.history.get(2).outcome

    def tidy(self) -> bool:
        found = {file.name for file in self.config_file.parent.rglob("*") if file.is_file()}
        return found == {Path(name).name for name in self.files} and not self.unfinished()

    def unfinished(self) -> bool:
        return (self.place.history / FILE).exists()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    box = Box(tmp_path / "box")
    box.build()
    return box


def test_whenever_the_daemon_dies_the_next_one_goes_on_or_has_what_was(box: Box) -> None:
    ends: list[str] = []

    def act(number: int) -> None:
        at_touch(number, die, of=CHANGES)
        box.apply()
        box.history.settle(2, Outcome.APPLIED)
        box.place.clear()

    def check() -> None:
        leftover = box.start()
        if leftover is not None and leftover.record is not None:
            assert (box.files, box.outcome) == (B, Outcome.PENDING)
            assert box.place.read() == leftover.record
            assert (leftover.record.attempts, leftover.record.before) == (2, box.record.before)
            ends.append("goes on")
        elif box.outcome is Outcome.APPLIED:
            assert box.files == B and box.tidy()
            ends.append("was over")
        else:
            assert box.files == A
            assert leftover is None or box.outcome is Outcome.ROLLED_BACK
            assert box.tidy()
            ends.append("was before")
        box.build()

    until_it_lives(act, check)
    assert list(dict.fromkeys(ends)) == ["was before", "goes on", "was over"]


@pytest.mark.parametrize("files", [B, HALF])
def test_whenever_the_way_back_is_cut_off_the_next_daemon_goes_it_to_the_end(
    box: Box, files: dict[str, bytes]
) -> None:
    def begin() -> None:
        box.build()
        box.place.begin(msgspec.structs.replace(box.record, attempts=MOST_ATTEMPTS))
        for name in A.keys() | B.keys():
            (box.config_file.parent / name).unlink(missing_ok=True)
        for name, data in files.items():
            (box.config_file.parent / name).write_bytes(data)

    def act(number: int) -> None:
        at_touch(number, die, of=CHANGES)
        box.start()

    def check() -> None:
        box.start()
        assert (box.files, box.outcome, box.tidy()) == (A, Outcome.ROLLED_BACK, True)
        begin()

    begin()
    assert until_it_lives(act, check) > 10
    assert (box.files, box.outcome, box.tidy()) == (A, Outcome.ROLLED_BACK, True)


def test_so_many_daemons_may_die_and_no_more(box: Box) -> None:
    box.apply()
    for attempt in range(2, MOST_ATTEMPTS + 1):
        leftover = box.start()
        assert leftover is not None and leftover.record is not None
        assert leftover.record.attempts == attempt
    leftover = box.start()
    assert leftover is not None and leftover.record is None
    assert leftover.reason == f"the daemon ended {MOST_ATTEMPTS} times in the middle of it"
    assert (box.files, box.history.get(2).reason) == (A, leftover.reason)


def edited(box: Box) -> None:
    (box.config_file.parent / "conf.d/new.toml").write_bytes(b"# by hand\n")


def on_its_way_back(box: Box) -> None:
    box.place.write(msgspec.structs.replace(box.record, reason="it got worse"))


def other_paths(box: Box) -> None:
    new = {"hxd.toml": B["hxd.toml"].replace(b"../logs", b"../other")}
    shutil.rmtree(box.place.history / "000002")
    box.history.record(new, Why.APPLY, "root", 1e9)
    box.put(new)
    box.place.begin(box.record)


@pytest.mark.parametrize(
    ("change", "reason", "files"),
    [
        (edited, "somebody has changed conf.d/new.toml meanwhile", None),
        (on_its_way_back, "it got worse", A),
        (other_paths, "paths would change", A),
        (lambda box: None, None, B),
    ],
)
def test_what_can_not_go_on_is_taken_back_and_edits_stay(
    box: Box, change: Callable[[Box], None], reason: str | None, files: dict[str, bytes] | None
) -> None:
    box.apply()
    change(box)
    as_it_was = box.files
    leftover = box.start()
    assert leftover is not None
    assert (leftover.record is None) == (reason is not None)
    assert (leftover.reason or "").startswith(reason or "")
    assert box.files == (as_it_was if files is None else files)
    assert box.outcome is (Outcome.PENDING if reason is None else Outcome.ROLLED_BACK)


def test_a_start_that_fails_may_take_it_back(box: Box) -> None:
    box.apply()
    leftover = box.start()
    assert leftover is not None and leftover.take_back("can't listen")
    assert (box.files, box.history.get(2).reason, box.tidy()) == (A, "can't listen", True)
    # Only once: there is nothing more to go back to.
    assert not leftover.take_back("again")


def test_another_daemon_at_work_is_left_alone(box: Box) -> None:
    box.apply()
    (box.folder / "run").mkdir()
    with (box.folder / "run/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another hxd is running"):
            box.start()
    assert box.place.read() == msgspec.structs.replace(box.record, watching=1e9)
    # Nor when it has come in between: a start that fails takes nothing back behind its back.
    leftover = box.start()
    with (box.folder / "run/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert leftover is not None and not leftover.take_back("can't listen")
    assert box.files == B


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff"])
def test_a_record_that_can_not_be_read_costs_the_watch_and_nothing_else(
    box: Box, data: bytes
) -> None:
    box.apply()
    (box.place.history / FILE).write_bytes(data)
    assert box.start() is None
    assert box.files == B and box.tidy()


@pytest.mark.parametrize("data", [b"", b"\0", b"/nowhere/at/all\n", b"/\xff\xfe"])
def test_a_sign_that_leads_nowhere_is_removed(box: Box, data: bytes) -> None:
    sign = box.config_file.parent / f".hxd.toml{SIGN}"
    sign.write_bytes(data)
    assert box.start() is None
    assert not sign.exists()


def test_what_is_left_of_the_watch(box: Box) -> None:
    watching = msgspec.structs.replace(box.record, watching=1e9)
    assert [watching.left(1e9 + gone) for gone in (-5, 0, 10, 29, 500)] == [30, 30, 20, 3, 3]
    assert box.record.left(2e9) == 30

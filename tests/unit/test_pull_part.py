"""What is kept of a file that is still arriving, and when it is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hxd.daemon.store.faults import StoreBroken
from hxd.daemon.store.pull.facts import Facts
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.medium import Medium
from hxd.daemon.store.pull.part import FORMAT, Part, State

FACTS = Facts("https://h/m.gguf", 100, '"one"')
EAGER = Limits(save_seconds=0, reserve=0)


class Times:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def part(
    folder: Path, facts: Facts = FACTS, limits: Limits = EAGER, now: Times | None = None
) -> Part:
    return Part(folder, "m.gguf", facts, limits, Medium(), now=now or Times())


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Path]:
    """A folder in which bytes 10 to 30 have arrived."""
    first = part(tmp_path)
    first.write(10, b"x" * 20)
    first.close()
    yield tmp_path


def state(folder: Path, facts: Facts = FACTS, **changed: object) -> None:
    whole = {"format": FORMAT, "facts": facts, "ranges": [(10, 30)], **changed}
    (folder / "m.gguf.state").write_bytes(msgspec.json.encode(whole))


def resumes(folder: Path, facts: Facts = FACTS) -> bool:
    found = part(folder, facts)
    try:
        assert found.covered in (0, 20)
        assert os.fstat(found.descriptor).st_size == (facts.size or 0)
        return found.resumed
    finally:
        found.close()


def test_what_was_written_down_is_resumed(begun: Path) -> None:
    again = part(begun)
    assert (again.covered, again.missing(0, 100)) == (20, [(0, 10), (30, 100)])
    assert os.pread(again.descriptor, 20, 10) == b"x" * 20
    again.close()


def test_a_state_that_may_be_believed_is(begun: Path) -> None:
    state(begun)
    assert resumes(begun)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2}, {"ranges": [(10, 101)]}, {"ranges": [(30, 10)]}, {"ranges": [(-1, 5)]},
        {"ranges": [(20, 30), (0, 5)]}, {"ranges": [(0, 10), (5, 20)]}, {"ranges": [(5, 5)]},
        {"ranges": "all"}, {"more": 1}, {"facts": {"url": "x"}}, {"facts": Facts("u", 100, '"b"')},
    ],
)  # fmt: skip
def test_a_state_that_contradicts_itself_begins_anew(
    begun: Path, changed: dict[str, object]
) -> None:
    state(begun, **changed)
    assert not resumes(begun)


def test_another_version_begins_anew(begun: Path) -> None:
    assert not resumes(begun, Facts("https://h/m.gguf", 100, '"two"'))
    assert not (begun / "m.gguf.state").exists()


@pytest.mark.parametrize("size", [0, 29, 99, 101])
def test_a_part_of_another_length_begins_anew(begun: Path, size: int) -> None:
    os.truncate(begun / "m.gguf.part", size)
    assert not resumes(begun)


def test_a_state_without_its_part_begins_anew(begun: Path) -> None:
    (begun / "m.gguf.part").unlink()
    assert not resumes(begun)


def test_a_state_is_written_after_a_second_or_many_bytes(tmp_path: Path) -> None:
    now = Times()
    limits = replace(EAGER, save_seconds=1.0, save_bytes=50)
    found = part(tmp_path, limits=limits, now=now)
    path = tmp_path / "m.gguf.state"

    def saved() -> list[tuple[int, int]]:
        return msgspec.json.decode(path.read_bytes(), type=State).ranges if path.exists() else []

    found.write(0, b"a" * 10)
    assert saved() == []
    now.now = 1.0
    found.write(10, b"a" * 10)
    assert saved() == [(0, 20)]
    found.write(20, b"a" * 10)
    assert saved() == [(0, 20)]
    found.write(40, b"a" * 40)
    assert saved() == [(0, 30), (40, 80)]
    found.write(80, b"a")
    found.close()
    assert saved() == [(0, 30), (40, 81)]


def test_a_symbolic_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "m.gguf.part").symlink_to(tmp_path / "other")
    with pytest.raises(StoreBroken):
        part(tmp_path)
    assert (tmp_path / "other").read_bytes() == b"precious"


def test_a_file_gets_its_name_once_and_is_only_its_owners(tmp_path: Path) -> None:
    found = part(tmp_path)
    found.write(0, b"y" * 100)
    assert found.whole
    assert found.publish() == tmp_path / "m.gguf"
    found.close()
    assert {file.name for file in tmp_path.iterdir()} == {"m.gguf", "m.gguf.state"}
    assert (tmp_path / "m.gguf").stat().st_mode & 0o777 == 0o600


def whole(folder: Path) -> Path:
    """A file that was published by the pull, and has a second name since."""
    first = part(folder)
    first.write(0, b"y" * 100)
    first.publish()
    first.close()
    (folder / "version.gguf").hardlink_to(folder / "m.gguf")
    return folder / "version.gguf"


def test_a_file_that_a_version_has_too_is_taken_as_it_is(tmp_path: Path) -> None:
    version = whole(tmp_path)
    again = part(tmp_path)
    assert again.whole and os.path.samestat(os.fstat(again.descriptor), version.stat())
    again.close()


@pytest.mark.parametrize(
    "facts", [Facts("https://h/m.gguf", 50, '"two"'), Facts("https://h/m.gguf", None, '"two"')]
)
def test_a_file_that_a_version_has_too_is_never_written_to(tmp_path: Path, facts: Facts) -> None:
    version = whole(tmp_path)
    again = part(tmp_path, facts)
    again.write(0, b"z" * 50)
    again.close()
    assert version.read_bytes() == b"y" * 100
    assert (tmp_path / "m.gguf.part").read_bytes() == b"z" * 50


def test_a_last_answer_that_is_shorter_than_one_cut_off_before_is_all_there_is(
    tmp_path: Path,
) -> None:
    found = part(tmp_path, Facts("https://h/m.gguf", None, '"one"'))
    found.write(0, b"a" * 50)
    found.write(0, b"b" * 30)
    found.ended(30)
    assert found.whole
    found.close()
    assert (tmp_path / "m.gguf.part").read_bytes() == b"b" * 30

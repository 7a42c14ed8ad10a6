"""The file of what has happened: a line for each event, whatever ended the daemon before."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from hxd.clock import SystemClock
from hxd.daemon import events
from hxd.daemon.events import FILE, Events
from tests.dying import ended, fork


def told(folder: Path) -> list[Any]:
    """What can be read of each line; None of one that was cut off."""
    found: list[Any] = []
    for line in (folder / FILE).read_text().splitlines():
        try:
            found.append(json.loads(line)["step"])
        except ValueError:
            found.append(None)
    return found


async def record(folder: Path, *steps: str) -> None:
    kept = Events(SystemClock(), folder)
    for step in steps:
        kept.record("rollout", "m", step)
    await kept.flush()
    assert kept.lost == 0


async def test_a_line_that_was_cut_off_takes_no_other_along(tmp_path: Path) -> None:
    await record(tmp_path, "first", "second")
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-9])
    await record(tmp_path, "third")
    await record(tmp_path, "fourth")
    assert told(tmp_path) == ["first", None, "third", "fourth"]


def test_a_disk_that_takes_only_a_part_is_told(tmp_path: Path) -> None:
    """A limit on the file's size cuts a write short, as a full disk does."""

    def act() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        kept = Events(SystemClock(), tmp_path)
        batch = [kept.record("rollout", "m", "a step", number=number) for number in range(9)]
        try:
            events._append(tmp_path / FILE, batch)
        except OSError:
            return 7
        return 0

    assert ended(fork(act)) == 7
    assert len((tmp_path / FILE).read_bytes()) == 300


async def test_the_former_file_is_kept_when_one_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_BYTES", 150)
    await record(tmp_path, "first")
    await record(tmp_path, "second")
    assert told(tmp_path) == ["second"]
    assert json.loads((tmp_path / "events.old.jsonl").read_text())["step"] == "first"

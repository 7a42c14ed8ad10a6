"""What of rollouts outlives the daemon: a file that is whole, or counts for nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hxd.clock import SystemClock
from hxd.config import ModelSettings
from hxd.daemon.rollout import record as records
from hxd.daemon.rollout.ledger import Ledger
from hxd.daemon.rollout.record import FILE, Ask, Deployed, Record, fingerprint
from hxd.daemon.store.sources import AS_CONFIGURED, Choice

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
maybe = st.none() | text
choices = st.builds(Choice, st.none() | st.integers(1, 1 << 31), maybe, maybe)
finite = st.floats(0, 1e12)
asks = st.builds(
    Ask,
    model=text,
    choice=choices,
    share=st.none() | st.floats(0.001, 0.999),
    seconds=finite,
    at_least=st.integers(0, 1_000_000_000),
    compare=st.booleans(),
    mode=st.sampled_from(["auto", "availability", "resource"]),
    by_conversation=st.booleans(),
    began=finite,
    attempts=st.integers(0, 9),
    back=st.booleans(),
    blame=st.booleans(),
    fresh=st.booleans(),
    why=text,
)
deployed = st.builds(
    Deployed, text, choices, st.lists(choices, max_size=10).map(tuple), st.none() | asks
)


# Each is written and synced.
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(models=st.dictionaries(text, deployed, max_size=5))
def test_what_is_saved_is_what_the_next_daemon_reads(
    tmp_path: Path, models: dict[str, Deployed]
) -> None:
    Record(tmp_path).save(models)
    found = Record(tmp_path)
    found.load()
    assert found.models == models
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]


GOOD = json.dumps({"m": {"configured": "x", "choice": {"version": 2}}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
        b"\0" * 4096,
        b"\xff\xfe\x00garbage",
        GOOD.replace(b'"x"', b'"\xff\xff"'),
        b"[]",
        b"null",
        b'{"m": 7}',
        b'{"m": {"configured": "x", "choice": {"version": "two"}}}',
        b'{"m": {"choice": {}}}',
        b"[" * 100_000,
        GOOD + b" " * records.MOST_BYTES + b"{",
        os.urandom(2000),
    ],
)
def test_what_cannot_be_read_is_put_aside_and_counts_for_nothing(
    tmp_path: Path, data: bytes
) -> None:
    (tmp_path / FILE).write_bytes(data)
    found = Record(tmp_path)
    found.load()
    assert found.models == {}
    # Who only looks, as a check does, leaves it where it is.
    assert (tmp_path / FILE).read_bytes() == data
    # It does not come back, and does not keep the next one from being written.
    found.save({"m": Deployed("x", Choice(version=3))})
    assert (tmp_path / "deployments.unreadable").read_bytes() == data
    again = Record(tmp_path)
    again.load()
    assert again.models["m"].choice == Choice(version=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.binary(max_size=300))
def test_no_bytes_keep_a_daemon_from_starting(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    Record(tmp_path).load()


def test_a_folder_or_a_forbidden_file_in_its_place_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    found = Record(tmp_path)
    found.load()
    assert found.models == {}


def test_without_a_file_there_is_nothing(tmp_path: Path) -> None:
    found = Record(tmp_path)
    found.load()
    assert found.models == {}


def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Record(tmp_path)
    kept.save({"m": Deployed("x", Choice(version=2))})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        kept.save({"m": Deployed("x", Choice(version=3))})
    assert kept.models["m"].choice.version == 2
    found = Record(tmp_path)
    found.load()
    assert found.models == kept.models


def test_what_is_recorded_counts_until_the_configuration_says_otherwise(tmp_path: Path) -> None:
    before = ModelSettings(source="builtin:demo", variants=("q8_0",))
    found = Record(tmp_path)
    chosen = Deployed(fingerprint(before), Choice(version=1), (Choice(version=3),))
    found.save({"m": chosen})
    # If that can't be had, nor anything before it, the configuration is the last resort.
    counts = Deployed(fingerprint(before), Choice(version=1), (AS_CONFIGURED, *chosen.former))
    assert found.of("m", before) == counts
    assert found.of("other", before) == Deployed(fingerprint(before), AS_CONFIGURED)
    for changed in (
        ModelSettings(source="builtin:demo@1", variants=("q8_0",)),
        ModelSettings(source="builtin:demo", variants=("q4_0", "q8_0")),
        ModelSettings(source="builtin:demo", variants=("q8_0",), plugin="llama_cpp@1.0.0"),
    ):
        assert found.of("m", changed) == Deployed(fingerprint(changed), AS_CONFIGURED)
    grown = ModelSettings(source="builtin:demo", variants=("q8_0",), replicas=7, grace=0.0)
    assert found.of("m", grown) == counts


class SlowDisk(Record):
    """Each write waits until it is told to `go`; `most` is how many there were at a time."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.inside = self.most = 0

    def save(self, models: dict[str, Deployed]) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.begun.release()
        self.go.wait()
        super().save(models)
        self.inside -= 1


async def test_a_write_whose_asker_has_left_is_not_met_by_the_next_one(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path)
    ledger = Ledger(disk, lambda model: "x", SystemClock())
    first = asyncio.create_task(ledger.write("m", choice=Choice(1)))
    await asyncio.to_thread(disk.begun.acquire)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(ledger.write("m", choice=Choice(2)))
    third = asyncio.create_task(ledger.write("n", choice=Choice(3)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not disk.begun.acquire(blocking=False)
    disk.go.set()
    await asyncio.gather(second, third)
    assert disk.most == 1
    found = Record(tmp_path)
    found.load()
    assert {name: one.choice.version for name, one in found.models.items()} == {"m": 2, "n": 3}


class FullDisk(Record):
    """Takes nothing for so many times."""

    def __init__(self, state: Path, times: int) -> None:
        super().__init__(state)
        self.times = times

    def save(self, models: dict[str, Deployed]) -> None:
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.ENOSPC, "no space left")
        super().save(models)


class Ticks:
    """Sleeps so many times and then for good; `over` says when."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.over = asyncio.Event()

    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.times -= 1
        if self.times < 0:
            self.over.set()
            await asyncio.get_running_loop().create_future()


async def test_what_the_disk_did_not_take_is_written_once_it_does(tmp_path: Path) -> None:
    ticks = Ticks(3)
    ledger = Ledger(FullDisk(tmp_path, 3), lambda model: "x", ticks)
    await ledger.write("m", choice=Choice(1))
    assert ledger.unsaved == "no space left"
    writing = asyncio.create_task(ledger.run())
    await ticks.over.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert ledger.unsaved is None
    found = Record(tmp_path)
    found.load()
    assert found.models["m"].choice == Choice(1)

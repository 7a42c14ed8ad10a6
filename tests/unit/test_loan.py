"""What a drill had when its daemon ended is as it was before, once the next one has looked."""

from __future__ import annotations

from pathlib import Path

import pytest

from hxd.config import durable
from hxd.daemon.rollout.loan import recover
from hxd.daemon.rollout.record import FILE, Ask, Before, Deployed, Record
from hxd.daemon.store import quarantine
from hxd.daemon.store.library import Library
from hxd.daemon.store.sources import AS_CONFIGURED, Choice
from hxd.daemon.store.stage import Stage
from tests import tiny

WAS = (Choice(3, "q8_0"),)
BEFORE = Before(
    choice=AS_CONFIGURED, former=WAS, name="m", version=2, label="stable", number=2, spoils=True
)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Two versions, of which a drill has put the second in quarantine and the first in service."""
    library = Library(tmp_path / "store")
    library.prepare()
    for seed in (1, 2):
        with Stage.of(library, [tiny.write(tmp_path / "m.gguf", seed)], "m", take="copy") as stage:
            stage.publish({}, labels=["stable"])
    library.set_label("m", "stable", 1)
    quarantine.impose(library, "m", 2, "it is corrupted", cause="bytes")
    record = Record(tmp_path)
    pending = Ask(model="m", choice=Choice(1))
    record.save(
        {
            "m": Deployed("c", Choice(1), (*WAS, AS_CONFIGURED), pending, BEFORE),
            "other": Deployed("c", Choice(7)),
        }
    )
    return library


def recorded(folder: Path) -> dict[str, Deployed]:
    record = Record(folder)
    record.load()
    return record.models


def test_the_next_daemon_begins_from_what_served_before_the_drill(
    library: Library, tmp_path: Path
) -> None:
    said = list(recover(tmp_path, library))
    assert said == ["m: a drill was interrupted; what served before it serves again"]
    assert library.version("m", 2).mark is None
    assert library.labels("m") == {"stable": 2}
    found = recorded(tmp_path)
    assert found == {"m": Deployed("c", AS_CONFIGURED, WAS), "other": Deployed("c", Choice(7))}
    assert list(recover(tmp_path, library)) == []


def test_a_note_of_a_drill_that_can_not_be_taken_off_the_disk_binds_nobody(
    library: Library, tmp_path: Path
) -> None:
    obstacle = durable.part_of(tmp_path / FILE)
    obstacle.mkdir()
    said = list(recover(tmp_path, library))
    assert said[1].startswith("what a drill left behind stays recorded: ")
    assert recorded(tmp_path)["m"] == Deployed("c", AS_CONFIGURED, WAS)
    assert library.labels("m") == {"stable": 2}
    obstacle.rmdir()
    later = Record(tmp_path)
    later.load()
    later.save({**later.models, "other": Deployed("c", Choice(8))})
    assert list(recover(tmp_path, library)) == []


def test_a_file_that_is_corrupted_in_truth_stays_in_quarantine(
    library: Library, tmp_path: Path
) -> None:
    version = library.version("m", 2)
    (variant,) = version.variants()
    with version.files(variant)[0].open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    (said,) = recover(tmp_path, library)
    assert said.startswith("m: a drill was interrupted, and not all is as before: 'm'@2 stays in")
    assert library.version("m", 2).quarantined
    assert recorded(tmp_path)["m"].before is None


def test_a_drill_of_a_swap_lifts_no_quarantine(library: Library, tmp_path: Path) -> None:
    record = Record(tmp_path)
    before = Before(choice=AS_CONFIGURED, former=(), name="m", version=2)
    record.save({"m": Deployed("c", Choice(1), (), None, before)})
    assert len(list(recover(tmp_path, library))) == 1
    assert library.version("m", 2).quarantined
    assert library.labels("m") == {"stable": 1}

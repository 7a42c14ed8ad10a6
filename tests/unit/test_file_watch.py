"""What is changed in place under the workers that have it mapped is seen, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.clock import SystemClock
from hxd.config import load
from hxd.daemon.inspection import inspect
from hxd.daemon.store.sources import Source
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.stores import Stores
from hxd.daemon.supervise.file_watch import FileWatch
from tests import tiny
from tests.support import write_config


class Box:
    """A version whose file has a second name, `link`, and is served."""

    def __init__(self, tmp_path: Path) -> None:
        config = load(write_config(tmp_path, '[models.m]\nplugin = "llama_cpp"\nsource = "m"\n'))
        library = Stores.of(config.paths.state).models
        self.link = tiny.write(tmp_path / "m.gguf", 1)
        with Stage.of(library, [self.link], "m") as stage:
            self.file = stage.publish({}).files("f16")[0]
        if not self.file.samefile(self.link):  # A clone, where the file system can.
            self.link.unlink()
            self.link.hardlink_to(self.file)
        self.sources = [inspect(config).sources["m"]]
        self.told: list[tuple[Source, str]] = []
        self.problems: dict[str, str] = {}
        self.watch = FileWatch(
            lambda: self.sources, library, self.changed, self.problems, SystemClock()
        )

    async def changed(self, source: Source, why: str) -> None:
        self.told.append((source, why))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


async def test_a_file_that_is_changed_in_place_is_told_once(box: Box) -> None:
    await box.watch.look()
    tiny.flip(box.link)
    for _ in range(2):
        await box.watch.look()
    ((source, why),) = box.told
    assert source is box.sources[0]
    assert f"{box.file} is corrupted: its sha256 is" in why and "in place" in why
    assert box.problems == {source.key: why}


@pytest.mark.parametrize(
    "act",
    [
        lambda box: os.utime(box.link),
        lambda box: box.link.unlink(),
        lambda box: box.file.unlink(),
        lambda box: tiny.write(box.link.with_name("new"), 2).replace(box.file),
    ],
    ids=["touched", "other name gone", "removed", "replaced"],
)
async def test_a_file_whose_bytes_are_still_mapped_is_not(
    box: Box, act: Callable[[Box], None]
) -> None:
    await box.watch.look()
    act(box)
    await box.watch.look()
    assert box.told == [] and box.problems == {}


async def test_what_was_mended_and_is_loaded_again_is_watched_again(box: Box) -> None:
    await box.watch.look()
    tiny.flip(box.link)
    await box.watch.look()
    sources, box.sources = box.sources, []  # Its workers are ended ...
    await box.watch.look()
    assert box.problems == {}
    tiny.write(box.link.with_name("new"), 1).replace(box.file)
    box.sources = sources  # ... and come back with the good bytes.
    await box.watch.look()
    assert len(box.told) == 1
    tiny.flip(box.file)
    await box.watch.look()
    assert len(box.told) == 2

"""A copy with a flipped byte stands in for a file as long as it is told to, and the file is never
touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from hxd.daemon.store.doctor import examine
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.integrity import ensure, verify
from hxd.daemon.store.library import Library
from hxd.daemon.store.spoil import spoil
from hxd.daemon.store.stage import Stage
from tests import tiny


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "store")
    library.prepare()
    with Stage.of(library, [tiny.write(tmp_path / "m.gguf", 1)], "m") as stage:
        stage.publish({})
    return library


def test_what_is_loaded_is_refused_while_the_copy_stands_in_and_the_file_is_as_it_was(
    library: Library,
) -> None:
    version = library.version("m", 1)
    (variant,) = version.variants()
    file = version.files(variant)[0]
    was, stat = file.read_bytes(), file.stat()
    spoiled = spoil(library, version, variant)
    assert ensure(library, version, variant) == file
    with spoiled.standing_in():
        with pytest.raises(Corrupt, match=f"{spoiled.copy} is corrupted: its sha256 is"):
            ensure(library, version, variant)
        # Whoever looks at the disk sees that nothing is wrong with it.
        assert verify(library, "m") == []
    assert ensure(library, version, variant) == file
    copied = spoiled.copy.read_bytes()
    assert [at for at, pair in enumerate(zip(was, copied, strict=True)) if pair[0] != pair[1]] == [
        spoiled.offset
    ]
    spoiled.drop()
    assert (file.read_bytes(), file.stat()) == (was, stat)
    assert examine(library) == []


def test_a_copy_that_is_left_behind_is_swept_up_by_the_next_start(library: Library) -> None:
    version = library.version("m", 1)
    (variant,) = version.variants()
    with spoil(library, version, variant).standing_in():
        pass
    again = Library(library.root)
    again.prepare()
    assert examine(again) == []
    assert [one.name for one in again.workspaces.folder.iterdir()] == ["pull"]

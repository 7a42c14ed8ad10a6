"""Files are opened below one folder, by the newer system call and by the older way alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.faults import Corrupt

WAYS: list[Callable[[Beneath, Path], int]] = [Beneath.open, Beneath.open_stepwise]


@pytest.fixture(params=WAYS, ids=["openat2", "stepwise"])
def way(request: pytest.FixtureRequest) -> Callable[[Beneath, Path], int]:
    found: Callable[[Beneath, Path], int] = request.param
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Beneath:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/b/file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    return Beneath(tmp_path / "root")


def test_a_file_in_a_folder_is_opened(tree: Beneath, way: Callable[[Beneath, Path], int]) -> None:
    with os.fdopen(way(tree, tree.root / "a/b/file")) as file:
        assert file.read() == "inside"


def test_the_root_itself_may_be_a_link(
    tree: Beneath, way: Callable[[Beneath, Path], int], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tree.root)
    os.close(way(Beneath(tmp_path / "link"), tmp_path / "link/a/b/file"))


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "a/b/file", "."])
def test_no_link_is_followed_wherever_it_leads(
    tree: Beneath, way: Callable[[Beneath, Path], int], target: str
) -> None:
    (tree.root / "a/link").symlink_to(target)
    with pytest.raises(Corrupt, match="symbolic link"):
        way(tree, tree.root / "a/link")


def test_no_link_is_followed_on_the_way(tree: Beneath, way: Callable[[Beneath, Path], int]) -> None:
    (tree.root / "link").symlink_to("a")
    with pytest.raises(Corrupt, match="symbolic link"):
        way(tree, tree.root / "link/b/file")


def test_pipes_devices_and_folders_are_no_files(
    tree: Beneath, way: Callable[[Beneath, Path], int]
) -> None:
    os.mkfifo(tree.root / "pipe")
    for name in ("pipe", "a"):
        with pytest.raises(Corrupt, match="not a file"):
            way(tree, tree.root / name)


def test_a_way_out_is_refused_and_a_missing_file_is_missing(
    tree: Beneath, way: Callable[[Beneath, Path], int]
) -> None:
    with pytest.raises(Corrupt):
        way(tree, tree.root / "../secret")
    with pytest.raises(FileNotFoundError):
        way(tree, tree.root / "a/none")
    with pytest.raises(FileNotFoundError):
        way(tree, tree.root / "none/file")

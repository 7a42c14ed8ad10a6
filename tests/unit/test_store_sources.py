"""What models load, where their files can't be read: one model is at fault, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hxd.config import Config, load
from hxd.daemon.inspection import inspect
from hxd.daemon.store.library import Library
from hxd.daemon.store.stage import Stage
from hxd.daemon.store.stores import Stores
from tests import tiny
from tests.bad_sector import unreadable


def config(tmp_path: Path, source: str) -> Config:
    file = tmp_path / "hxd.toml"
    file.write_text(
        f'[paths]\nstate = "{tmp_path}"\n'
        f'[models.m]\nplugin = "llama_cpp"\nsource = "{source}"\n'
        '[models.other]\nplugin = "echo"\n'
    )
    return load(file)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """`m` has two versions; `stable` is the second."""
    library = Stores.of(tmp_path).models
    for seed in (1, 2):
        with Stage.of(library, [tiny.write(tmp_path / "m.gguf", seed)], "m", take="copy") as stage:
            stage.publish({}, labels=["stable"])
    library.digests.forget()
    return library


def test_a_version_that_the_disk_does_not_give_leaves_the_one_before(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(monkeypatch, [library.models / "m/2/m.gguf"])
    found = inspect(config(tmp_path, "m"))
    assert {name: source.version for name, source in found.sources.items()} == {"m": 1, "other": 1}
    assert "Input/output error" in str(found.instead["m"])


def test_a_model_that_the_disk_does_not_give_leaves_the_others(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(monkeypatch, [library.models / f"m/{number}/m.gguf" for number in (1, 2)])
    found = inspect(config(tmp_path, "m"))
    assert list(found.sources) == ["other"]
    assert "Input/output error" in str(found.refused["m"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./loop.gguf", "leads nowhere"), ("./pipe.gguf", "a pipe or a device"),
        ("./folder.gguf", "a folder"), ("~nobody-of-this-name/m.gguf", "no such file"),
    ],
)  # fmt: skip
def test_a_source_that_is_no_file_is_told_and_not_waited_for(
    tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    found = inspect(config(tmp_path, source))
    assert list(found.sources) == ["other"] and words in str(found.refused["m"])

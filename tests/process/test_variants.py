"""Quantized variants are made once, served as such, and never seen half-written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from dataclasses import replace
from pathlib import Path

import pytest

from hxd.config import load
from hxd.daemon.inspection import inspect
from hxd.daemon.store import plugins
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.variants import Variants, clean
from hxd.daemon.supervise.workers import PrepareError
from tests import tiny
from tests.plugin_packages import plugin
from tests.support import ROOT, chat, post, run_hxd, running, write_config

Q4 = '[models.m]\nsource = "builtin:demo"\ncontext = 512\nvariants = ["q4_0", "q2_k"]\n'


def made(folder: Path) -> list[Path]:
    """Without the notes beside them."""
    found = (folder / "cache/variants").iterdir()
    return sorted(file for file in found if file.suffix != ".json")


async def test_a_variant_is_made_from_the_source_and_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path, Q4)
    async with running(config) as daemon:
        status, _, headers = await post(daemon.url + "/v1/chat/completions", chat("m", "hi"))
        assert (status, headers["x-hxd-variant"]) == (200, "q4_0")
        status, _, _ = await post(daemon.url + "/v1/chat/completions", chat("m:q4_0@stable", "hi"))
        assert status == 200
        status, _, _ = await post(daemon.url + "/v1/chat/completions", chat("m:q2_k", "hi"))
        assert status == 404
    (file,) = made(tmp_path)
    assert file.suffix == ".gguf"
    before = file.stat()
    file.with_suffix(".part").write_bytes(b"half")
    async with running(config):
        assert [(f.name, f.stat().st_mtime_ns) for f in made(tmp_path)] == [
            (file.name, before.st_mtime_ns)
        ]


def test_a_variant_that_does_not_exist_is_found_by_check(tmp_path: Path) -> None:
    config = write_config(tmp_path, Q4.replace("q2_k", "q4_k"))
    done = run_hxd("check", "--config", str(config))
    assert done.returncode == 78
    assert "models.m.variants: no variant 'q4_k'. Did you mean 'q4_k_s'?" in done.stderr


@pytest.mark.parametrize("number", ["1", "2", "stable"])
async def test_each_version_of_the_demo_model_says_which_it_is(tmp_path: Path, number: str) -> None:
    model = f'[models.m]\nsource = "builtin:demo@{number}"\ncontext = 512\n'
    async with running(write_config(tmp_path, model)) as daemon:
        _, _, headers = await post(daemon.url + "/v1/chat/completions", chat("m", "hi"))
        assert headers["x-hxd-version"] == number.replace("stable", "2")


def replica_of(tmp_path: Path, file: Path, does: str) -> tuple[Replica, Variants]:
    """One that wants `file` as q4_0, by a plugin that `does` so."""
    plugin(tmp_path / "plugins/makes", name="makes", more=does)
    usable, _ = plugins.scan([tmp_path / "plugins"])
    models = f'[models.m]\nsource = "{file}"\ncontext = 512\nvariants = ["q4_0"]\n'
    inspection = inspect(load(write_config(tmp_path, models)))
    source = replace(inspection.sources["m"], plugin=usable["makes"])
    return Replica("m-1", source), Variants(
        tmp_path / "cache", inspection.stores.models, plugins.check
    )


async def test_a_variant_that_can_not_be_made_leaves_nothing_half_written(tmp_path: Path) -> None:
    fails = "@hookimpl\ndef hxd_quantize(target):\n    target.write_bytes(b'half')\n    1 / 0\n"
    replica, variants = replica_of(tmp_path, ROOT / "hxd/demo/2/hxd-demo-f16.gguf", fails)
    with pytest.raises(PrepareError, match="ZeroDivisionError"):
        await variants.file_for(replica)
    assert made(tmp_path) == []


async def test_a_variant_whose_bytes_have_changed_is_made_again(tmp_path: Path) -> None:
    copies = (
        "@hookimpl\ndef hxd_quantize(source, target):\n"
        "    target.write_bytes(source.read_bytes())\n    return True\n"
    )
    source = tiny.write(tmp_path / "m.gguf", 1)
    replica, variants = replica_of(tmp_path, source, copies)
    file = await variants.file_for(replica)
    assert file is not None and made(tmp_path) == [file]
    first = file.stat().st_ino
    assert await variants.file_for(replica) == file and file.stat().st_ino == first
    tiny.flip(file)
    assert await variants.file_for(replica) == file
    assert file.read_bytes() == source.read_bytes()
    clean(tmp_path / "cache")
    assert made(tmp_path) == [file]
    tiny.write(source, 2, size=8192)
    clean(tmp_path / "cache")
    assert list((tmp_path / "cache/variants").iterdir()) == []


async def test_what_a_plugin_started_for_a_variant_ends_with_its_worker(tmp_path: Path) -> None:
    leaves = (
        "import subprocess\n@hookimpl\ndef hxd_quantize(source, target):\n"
        "    target.write_bytes(source.read_bytes())\n"
        "    left = subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL)\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(left.pid))\n    return True\n"
    )
    replica, variants = replica_of(tmp_path, tiny.write(tmp_path / "m.gguf", 1), leaves)
    await variants.file_for(replica)
    with contextlib.suppress(ProcessLookupError):
        left = os.pidfd_open(int((tmp_path / "pid").read_text()))
        ended, _, _ = await asyncio.to_thread(select.select, [left], [], [], 20)
        os.close(left)
        assert ended

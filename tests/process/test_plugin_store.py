"""Installed plugins in real workers: two versions at one time, one with packages of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hxd import wire
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.work import Work
from hxd.daemon.supervise.process import Program, WorkerProcess
from tests.plugin_packages import below, contents, plugin, tarred, wheel, zipped
from tests.support import ROOT, Owner

SECONDS = 60
INSTALLS = """
import sys
from pathlib import Path
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.work import Work
store = PluginStore(Path(sys.argv[1]))
store.prepare()
store.install(Path(sys.argv[2]), Work(), trust=True)
"""
# Of a package that comes as sources: pip runs it in a process of its own, and it never ends.
BUILDS = """
import socket, tempfile
def build_wheel(*_):
    said = socket.socket(socket.AF_UNIX)
    said.connect({path!r})
    said.sendall(tempfile.gettempdir().encode())
    said.recv(1)
"""


@contextlib.asynccontextmanager
async def started(plugin: Plugin) -> AsyncIterator[tuple[WorkerProcess, Owner]]:
    owner = Owner()
    program = Program(plugin.manifest.name, plugin.folder, plugin.digest, python=plugin.python)
    process = await WorkerProcess.spawn(program, owner)
    try:
        yield process, owner
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def loaded(plugin: Plugin) -> AsyncIterator[WorkerProcess]:
    async with started(plugin) as (process, owner), asyncio.timeout(SECONDS):
        hello = await owner.said.get()
        assert (hello.plugin, hello.version) == (plugin.manifest.name, plugin.manifest.version)
        process.link.send(wire.Load("m", None, 1024, 2, 1, {}))
        said = await owner.said.get()
        assert isinstance(said, wire.Loaded), said
        yield process


async def answer(worker: WorkerProcess) -> str:
    answers: asyncio.Queue[wire.Answer] = asyncio.Queue()
    order = wire.Generate(id=1, seed=1, text="?", sampling=wire.Sampling(), max_tokens=100)
    worker.link.call(order, answers.put_nowait)
    text = ""
    async with asyncio.timeout(SECONDS):
        while isinstance(said := await answers.get(), wire.Delta):
            text += said.text
    return text


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    store = PluginStore(tmp_path / "store")
    store.prepare()
    return store


async def test_two_versions_run_side_by_side(store: PluginStore, tmp_path: Path) -> None:
    one = plugin(tmp_path / "1", version="1.0", answer="'from one'")
    two = plugin(tmp_path / "2", version="2.0", answer="'from two'")
    (tmp_path / "1.zip").write_bytes(zipped(below("says-1.0", contents(one))))
    (tmp_path / "2.tar.gz").write_bytes(tarred(contents(two)))
    for file in ("1.zip", "2.tar.gz"):
        store.install(tmp_path / file, Work(), trust=True)
    catalog = store.catalog()
    first, second = catalog.choose("says@1.0", None), catalog.choose("says", None)
    async with loaded(first) as old, loaded(second) as new:
        assert await asyncio.gather(answer(old), answer(new)) == ["from one", "from two"]
        # Removing what runs is the caller's to refuse; a worker has read all that it needs.
        store.remove("says", "1.0")
        assert await answer(old) == "from one"


@pytest.mark.timeout(180)
async def test_a_worker_has_the_packages_that_its_plugin_asks_for(
    store: PluginStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "wheels", "hxdtest", version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    for version in ("1.0", "2.0"):
        source = plugin(
            tmp_path / version,
            version=version,
            requirements=(f"hxdtest=={version}",),
            more="import hxdtest",
            answer="'hxdtest ' + hxdtest.version",
        )
        store.install(source, Work(), trust=True)
    catalog = store.catalog()
    first, second = catalog.choose("says@1.0", None), catalog.choose("says@2.0", None)
    assert first.python != second.python
    async with loaded(first) as old, loaded(second) as new:
        assert await asyncio.gather(answer(old), answer(new)) == ["hxdtest 1.0", "hxdtest 2.0"]


async def test_a_file_swapped_after_the_check_is_not_imported(
    store: PluginStore, tmp_path: Path
) -> None:
    store.install(plugin(tmp_path / "source"), Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    (chosen.folder / "main.py").write_text("raise SystemExit('evil')")
    async with started(chosen) as (_, owner), asyncio.timeout(SECONDS):
        said = await owner.said.get()
        assert isinstance(said, wire.Failed)
        assert "main.py is not the file that plugin.toml lists" in said.message


@pytest.mark.timeout(180)
def test_pip_and_what_it_builds_die_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = f"\0{tmp_path}"
    project = '[build-system]\nrequires = []\nbuild-backend = "builds"\nbackend-path = ["."]\n'
    files = {"pyproject.toml": project, "builds.py": BUILDS.format(path=way)}
    files["PKG-INFO"] = "Metadata-Version: 2.1\nName: hxdtest\nVersion: 1.0\n"
    sources = below("hxdtest-1.0", {name: text.encode() for name, text in files.items()})
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/hxdtest-1.0.tar.gz").write_bytes(tarred(sources))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    source = plugin(tmp_path / "source", requirements=("hxdtest",))
    root = tmp_path / "store"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(way)
        listener.listen()
        listener.settimeout(SECONDS)
        command = [sys.executable, "-c", INSTALLS, root, source]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as daemon:
            builder, _ = listener.accept()
            with builder:
                builder.settimeout(SECONDS)
                assert Path(builder.recv(4096).decode()).parent == root / ".tmp"
                daemon.kill()
                assert builder.recv(1) == b""
    PluginStore(root).prepare()
    assert list(root.glob("*/*")) == []

"""Requirements, and environments of their own: made by a real pip, from wheels in a folder."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from hxd.daemon.store import plugin_requirements
from hxd.daemon.store.faults import Cancelled, Corrupt, SourceFailed, StoreError
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.work import Work
from hxd.pluginfile import PluginError, PluginFile
from tests.plugin_packages import plugin, wheel

HERE = metadata.version("pluggy")


def needing(*requirements: str, extra: str | None = None) -> PluginFile:
    return PluginFile("mine", "1", 1, "main", ("none",), {}, requirements, extra)


@pytest.mark.parametrize(
    "requirement",
    [
        "pluggy",
        f"pluggy=={HERE}",
        "Pluggy >= 1.0, < 99",
        "pluggy~=1.0",
        "pluggy!=0.1",
        "no-such-package; python_version < '3'",
        "hxd",
        "msgspec[toml]",
    ],
)
def test_what_this_interpreter_has_is_enough(requirement: str) -> None:
    plugin_requirements.check(needing(requirement))


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("no-such-package>=1", "needs no-such-package>=1: install no-such-package>=1"),
        ("pluggy>=99", f"needs pluggy>=99, {HERE} is installed: install pluggy>=99"),
        ("pluggy<1", "is installed"),
        ("prometheus-client[twisted]", r"client\[twisted\], and for that twisted: install"),
        ("hxd>=99", "needs hxd>=99"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(requirement: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        plugin_requirements.check(needing(requirement))


def test_the_extra_that_brings_it_is_named() -> None:
    with pytest.raises(PluginError, match=r"install hxd\[llama\]"):
        plugin_requirements.check(needing("pluggy>=99", extra="llama"))


def test_one_set_of_requirements_has_one_key_in_every_order() -> None:
    key = plugin_requirements.key
    assert key(needing("b>=1", "a<2")) == key(needing("a<2", "b>=1"))
    assert key(needing("a<2")) != key(needing("a<3"))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    store = PluginStore(tmp_path / "store")
    store.prepare()
    return store


def environments(store: PluginStore) -> list[str]:
    folder = store._root / ".venvs"
    return sorted(path.name for path in folder.glob("*"))


def said(python: Path | None, code: str) -> str:
    done = subprocess.run([str(python), "-I", "-B", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(180)
def test_an_environment_is_shared_checked_mended_and_removed_with_its_last_user(
    store: PluginStore, wheels: Path, tmp_path: Path
) -> None:
    # Of click hxd has another version; the one that the plugin asks for must win.
    wheel(wheels, "hxdtest", "2.0")
    wheel(wheels, "click", "7.99")
    wanted = ("hxdtest>=1", "click==7.99")
    first = plugin(tmp_path / "1", version="1.0", requirements=wanted)
    second = plugin(tmp_path / "2", version="2.0", requirements=wanted[::-1])

    # Untrusted: nothing of it is installed, nor of what it asks for.
    assert store.install(first, Work()).environment is None
    assert environments(store) == []

    lines: list[str] = []
    python = store.trust("says", "1.0", Work(lambda step, *_: lines.append(step))).environment
    assert any("hxdtest" in line for line in lines)
    assert said(python, "import click; print(click.version)") == "7.99"
    assert said(python, "import hxdtest; print(hxdtest.version)") == "2.0"
    assert said(python, "import hxd.worker.main, msgspec; print('ok')") == "ok"
    assert store.install(second, Work(), trust=True).environment == python
    assert len(environments(store)) == 2

    chosen = store.catalog().choose("says@1.0", None)
    assert chosen.python == python
    assert python is not None
    home = python.parents[1]
    (paths,) = home.glob("lib/python*/site-packages/hxd.pth")
    module = paths.with_name("hxdtest.py")
    (bytecode,) = paths.parent.glob("__pycache__/hxdtest.*.pyc")
    for file in (paths, module, bytecode, home / "pyvenv.cfg"):
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(bytes([before[0] ^ 1]) + before[1:])
        # Size and time are as they were; the time of the last change can't be set back.
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(PluginError, match=f"{file.name} is not what was installed there"):
            store.recheck(chosen)
        assert [finding["plugin"] for finding in store.verify("says")] == ["says@2.0", "says@1.0"]
        file.write_bytes(before)
        store.recheck(chosen)
    planted = paths.with_name("evil.pth")
    planted.write_text("import evil\n")
    with pytest.raises(PluginError, match=r"evil\.pth was not installed there"):
        store.recheck(chosen)
    planted.unlink()
    module.unlink()
    with pytest.raises(PluginError, match=r"hxdtest\.py is gone; hxctl plugin trust says@1\.0"):
        store.recheck(chosen)
    store.trust("says", "1.0")
    store.recheck(chosen)

    # After a restart nothing has to be hashed again, and a half-made one is cleared away.
    again = PluginStore(store._root)
    again.prepare()
    again.recheck(again.catalog().choose("says", None))

    # Made by an hxd that lay elsewhere, as before an upgrade: it is led to this one.
    (record,) = (store._root / ".venvs").glob("*.json")
    right = paths.read_text()
    paths.write_text("/opt/hxd-0.0/site-packages\n")
    table = msgspec.json.decode(record.read_bytes())
    record.write_bytes(msgspec.json.encode(table | {"paths": ["/opt/hxd-0.0/site-packages"]}))
    later = PluginStore(store._root)
    later.prepare()
    assert paths.read_text() == right
    later.recheck(later.catalog().choose("says", None))

    store.remove("says", "1.0")
    assert len(environments(store)) == 2
    store.remove("says", "2.0")
    assert environments(store) == []


@pytest.mark.timeout(120)
def test_what_pip_can_not_find_leaves_nothing_and_says_what_helps(
    store: PluginStore, wheels: Path, tmp_path: Path
) -> None:
    source = plugin(tmp_path / "source", requirements=("hxd-no-such-package>=1",))
    with pytest.raises(SourceFailed, match=r"hxd-no-such-package.*PIP_FIND_LINKS"):
        store.install(source, Work(), trust=True)
    assert not (store._root / "says").exists()
    assert environments(store) == []
    store.install(source, Work())
    with pytest.raises(SourceFailed, match="No matching distribution"):
        store.trust("says", "1.0")
    with pytest.raises(PluginError, match="nobody trusts it yet"):
        store.catalog().choose("says", None)


@pytest.mark.timeout(120)
def test_packages_that_keep_the_worker_from_starting_are_refused(
    store: PluginStore, wheels: Path, tmp_path: Path
) -> None:
    wheel(wheels, "msgspec", "0.0.1", **{"msgspec.py": b"raise ImportError('too old')"})
    source = plugin(tmp_path / "source", requirements=("msgspec==0.0.1",))
    with pytest.raises(StoreError, match="hxd's worker does not start: ImportError: too old"):
        store.install(source, Work(), trust=True)
    assert environments(store) == []


@pytest.mark.timeout(120)
def test_pip_ends_when_nobody_wants_its_result(
    store: PluginStore, wheels: Path, tmp_path: Path
) -> None:
    wheel(wheels, "hxdtest", "2.0")
    source = plugin(tmp_path / "source", requirements=("hxdtest",))

    def stop(step: str, done: int, total: int) -> None:
        if "hxdtest" in step:
            work.stop()

    work = Work(stop)
    with pytest.raises(Cancelled):
        store.install(source, work, trust=True)
    assert environments(store) == []
    assert not (store._root / "says").exists()


def test_an_environment_that_is_missing_is_said_with_what_makes_it(
    store: PluginStore, tmp_path: Path
) -> None:
    done = store.install(plugin(tmp_path / "source", requirements=("hxdtest",)), Work())
    # As after an upgrade of Python, for which none was made yet.
    store._trust.add("says@1.0", store._root / "says/1.0", done.digest)
    with pytest.raises(PluginError, match=r"no environment for hxdtest.*plugin trust says@1\.0"):
        store.catalog().choose("says", None)


def test_another_hxd_is_no_matter_for_an_environment(store: PluginStore, tmp_path: Path) -> None:
    source = plugin(tmp_path / "source", requirements=("hxd>=99",))
    with pytest.raises(Corrupt, match="needs hxd>=99"):
        store.install(source, Work(), trust=True)

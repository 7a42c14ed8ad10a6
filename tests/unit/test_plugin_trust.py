"""Installed plugins: what gets in, what is trusted, what a name means, and what a changed byte
does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hxd.daemon.store import plugins
from hxd.daemon.store.faults import BadName, Cancelled, Conflict, Corrupt, NotThere, StoreError
from hxd.daemon.store.plugin_store import PluginStore, split
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.work import Work
from hxd.pluginfile import PluginError
from tests.plugin_packages import (
    below,
    contents,
    digests,
    plugin,
    public,
    sign,
    tarred,
    wheel,
    zipped,
)
from tests.support import ROOT


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    store = PluginStore(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plugin(tmp_path / "source")


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def home(store: PluginStore, version: str = "1.0", name: str = "says") -> Path:
    return store._root / name / version


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def row(
    store: PluginStore, name: str, version: str, source: str = "installed"
) -> dict[str, object]:
    (found,) = [
        row
        for row in store.listing()
        if (row["name"], row["version"], row["source"]) == (name, version, source)
    ]
    return found


# What gets in


def test_a_folder_and_each_kind_of_archive_give_the_same_plugin(
    store: PluginStore, source: Path, tmp_path: Path
) -> None:
    files = contents(source)
    (tmp_path / "a.zip").write_bytes(zipped(below("says-1.0", files)))
    (tmp_path / "a.tar.gz").write_bytes(tarred(files))
    whl = wheel(tmp_path, "says", "1.0", **below("says", files))
    for path in (source, tmp_path / "a.zip", tmp_path / "a.tar.gz", whl):
        done = store.install(path, Work())
        assert (done.name, done.version, done.trusted, done.added) == ("says", "1.0", "no", True)
        assert contents(home(store)) == files
        store.remove("says", "1.0")


def test_the_same_content_again_is_there_already_and_other_content_is_a_conflict(
    store: PluginStore, source: Path
) -> None:
    assert store.install(source, Work()).added
    assert not store.install(source, Work()).added
    plugin(source, answer="'other'")
    with pytest.raises(Conflict, match=r"installed with other content.*hxctl plugin rm says@1\.0"):
        store.install(source, Work())


def test_what_is_trusted_stays_so_though_its_files_were_swapped(
    store: PluginStore, source: Path, tmp_path: Path
) -> None:
    digest = store.install(source, Work(), trust=True).digest
    other = plugin(tmp_path / "other", answer="'other'")
    for name, data in contents(other).items():
        (home(store) / name).write_bytes(data)
    with pytest.raises(Conflict, match=f"with other content: its digest is {digest}"):
        store.install(other, Work(), trust=True)
    store.remove("says", "1.0")
    assert store.install(other, Work(), trust=True).trusted == "digest"


def test_files_are_as_they_should_be_though_packages_are_missing(
    store: PluginStore, tmp_path: Path
) -> None:
    lacking = plugin(tmp_path / "folders" / "lacks", requirements=("no-such-package>=1",))
    folders = [tmp_path / "folders"]
    assert "needs no-such-package" in row_of(store, folders)
    assert store.verify(folders=folders) == []
    flip(lacking / "main.py")
    [found] = store.verify("says", folders=folders)
    assert "main.py" in found["problem"]


def row_of(store: PluginStore, folders: list[Path]) -> str:
    [lacks] = [one for one in store.listing(folders) if one["source"] == "folder"]
    return str(lacks["problem"])


def test_bytecode_in_a_package_is_left_behind(store: PluginStore, source: Path) -> None:
    (source / "__pycache__").mkdir()
    (source / "__pycache__/main.cpython-311.pyc").write_bytes(b"evil")
    store.install(source, Work())
    assert not (home(store) / "__pycache__").exists()


@pytest.mark.parametrize("name", ["extra.py", "extra.pth", "main.pyc", "lib/other.so", ".git/HEAD"])
def test_a_file_that_is_not_listed_is_refused(store: PluginStore, source: Path, name: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"")
    with pytest.raises(Corrupt, match=f"{name}' is not listed in plugin.toml"):
        store.install(source, Work())
    assert store.catalog().usable.get("says") is None


def test_a_file_that_is_missing_or_another_is_refused(store: PluginStore, source: Path) -> None:
    flip(source / "lib/fast.so")
    with pytest.raises(Corrupt, match=r"fast\.so is not the file that plugin\.toml lists"):
        store.install(source, Work())
    (source / "lib/fast.so").unlink()
    with pytest.raises(Corrupt, match=r"fast\.so', which plugin\.toml lists, is not in it"):
        store.install(source, Work())
    assert not home(store).exists()


@pytest.mark.parametrize("version", ["", "../1", ".1", "1/2", "1 0", "x" * 33, "1\\u0000"])
def test_a_version_that_could_be_a_path_is_refused(
    store: PluginStore, tmp_path: Path, version: str
) -> None:
    with pytest.raises(Corrupt, match="use up to 32 letters, digits"):
        store.install(plugin(tmp_path / "source", version=version), Work())


@pytest.mark.parametrize(
    "reference", ["says", "says@", "@1", "../x@1", "says@../1", "Says@1", "says@1\0", "says@.."]
)
def test_a_reference_that_could_be_a_path_is_refused_before_any_file_is_touched(
    store: PluginStore, reference: str
) -> None:
    with pytest.raises(BadName, match="NAME@VERSION"):
        split(reference)
    name, _, version = reference.partition("@")
    for act in (store.trust, store.untrust, store.remove):
        with pytest.raises(BadName):
            act(name, version)


def test_what_a_wheel_requires_is_written_into_a_manifest_that_says_nothing(
    store: PluginStore, source: Path, tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    whl = wheel(tmp_path, "says", "1.0", "msgspec>=0.1", **below("says", contents(source)))
    first = store.install(whl, Work())
    assert store.read("says", "1.0")[0].requirements == ("msgspec>=0.1",)
    assert store.install(whl, Work()).digest == first.digest
    store.remove("says", "1.0")

    sign(source, key)
    whl = wheel(tmp_path, "says", "1.0", "evil>=1", **below("says", contents(source)))
    store.install(whl, Work())
    assert store.read("says", "1.0")[0].requirements == ()


@pytest.mark.parametrize("text", ["evil @ https://evil.example/x.whl", "--index-url=x", "a b"])
def test_a_requirement_that_is_no_name_with_versions_is_refused(
    store: PluginStore, tmp_path: Path, text: str
) -> None:
    with pytest.raises(Corrupt, match="is not NAME"):
        store.install(plugin(tmp_path / "source", requirements=(text,)), Work(), trust=True)


def test_what_a_crash_left_is_cleared_away(store: PluginStore, source: Path) -> None:
    store.install(source, Work())
    (store._root / ".tmp/half/says").mkdir(parents=True)
    (store._root / ".venvs/0123456789abcdef-cpython-311/bin").mkdir(parents=True)
    store.prepare()
    assert not (store._root / ".tmp/half").exists()
    assert list((store._root / ".venvs").iterdir()) == []
    assert home(store).exists()


def test_an_installation_that_was_stopped_leaves_nothing(store: PluginStore, source: Path) -> None:
    work = Work(lambda step, done, total: work.stop())
    with pytest.raises(Cancelled):
        store.install(source, work)
    assert not home(store).exists()
    assert list((store._root / ".tmp").iterdir()) == []


def test_a_second_change_waits_for_the_first_until_it_is_stopped(
    store: PluginStore, source: Path, tmp_path: Path
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def first(step: str, done: int, total: int) -> None:
        reached.set()
        go_on.wait(30)

    thread = threading.Thread(target=store.install, args=(source, Work(first)))
    thread.start()
    assert reached.wait(30)
    waiting = Work(lambda step, done, total: waiting.stop())
    with pytest.raises(Cancelled):
        store.install(plugin(tmp_path / "two", version="2.0"), waiting)
    go_on.set()
    thread.join(30)
    assert home(store).exists()
    assert not home(store, "2.0").exists()


# What is trusted


def test_an_installed_plugin_runs_only_once_it_is_trusted(store: PluginStore, source: Path) -> None:
    digest = store.install(source, Work()).digest
    assert row(store, "says", "1.0")["trusted"] == "no"
    for asked in ("says", "says@1.0"):
        with pytest.raises(PluginError, match=f"{digest}; hxctl plugin trust says@1.0 lets it run"):
            store.catalog().choose(asked, "none")
    with pytest.raises(PluginError, match="no plugin loads onnx files"):
        store.catalog().choose("auto", "onnx")
    assert store.trust("says", "1.0").trusted == "digest"
    chosen = store.catalog().choose("says", None)
    assert (chosen.folder, chosen.trusted, chosen.source) == (home(store), "digest", "installed")
    store.untrust("says", "1.0")
    with pytest.raises(PluginError, match="nobody trusts it yet"):
        store.recheck(chosen)
    with pytest.raises(NotThere):
        store.untrust("says", "1.0")


def test_trust_is_given_with_the_installation_too(store: PluginStore, source: Path) -> None:
    assert store.install(source, Work(), trust=True).trusted == "digest"
    assert store.install(source, Work()).trusted == "digest"
    assert row(store, "says", "1.0")["problem"] is None


@pytest.mark.parametrize("raw", [True, False])
def test_a_signature_by_a_trusted_key_is_enough(
    store: PluginStore, source: Path, key: Ed25519PrivateKey, raw: bool
) -> None:
    sign(source, key, raw=raw)
    assert store.install(source, Work()).trusted == "no"
    with pytest.raises(PluginError, match=r"by none of the trusted keys \(there are: none\)"):
        store.catalog().choose("says", None)
    assert store.trust_key("acme", public(key)) == public(key)
    assert store.keys() == {"acme": public(key)}
    chosen = store.catalog().choose("says", None)
    assert chosen.trusted == "signature by acme"
    store.untrust_key("acme")
    with pytest.raises(PluginError, match="by none of the trusted keys"):
        store.recheck(chosen)


def test_a_signature_of_other_bytes_or_by_another_key_is_none(
    store: PluginStore, source: Path, key: Ed25519PrivateKey
) -> None:
    store.trust_key("acme", public(key))
    sign(source, Ed25519PrivateKey.generate())
    assert store.install(source, Work()).trusted == "no"
    sign(source, key)
    # The same plugin with a better signature is taken in place of the first.
    assert store.install(source, Work()).trusted == "signature by acme"
    flip(home(store) / "plugin.toml.sig")
    with pytest.raises(PluginError, match=r"plugin\.toml\.sig"):
        store.catalog().choose("says", None)
    (home(store) / "plugin.toml.sig").write_bytes(b"short")
    with pytest.raises(PluginError, match="is no Ed25519 signature"):
        store.catalog().choose("says", None)


def test_keys_are_taken_as_openssl_writes_them_and_nothing_else_is(
    store: PluginStore, key: Ed25519PrivateKey
) -> None:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert store.trust_key("acme", pem) == public(key)
    assert store.trust_key("acme", public(key) + "\n") == public(key)
    with pytest.raises(Conflict, match="another trusted key 'acme'"):
        store.trust_key("acme", public(Ed25519PrivateKey.generate()))
    for text in ("", "AAAA", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----", "ü"):
        with pytest.raises(BadName, match="no public Ed25519 key"):
            store.trust_key("other", text)
    with pytest.raises(BadName, match="a key's name"):
        store.trust_key("../other", public(key))
    with pytest.raises(NotThere, match="there are: acme"):
        store.untrust_key("other")


def test_the_script_signs_what_the_store_accepts(
    store: PluginStore, source: Path, tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    (source / "main.py").write_text((source / "main.py").read_text() + "# newer\n")
    script = [sys.executable, ROOT / "scripts/plugin-digest"]
    subprocess.run([*script, "--key", "key.pem", source], cwd=tmp_path, check=True)
    store.trust_key("me", public(key))
    assert store.install(source, Work()).trusted == "signature by me"

    (source / "main.py").write_text("")
    done = subprocess.run([*script, source], capture_output=True, text=True)
    assert "plugin.toml.sig no longer fits; sign again with --key" in done.stdout


def test_nothing_is_trusted_while_the_list_of_it_can_not_be_read(
    store: PluginStore, source: Path
) -> None:
    store.install(source, Work(), trust=True)
    (store._root / "trust.toml").write_text("digests = 3")
    with pytest.raises(PluginError, match=r"trust\.toml.*until that is mended"):
        store.catalog().choose("says", None)
    with pytest.raises(Corrupt, match=r"trust\.toml"):
        store.trust("says", "1.0")
    assert "echo" in store.catalog().usable


# A changed byte


def changed(store: PluginStore, chosen: Plugin, words: str) -> None:
    """It is refused before a worker starts, when it is chosen, and by verify, with these words."""
    with pytest.raises(PluginError, match=words):
        store.recheck(chosen)
    with pytest.raises(PluginError, match=words):
        store.catalog().choose("says@1.0", None)
    (finding,) = store.verify("says", "1.0")
    assert finding["plugin"] == "says@1.0"
    assert re.search(words, finding["problem"])
    problem = row(store, "says", "1.0")["problem"]
    assert isinstance(problem, str)
    assert re.search(words, problem)


@pytest.mark.parametrize("file", ["main.py", "lib/fast.so", "data/words.bin"])
def test_a_flipped_byte_in_any_file_is_refused_by_name(
    store: PluginStore, tmp_path: Path, file: str
) -> None:
    source = plugin(tmp_path / "source", files={"data/words.bin": b"words"})
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    flip(home(store) / file)
    changed(store, chosen, f"{file} is not the file that plugin.toml lists: sha256 differs")


def test_a_changed_file_is_named_even_where_its_manifest_was_changed_to_fit(
    store: PluginStore, source: Path
) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    (home(store) / "main.py").write_text("import os")
    manifest = home(store) / "plugin.toml"
    old, new = digests(source)["main.py"], digests(home(store))["main.py"]
    manifest.write_text(manifest.read_text().replace(old, new))
    changed(store, chosen, r"not the one that was trusted, nor is its .*main\.py is not the file")
    with pytest.raises(Conflict, match=r"main\.py.*hxctl plugin untrust says@1.0 first"):
        store.trust("says", "1.0")


def test_a_changed_manifest_alone_is_named(store: PluginStore, source: Path) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    manifest = home(store) / "plugin.toml"
    manifest.write_text(manifest.read_text() + "# harmless\n")
    changed(store, chosen, r"plugin\.toml is not the one that was trusted")


def test_a_changed_manifest_with_a_signature_is_refused(
    store: PluginStore, source: Path, key: Ed25519PrivateKey
) -> None:
    store.trust_key("acme", public(key))
    sign(source, key)
    store.install(source, Work())
    chosen = store.catalog().choose("says", None)
    flip(home(store) / "main.py")
    changed(store, chosen, r"main\.py is not the file")
    (home(store) / "main.py").write_bytes((source / "main.py").read_bytes())
    manifest = home(store) / "plugin.toml"
    manifest.write_text(manifest.read_text() + "# harmless\n")
    changed(store, chosen, r"plugin\.toml was changed after it was signed")


@pytest.mark.parametrize("plant", ["extra.py", "extra.pth", "main.pyc"])
def test_a_planted_file_is_refused_by_name(store: PluginStore, source: Path, plant: str) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    (home(store) / plant).write_bytes(b"evil")
    changed(store, chosen, f"{plant} is not listed in plugin.toml")


def test_planted_links_are_refused(store: PluginStore, source: Path, tmp_path: Path) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    (home(store) / "main.py").unlink()
    (home(store) / "main.py").symlink_to(source / "main.py")
    changed(store, chosen, r"main\.py is a symbolic link")
    home(store).rename(tmp_path / "away")
    home(store).symlink_to(source)
    with pytest.raises(PluginError, match="something else that was put there"):
        store.catalog().choose("says@1.0", None)
    with pytest.raises(Corrupt, match="something else that was put there"):
        store.trust("says", "1.0")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(
    store: PluginStore, source: Path
) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    (home(store) / "main.py").unlink()
    os.mkfifo(home(store) / "main.py")
    changed(store, chosen, r"main\.py is not a regular file")


def test_what_was_damaged_is_mended_by_installing_it_again(
    store: PluginStore, source: Path
) -> None:
    store.install(source, Work(), trust=True)
    chosen = store.catalog().choose("says", None)
    for file in ("main.py", "plugin.toml"):
        flip(home(store) / file)
        assert store.install(source, Work()).trusted == "digest"
        store.recheck(chosen)


# What a name means


def test_versions_lie_side_by_side_and_a_bare_name_is_the_newest_trusted(
    store: PluginStore, tmp_path: Path
) -> None:
    for version in ("1.9", "1.10", "1.2", "nightly"):
        store.install(plugin(tmp_path / version, version=version), Work(), trust=True)
    store.install(plugin(tmp_path / "2.0", version="2.0"), Work())
    catalog = store.catalog()
    assert catalog.choose("says", None).manifest.version == "1.10"
    assert catalog.choose("says@1.2", None).folder == home(store, "1.2")
    versions = [plugin.manifest.version for plugin in catalog.usable["says"]]
    assert versions == ["1.10", "1.9", "1.2", "nightly"]
    with pytest.raises(PluginError, match=r"hxctl plugin trust says@2\.0"):
        catalog.choose("says@2.0", None)
    with pytest.raises(PluginError, match=r"of says there are: 1\.10, 1\.9"):
        catalog.choose("says@3", None)
    with pytest.raises(PluginError, match="Did you mean 'says'"):
        catalog.choose("sayz", None)


def test_an_installed_plugin_never_takes_a_built_in_ones_name(
    store: PluginStore, tmp_path: Path
) -> None:
    store.install(plugin(tmp_path / "9", name="echo", version="9.0"), Work(), trust=True)
    catalog = store.catalog()
    assert catalog.choose("echo", None).source == "builtin"
    assert catalog.choose("echo@9.0", None).source == "installed"
    assert catalog.choose("auto", "none").source == "builtin"
    same = plugin(tmp_path / "1", name="echo", version="1.0.0")
    store.install(same, Work(), trust=True)
    assert store.catalog().choose("echo@1.0.0", None).source == "builtin"
    assert row(store, "echo", "1.0.0")["problem"] == (
        f"echo@1.0.0 means the one in {plugins.builtin_folder() / 'echo'}"
    )


def test_a_folder_of_the_operators_goes_before_all_others(
    store: PluginStore, tmp_path: Path
) -> None:
    plugin(tmp_path / "own/echo", name="echo", version="0.1")
    store.install(plugin(tmp_path / "9", name="echo", version="9.0"), Work(), trust=True)
    catalog = store.catalog([tmp_path / "own"])
    assert catalog.choose("echo", None).source == "folder"
    assert [found.source for found in catalog.usable["echo"]] == ["folder", "builtin", "installed"]
    assert catalog.choose("echo@1.0.0", None).source == "builtin"


def test_a_format_that_only_an_installed_plugin_loads_goes_to_it(
    store: PluginStore, source: Path
) -> None:
    manifest = source / "plugin.toml"
    manifest.write_text(manifest.read_text().replace('"none"', '"onnx", "gguf"'))
    store.install(source, Work(), trust=True)
    assert store.catalog().choose("auto", "onnx").manifest.name == "says"
    assert store.catalog().choose("auto", "gguf").manifest.name == "llama_cpp"


# Out again


def test_a_version_goes_with_its_trust_unless_workers_run_it(
    store: PluginStore, source: Path, tmp_path: Path
) -> None:
    store.install(source, Work(), trust=True)
    store.install(plugin(tmp_path / "2", version="2.0"), Work(), trust=True)
    with pytest.raises(Conflict, match=r"workers run plugin says@1\.0"):
        store.remove("says", "1.0", {("says", "1.0")})
    store.remove("says", "1.0", {("says", "2.0")})
    assert [found.manifest.version for found in store.catalog().usable["says"]] == ["2.0"]
    with pytest.raises(NotThere, match=r"says@1\.0 is not installed.*says@2\.0"):
        store.remove("says", "1.0")
    store.remove("says", "2.0")
    assert not (store._root / "says").exists()
    assert store.install(source, Work()).trusted == "no"


def test_verify_says_what_there_is_not(store: PluginStore, source: Path) -> None:
    store.install(source, Work(), trust=True)
    assert store.verify() == []
    assert store.verify("echo") == []
    with pytest.raises(NotThere, match=r"no plugin sayz.*Did you mean 'says'"):
        store.verify("sayz")


def test_a_store_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    """`hxd check` looks at it before the first start, and writes nothing."""
    store = PluginStore(tmp_path / "store")
    assert {row["source"] for row in store.listing()} == {"builtin"}
    assert list(tmp_path.iterdir()) == []


def test_every_row_of_the_list_has_the_same_keys(store: PluginStore, source: Path) -> None:
    store.install(source, Work())
    (store._root / "broken/1").mkdir(parents=True)
    rows = store.listing()
    assert len({tuple(sorted(row)) for row in rows}) == 1
    assert row(store, "says", "1.0")["digest"] is not None
    assert "plugin.toml: can't be read" in str(row(store, "broken", "1")["problem"])


def test_a_disk_that_takes_no_more_is_said_and_changes_nothing(
    store: PluginStore, source: Path, tmp_path: Path
) -> None:
    (store._root / "says").write_text("in the way")
    with pytest.raises(StoreError, match="something else that was put there"):
        store.install(source, Work())
    assert list((store._root / ".tmp").iterdir()) == []

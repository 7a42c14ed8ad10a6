"""A manifest is read within bounds, or refused; what is written can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.reference import Digest, ModelName, VariantName
from tests.support import ROOT

SHA = "ab" * 32
GOOD = f"""
name = "org/m"
version = 3
[files."m.gguf"]
sha256 = "{SHA}"
bytes = 7
variant = "f16"
"""

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
SCALARS = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | TEXT
TABLES = st.dictionaries(
    TEXT, st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))
)
ENTRIES = st.builds(
    FileEntry,
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True).map(Digest),
    bytes=st.integers(0, 2**61),
    variant=st.just(VariantName("f16")),
    url=TEXT,
)


@pytest.mark.parametrize("number", [1, 2])
def test_the_manifests_of_the_built_in_model_are_read(number: int) -> None:
    file = ROOT / f"hxd/demo/{number}/manifest.toml"
    manifest = manifests.read(file.read_bytes(), str(file))
    assert (manifest.name, manifest.version, manifest.format) == ("hxd-demo", number, "gguf")
    assert manifest.variants() == {"f16": ("hxd-demo-f16.gguf",)}


@settings(max_examples=40)
@given(ENTRIES, TABLES, TEXT, TEXT, st.integers(1, 999_999_999))
def test_what_is_written_is_read_the_same(
    entry: FileEntry, validation: dict[str, object], description: str, origin: str, number: int
) -> None:
    manifest = Manifest(
        name=ModelName("org/m"),
        version=number,
        files={"m.gguf": entry},
        created="2026-01-01T00:00:00Z",
        description=description,
        origin=origin,
        validation=validation,
        made_from=(Digest(SHA),),
        made_by="llama_cpp",
    )
    assert manifests.read(manifests.write(manifest), "it") == manifest


def test_results_that_are_not_there_are_left_out() -> None:
    manifest = manifests.read(GOOD.encode(), "it")
    found = Manifest(
        name=manifest.name,
        version=3,
        files=manifest.files,
        validation={"perplexity": None, "golden": [1, None, {"a": None}], "ok": True},
    )
    again = manifests.read(manifests.write(found), "it")
    assert again.validation == {"golden": [1, {}], "ok": True}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "surprise = 1\n", "surprise"),
        ("bytes = 7", 'bytes = 7\nmode = "0777"', "mode"),
        ('"m.gguf"', '"../m.gguf"', "plain file name"),
        ('"m.gguf"', '"a/m.gguf"', "plain file name"),
        ('"m.gguf"', '"manifest.toml"', "plain file name"),
        ('"m.gguf"', '".hidden"', "plain file name"),
        ('"m.gguf"', r'"a\u0000b"', "plain file name"),
        (SHA, SHA.upper(), "not a sha256"),
        (SHA, SHA[:-1], "not a sha256"),
        ("org/m", "../m", "not a model's name"),
        ("f16", "../f16", "not a variant"),
        ("version = 3", "version = 0", "a version of 0"),
        ("version = 3", "version = 99999999999", "a version of"),
        ("version = 3", 'version = "3"', "Expected `int`"),
        ("bytes = 7", "bytes = -1", "-1 bytes"),
        ("bytes = 7", "bytes = 7\nshard = 4", "the shards of f16"),
        ("version = 3", 'version = 3\nformat = "pickle"', "pickle"),
        ("version = 3", "version = [" * 2000, "can't be read"),
        ("version = 3", "version = \xff", "can't be read"),
    ],
)
def test_what_is_no_manifest_is_refused(old: str, new: str, words: str) -> None:
    data = GOOD.replace(old, new, 1) if old else new + GOOD
    with pytest.raises(Corrupt, match=words):
        manifests.read(data.encode("latin-1"), "it")


def test_a_manifest_without_files_or_of_a_megabyte_is_refused() -> None:
    with pytest.raises(Corrupt, match="files"):
        manifests.read(b'name = "m"\nversion = 1\n', "it")
    with pytest.raises(Corrupt, match="at most"):
        manifests.read(GOOD.encode() + b"#" * (1 << 20), "it")


def test_results_too_large_to_be_read_again_are_not_written() -> None:
    manifest = manifests.read(GOOD.encode(), "it")
    large = Manifest(
        name=manifest.name, version=3, files=manifest.files, validation={"x": "y" * (1 << 20)}
    )
    with pytest.raises(StoreError, match="Keep less"):
        manifests.write(large)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        manifests.read(data, "it")


@given(st.data())
def test_a_damaged_manifest_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = manifests.read(bytes(content), "it")
    except Corrupt:
        return
    assert all(manifests.plain(name) for name in found.files)

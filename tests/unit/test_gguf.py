"""The header reader against files that lie; every refusal is a `ModelFileError`."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hxd import gguf
from hxd.gguf import ModelFileError
from tests.support import ROOT

DEMO = ROOT / "hxd/demo/2/hxd-demo-f16.gguf"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def build(pairs: list[bytes], tensors: list[bytes], data: int = 4096, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    return head + b"".join(pairs) + b"".join(tensors) + b"\0" * data


def read(folder: Path, content: bytes) -> gguf.Header:
    file = folder / "m.gguf"
    file.write_bytes(content)
    return gguf.read_header(file)


def test_a_good_file_gives_its_metadata_and_size(tmp_path: Path) -> None:
    name = pair("general.architecture", 8, text("llama"))
    header = read(tmp_path, build([name], [tensor("w", [32, 4])]))
    assert (header.architecture, header.tensors) == ("llama", 1)


def test_the_demo_model_is_a_good_file() -> None:
    header = gguf.read_header(DEMO)
    assert header.architecture == "llama"
    assert header.metadata["llama.context_length"] >= 2048
    assert header.metadata["llama.embedding_length"] % 256 == 0


LIES = {
    "tensor past the end": (build([], [tensor("w", [1 << 20])]), "ends .* past the end"),
    "tensor offset past the end": (build([], [tensor("w", [4], offset=1 << 40)]), "past the end"),
    "product that overflows": (build([], [tensor("w", [1 << 33, 1 << 33])]), "past the end"),
    "dimension of zero": (build([], [tensor("w", [0])]), "dimension of zero"),
    "five dimensions": (build([], [tensor("w", [1] * 5)]), "5 dimensions"),
    "unaligned tensor": (build([], [tensor("w", [4], offset=7)]), "not aligned"),
    "part of a block": (build([], [tensor("w", [33], kind=8)]), "not whole blocks"),
    "no tensors": (build([], []), "no tensors"),
    "alignment of zero": (
        build([pair("general.alignment", 4, struct.pack("<I", 0))], [tensor("w", [4])]),
        "alignment of 0",
    ),
    "alignment of three": (
        build([pair("general.alignment", 4, struct.pack("<I", 3))], [tensor("w", [4])]),
        "alignment of 3",
    ),
    "alignment in words": (
        build([pair("general.alignment", 8, text("many"))], [tensor("w", [4])]),
        "alignment of many",
    ),
    "key twice": (
        build([pair("a", 0, b"\1"), pair("a", 0, b"\2")], [tensor("w", [4])]),
        "stands twice",
    ),
    "unknown type": (build([pair("a", 77, b"")], []), "unknown metadata type 77"),
    "array of arrays": (build([pair("a", 9, struct.pack("<IQ", 9, 1))], []), "unknown type 9"),
    "endless array": (build([pair("a", 9, struct.pack("<IQ", 0, 1 << 60))], []), "the limit is"),
    "endless strings": (
        build([pair("a", 9, struct.pack("<IQ", 8, 1 << 20))], [], data=100),
        "cut off",
    ),
    "2^64-1 bytes of key": (build([b"\xff" * 8], []), "a string of 18446744073709551615 bytes"),
    "2^32 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 32, 0), "announces"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "GGUF version 50331648"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_refused_in_little_memory(tmp_path: Path, lie: str) -> None:
    content, words = LIES[lie]
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=words):
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    original = build(
        [
            pair("general.architecture", 8, text("llama")),
            pair("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
            pair("general.alignment", 4, struct.pack("<I", 32)),
        ],
        [tensor("a", [32, 8]), tensor("b", [256], kind=12, offset=1024)],
    )
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(original) - 4097))
        content[at] = data.draw(st.integers(0, 255))
    try:
        read(tmp_path, bytes(content[: data.draw(st.integers(0, len(content)))]))
    except ModelFileError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x80\x04\x95abc", "a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"__metadata__"', "safetensors"),
        (b"hello there", "it starts with 68 65 6c 6c"),
    ],
)
def test_other_files_are_refused_by_what_they_are(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        gguf.detect(tmp_path / "m")


def test_older_ggml_files_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"tjgg\3\0\0\0")
    assert gguf.detect(tmp_path / "m") == "ggml"


def test_a_folder_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder"):
        gguf.detect(tmp_path)
    with pytest.raises(ModelFileError, match="no such file"):
        gguf.detect(tmp_path / "none")

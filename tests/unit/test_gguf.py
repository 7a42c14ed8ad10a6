"""The header reader against files that lie; every refusal is a `ModelFileError`."""

from __future__ import annotations

import io
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
        build([pair("a", 9, struct.pack("<IQ", 8, 1 << 19))], [], data=100),
        "cut off",
    ),
    "2^64-1 bytes of key": (build([b"\xff" * 8], []), "a string of 18446744073709551615 bytes"),
    "2^32 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 32, 0), "announces"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "GGUF version 50331648"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_refused_in_little_memory(tmp_path: Path, lie: str) -> None:
    refused_in_little_memory(tmp_path, *LIES[lie], most=16 << 20)


def strings(count: int, one: bytes = b"") -> bytes:
    return struct.pack("<IQ", 8, count) + text(one) * count


HALF = gguf.MAX_STEPS // 2
MANY = {
    "empty strings": [pair("a", 9, strings(HALF)), pair("b", 9, strings(HALF))],
    "small arrays": [pair(f"k{i}", 9, strings(64)) for i in range(gguf.MAX_METADATA)],
    "long keys": [pair(f"{i:01000}", 0, b"\1") for i in range(gguf.MAX_METADATA)],
    "text": [pair(f"k{i}", 8, text("é" * (1 << 20))) for i in range(8)],
    "text that grows when it is decoded": [
        pair(f"k{i}", 8, text("\U0001f600" + "a" * (1 << 20))) for i in range(16)
    ],
    "text that is none": [pair(f"k{i}", 8, text(b"\xff" * (1 << 20))) for i in range(16)],
}


@pytest.mark.parametrize("what", MANY)
def test_much_of_anything_ends_in_a_refusal_and_in_little_memory(tmp_path: Path, what: str) -> None:
    content = build(MANY[what], [tensor("w", [4])])
    refused_in_little_memory(tmp_path, content, "over 1000000 steps")


def test_many_tensors_of_long_names_end_in_a_refusal_too(tmp_path: Path) -> None:
    names = (("\U0001f600" + str(i)).ljust(1000, "x") for i in range(gguf.MAX_TENSORS))
    content = build([], [tensor(name, [1, 1, 1, 1]) for name in names])
    refused_in_little_memory(tmp_path, content, "over 1000000 steps")


def refused_in_little_memory(
    folder: Path, content: bytes, words: str, most: int = 64 << 20
) -> None:
    (folder / "m.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=words):
            gguf.read_header(folder / "m.gguf")
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_the_largest_vocabularies_are_read(tmp_path: Path) -> None:
    tokens, merges = pair("tokens", 9, strings(1 << 18, b"token")), strings(1 << 19, b"to ken")
    scores = pair("scores", 9, struct.pack("<IQ", 6, 1 << 18) + bytes(4 << 18))
    many = [tensor(f"blk.{i}.ffn_gate_exps.weight", [32]) for i in range(2000)]
    pairs = [tokens, scores, pair("merges", 9, merges), pair("t", 8, text("{{ x }}" * 20_000))]
    header = read(tmp_path, build(pairs, many))
    assert (header.tensors, len(header.metadata["merges"])) == (2000, 1 << 19)


def test_each_byte_is_read_once_however_the_header_is_cut_up(tmp_path: Path) -> None:
    pairs = [pair(f"k{i}", 9, strings(3, bytes(200))) for i in range(4000)]
    (tmp_path / "m").write_bytes(build([*pairs, pair("z", 8, text("end"))], [tensor("w", [4])]))

    class Counted(io.BufferedReader):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            Counted.total += len(data)
            return data

    with (tmp_path / "m").open("rb", buffering=0) as raw, Counted(raw) as file:
        cursor = gguf.Cursor(file, gguf.WINDOW)
        cursor.skip(24)
        for _ in pairs:
            cursor.text(gguf.MAX_KEY)
            assert cursor.value(cursor.take(gguf.U32)) == range(3)
        assert cursor.text(10) == "z"
        assert cursor.value(cursor.take(gguf.U32)) == "end"
    # What a window's end cuts in two is read twice, a length or a key of a few bytes.
    assert Counted.total <= cursor.size + 100 * (cursor.size // gguf.WINDOW + 1)


def test_strings_are_stepped_over_wherever_a_window_cuts_them(tmp_path: Path) -> None:
    words = [b"", b"a", b"four", b"x" * 30, b"y" * 8, b""] * 5
    (tmp_path / "m").write_bytes(b"".join(map(text, words)) + b"end")
    for window in range(1, 64):
        with (tmp_path / "m").open("rb") as file:
            cursor = gguf.Cursor(file, window)
            cursor.skip_strings(len(words))
            assert cursor.read(3) == b"end"


@pytest.mark.parametrize("length", [1 << 20, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_string_of_an_array_that_ends_past_the_file_is_refused(
    tmp_path: Path, length: int
) -> None:
    for after in (0, 3):
        array = struct.pack("<IQ", 8, 1 + after) + struct.pack("<Q", length)
        with pytest.raises(ModelFileError, match="cut off"):
            read(tmp_path, build([pair("a", 9, array)], []))


def test_a_header_that_goes_on_and_on_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 5))
        for key in "abcde":
            count = gguf.MAX_ARRAY
            stream.write(pair(key, 9, struct.pack("<IQ", 10, count)))
            stream.seek(8 * count, io.SEEK_CUR)
        stream.write(tensor("w", [4]) + bytes(4096))
    with pytest.raises(ModelFileError, match="longer than 64 MiB"):
        gguf.read_header(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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

"""The reader of older headers against files that lie; every refusal is a `ModelFileError`."""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hxd import ggml, gguf
from hxd.ggml import FAMILIES, FamilyError
from hxd.gguf import ModelFileError
from tests import legacy

GPT2 = legacy.content("gpt2")
# Where GPT-2's hyper-parameters stand, after the magic.
VOCAB, CONTEXT, WIDTH, HEADS, LAYERS, FTYPE = range(4, 28, 4)
WORD = 32
FIRST_TENSOR = GPT2.index(b"model/ln_f/g") - 16


def put(content: bytes, at: int, *numbers: int) -> bytes:
    data = struct.pack(f"<{len(numbers)}i", *numbers)
    return content[:at] + data + content[at + len(data) :]


def read(folder: Path, content: bytes, family: str | None = "gpt2") -> ggml.Header:
    file = folder / "m.bin"
    file.write_bytes(content)
    assert gguf.detect(file) == "ggml"
    return ggml.read_header(file, family)


def without(name: bytes) -> bytes:
    """GPT-2 with one tensor cut out; its data is float32."""
    at = GPT2.index(name)
    for dimensions in (1, 2):
        start = at - 4 * (3 + dimensions)
        found, length, _, *shape = struct.unpack_from(f"<{3 + dimensions}i", GPT2, start)
        if (found, length) == (dimensions, len(name)):
            return GPT2[:start] + GPT2[at + length + 4 * math.prod(shape) :]
    raise AssertionError(f"no tensor {name!r}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_file_is_read_in_its_family(tmp_path: Path, family: str) -> None:
    header = read(tmp_path, legacy.content(family, layers=3), family)
    words = ggml.read_vocabulary(tmp_path / "m.bin", family)
    assert (header.family, header.file_type, header.layers) == (family, "f32", 3)
    assert words.words == legacy.vocabulary(family)
    assert len(words.scores) == header.vocab


@pytest.mark.parametrize("family", ["falcon", "gptj", "llama", "mpt", "replit"])
def test_a_family_that_alone_fits_is_found(tmp_path: Path, family: str) -> None:
    assert read(tmp_path, legacy.content(family), None).family == family


@pytest.mark.parametrize(
    ("family", "both"), [("gpt2", "gpt2 or starcoder"), ("dolly-v2", "gptneox or dolly-v2")]
)
def test_where_two_families_fit_the_operator_is_asked(
    tmp_path: Path, family: str, both: str
) -> None:
    with pytest.raises(FamilyError, match=f"may be {both}, .*: set family"):
        read(tmp_path, legacy.content(family), None)


def test_an_unknown_family_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"no family 'gpt3'.*'gptj'.*dolly-v2, falcon, gpt2"):
        read(tmp_path, GPT2, "gpt3")
    with pytest.raises(FamilyError, match="a GGML file of llama is not read, only GGJT and GGMF"):
        read(tmp_path, GPT2, "llama")


def test_a_wrong_family_is_refused_by_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="rotated is 0 in the header"):
        read(tmp_path, GPT2, "gptj")


def test_a_damaged_file_is_explained_in_the_layout_that_fits_best(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"past the end .*\(read as gpt2 or starcoder\)"):
        read(tmp_path, GPT2[:-100], None)


def test_the_cache_is_the_one_that_the_library_makes(tmp_path: Path) -> None:
    trained = read(tmp_path, GPT2)
    assert trained.cache_bytes(16) == trained.cache_bytes(128) == 128 * 2 * 64 * 2 * 4
    llama = read(tmp_path, legacy.content("llama"), None)
    assert (llama.context, llama.cache_bytes(16)) == (None, 16 * 2 * 64 * 2 * 2)
    falcon = read(tmp_path, legacy.content("falcon"), None)
    assert falcon.cache_bytes(16) == 16 * 2 * 16 * 3 * 4


LIES = {
    "2^31 words": (put(GPT2, VOCAB, (1 << 31) - 1), "vocab is 2147483647"),
    "more words than stand there": (put(GPT2, VOCAB, 268), "268 words and then 267"),
    "less than no words": (put(GPT2, VOCAB, -1), "vocab is -1"),
    "a word of 2 GiB": (put(GPT2, WORD, (1 << 31) - 1), "a word of 2147483647 bytes"),
    "a word of -1 bytes": (put(GPT2, WORD, -1), "a word of -1 bytes"),
    "2^31 layers": (put(GPT2, LAYERS, (1 << 31) - 1), "layers is 2147483647"),
    "a layer that is missing": (put(GPT2, LAYERS, 3), "'model/h2/ln_1/g' is missing"),
    "a layer too many": (put(GPT2, LAYERS, 1), "'model/h1/ln_1/g' is no tensor of gpt2"),
    "no heads": (put(GPT2, HEADS, 0), "heads is 0"),
    "one head": (put(GPT2, HEADS, 1), "heads is 1"),
    "heads that don't divide": (put(GPT2, HEADS, 5), "can't be divided among 5 heads"),
    "products that overflow": (put(GPT2, WIDTH, 1 << 19), "products that overflow"),
    "a context that overflows": (put(GPT2, CONTEXT, 1 << 20, 1 << 11), "products that overflow"),
    "another width": (put(GPT2, WIDTH, 128), r"'model/ln_f/g' is \[64\], not E"),
    "an unknown type": (put(GPT2, FTYPE, 99), "unknown type 99"),
    "an old quantization": (put(GPT2, FTYPE, 1002), "quantized in version 1"),
    "half precision that isn't": (put(GPT2, FTYPE, 1), "has the type 0"),
    "three dimensions": (put(GPT2, FIRST_TENSOR, 3), "a tensor of 3 dimensions"),
    "no dimension": (put(GPT2, FIRST_TENSOR, 0), "a tensor of 0 dimensions"),
    "a name of 1 GiB": (put(GPT2, FIRST_TENSOR, 1, 1 << 30), "name of 1073741824 bytes"),
    "a type beyond the table": (put(GPT2, FIRST_TENSOR, 1, 12, 1 << 20), "has the type 1048576"),
    "a dimension of -64": (put(GPT2, FIRST_TENSOR, 1, 12, 0, -64), "is .-64., not E"),
    "a tensor twice": (GPT2 + GPT2[FIRST_TENSOR : FIRST_TENSOR + 28 + 256], "there twice"),
    "another tensor": (GPT2.replace(b"model/ln_f/g", b"model/ln_f/x"), "is no tensor"),
    "a tensor less": (without(b"model/ln_f/b"), "'model/ln_f/b' is missing"),
    "truncated data": (GPT2[:-1], "ends 1 bytes past the end"),
    "a little more": (GPT2 + b"\0\0\0\0\0", "truncated"),
    "nothing but magic": (GPT2[:4], "truncated"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_refused_in_little_time_and_memory(tmp_path: Path, lie: str) -> None:
    content, words = LIES[lie]
    with pytest.raises(ModelFileError, match=words):
        read(tmp_path, content)
    tracemalloc.start()
    try:
        started = time.perf_counter()
        with pytest.raises(ModelFileError):
            ggml.read_header(tmp_path / "m.bin")
        assert time.perf_counter() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_heads_of_one_value_are_taken_where_nothing_is_rotated(tmp_path: Path) -> None:
    assert read(tmp_path, legacy.content("gpt2", width=4)).heads == 4


def test_the_output_layer_may_be_that_of_the_embedding(tmp_path: Path) -> None:
    assert read(tmp_path, without(b"model/lm_head")).tensors == read(tmp_path, GPT2).tensors - 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (put(legacy.content("llama"), 4, 9), "GGJT of version 9"),
        (legacy.content("llama", rotated=2), "2 of the 16 values"),
        (put(legacy.content("llama"), 16, 0), "multiple is 0"),
        (put(put(legacy.content("llama"), 4, 2), 32, 2), "no longer read"),
        (put(legacy.content("falcon"), 28, 40), "is no tensor of falcon"),
        (put(legacy.content("falcon"), 28, 13), "no Falcon is of kind 13"),
        (put(legacy.content("falcon"), 20, 3), "4 heads can't share 3"),
        (legacy.content("falcon", width=12), "3 of the 3 values"),
        (legacy.content("mpt").replace("é".encode(), b"\xff\xff"), "is not UTF-8"),
    ],
)
def test_what_only_one_family_has_is_checked_too(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        read(tmp_path, content, None)


@pytest.mark.parametrize(
    ("magic", "words"),
    [(b"algg\1\0\0\0", "a LoRA adapter"), (b"GGUF\3\0\0\0", None), (b"gggg\0\0\0\0", "67 67 67")],
)
def test_other_files_are_not_taken_for_older_models(
    tmp_path: Path, magic: bytes, words: str | None
) -> None:
    (tmp_path / "m").write_bytes(magic)
    if words:
        with pytest.raises(ModelFileError, match=words):
            gguf.detect(tmp_path / "m")
    else:
        with pytest.raises(ModelFileError, match="not one of the older"):
            ggml.read_header(tmp_path / "m")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    original = legacy.content(family, width=8, layers=1, context=4, rotated=2, multiple=8)
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, 60) | st.integers(4, len(original) - 1))
        content[at] = data.draw(st.integers(0, 255))
    try:
        read(tmp_path, bytes(content[: data.draw(st.integers(4, len(content)))]), None)
    except ModelFileError as error:
        assert str(error)

"""What kind of model file this is, from its header alone; every number in it may be hostile.

Reads GGUF (ggml's `gguf.md` is the source of the layout) far enough to know that all tensors lie
inside the file, and keeps scalar metadata. Never reads tensor data, and never allocates by a
number found in the file. Work is counted in steps, and ends soon whatever a header is made of.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from operator import length_hint
from pathlib import Path
from typing import Any

MAX_TENSORS = 1 << 15
MAX_METADATA = 1 << 14
MAX_ARRAY = 1 << 22
MAX_KEY = 1 << 10
MAX_STRING = 1 << 22
# Of work, in units of one string in an array: 50 to 100 ns. The largest vocabularies have a quarter
# of a million tokens and twice as many merges, and no model has ten thousand tensors.
MAX_STEPS = 1_000_000
_TENSOR_STEPS = 40
_PAIR_STEPS = 40
_TEXT_PER_STEP = 8  # bytes; decoded, each may take four
# The same vocabularies with their scores and types need a quarter of it.
MAX_HEADER = 1 << 26
WINDOW = 1 << 18

SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
STRING = 8
ARRAY = 9
U32 = SCALARS[4]
U64 = SCALARS[10]
# What follows a tensor's number of dimensions: these, its type and its offset.
_PLACES = {count: struct.Struct(f"<{count}QIQ") for count in range(1, 5)}

# (elements per block, bytes per block) by ggml type id; from ggml.h's type traits.
BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

# Files from before GGUF: hxd.ggml reads them.
_OLD_MAGICS = frozenset({b"lmgg", b"fmgg", b"tjgg", b"ccgg"})
_OTHER = (
    (b"algg", "a LoRA adapter of the older GGML formats"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint, perhaps)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"<!DO", "a web page (a failed download, perhaps)"),
    (b"<htm", "a web page (a failed download, perhaps)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for"),
)


class ModelFileError(Exception):
    """The file can't be served; the message says what was found in it."""


@dataclass(frozen=True)
class Header:
    """`size` is the file's in bytes, `start` where in it the tensors' data begins; `metadata` holds
    scalars and strings, and arrays' lengths."""

    version: int
    tensors: int
    size: int
    metadata: dict[str, Any] = field(default_factory=dict)
    start: int = 0

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))


def detect(path: Path) -> str:
    """`gguf` or `ggml` by the magic; raises `ModelFileError` naming what was found otherwise."""
    with opened(path) as file:
        start = file.read(64)
    if not start:
        raise ModelFileError("the file is empty")
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:4] in _OLD_MAGICS:
        return "ggml"
    for magic, what in _OTHER:
        if start.startswith(magic):
            raise ModelFileError(f"not a model file: it is {what}")
    if start[8:10] == b'{"':
        raise ModelFileError("safetensors is not served; convert it to GGUF")
    raise ModelFileError(f"not a model file: it starts with {start[:8].hex(' ')}, not with 'GGUF'")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file. Raises `ModelFileError` for what is none (a pipe would never end), and for
    whatever the disk refuses, then or later."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelFileError(_reason(path, error)) from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
        raise ModelFileError(f"{path} is {what}, not a file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise ModelFileError(_reason(path, error)) from None


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such file: {path}"
    return f"can't read {path}: {error.strerror}"


class Cursor:
    """Reads forward and never past the end. Plain reads, not a mapping: a file that is cut while
    it is mapped would kill the process with SIGBUS. `window` is how many bytes are read at a time,
    `limit` how many from the beginning on may be asked for."""

    def __init__(
        self, file: io.BufferedReader, window: int = 1 << 13, limit: int | None = None
    ) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.steps = 0
        self._window = window
        self._limit = limit
        # Bytes of the file from `_start` on; the next one to use is at `_place` in them.
        self._data = b""
        self._start = 0
        self._place = 0

    @property
    def at(self) -> int:
        return self._start + self._place

    def work(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ModelFileError(
                f"over {MAX_STEPS} steps to read the header; it has more strings, text and tensors "
                "than any model"
            )

    def take(self, form: struct.Struct) -> Any:
        return self.unpack(form)[0]

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        self._need(form.size)
        values = form.unpack_from(self._data, self._place)
        self._place += form.size
        return values

    def read(self, count: int) -> bytes:
        self._need(count)
        begin = self._place
        self._place += count
        return self._data[begin : self._place]

    def skip(self, count: int) -> None:
        """Less than 0: back."""
        if count > self.size - self.at:
            raise ModelFileError("truncated: the file is cut off inside its header")
        self._place += count

    def skip_strings(self, count: int) -> None:
        """Over that many strings, each with its length before it."""
        self.work(count)
        length_of, prefix = U64.unpack_from, U64.size
        while count:
            self._need(prefix)
            data, place = self._data, self._place
            todo = repeat(None, count)
            # The one loop that hostile files can make long: nothing in it but the step itself. It
            # ends in an error where the next length is not, or not whole, among these bytes.
            try:
                for _ in todo:
                    place += length_of(data, place)[0] + prefix
                count = 0
            except (struct.error, OverflowError, IndexError):
                count = length_hint(todo) + 1
            self.skip(place - self._place)

    def _need(self, count: int) -> None:
        """That many bytes from `at` on are in `_data`."""
        if 0 <= self._place <= len(self._data) - count:
            return
        at = self.at
        if count > self.size - at:
            raise ModelFileError("truncated: the file is cut off inside its header")
        if self._limit is not None and at + count > self._limit:
            raise ModelFileError(f"the header is longer than {self._limit >> 20} MiB")
        self.file.seek(at)
        self._data, self._start, self._place = self.file.read(max(count, self._window)), at, 0
        if len(self._data) < count:
            raise ModelFileError("the file shrank while it was read")

    def text(self, limit: int) -> str:
        length = self.take(U64)
        if length > limit:
            raise ModelFileError(f"a string of {length} bytes in the header; the limit is {limit}")
        self.work(length // _TEXT_PER_STEP)
        return self.read(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind == STRING:
            return self.text(MAX_STRING)
        if kind != ARRAY:
            raise ModelFileError(f"unknown metadata type {kind} in the header")
        element, count = self.take(U32), self.take(U64)
        if count > MAX_ARRAY:
            raise ModelFileError(f"an array of {count} in the header; the limit is {MAX_ARRAY}")
        if element in SCALARS:
            self.skip(count * SCALARS[element].size)
        elif element == STRING:
            self.skip_strings(count)
        else:
            raise ModelFileError(f"an array of unknown type {element} in the header")
        return range(count)


def read_header(path: Path) -> Header:
    """Header of a GGUF file; raises `ModelFileError` unless every tensor lies inside the file."""
    if detect(path) != "gguf":
        raise ModelFileError("an older GGML file, not GGUF")
    with opened(path) as file:
        cursor = Cursor(file, WINDOW, MAX_HEADER)
        cursor.skip(4)
        version = cursor.take(U32)
        if version not in (2, 3):
            raise ModelFileError(f"GGUF version {version} is not known; 2 and 3 are")
        tensors, pairs = cursor.take(U64), cursor.take(U64)
        if tensors > MAX_TENSORS or pairs > MAX_METADATA:
            raise ModelFileError(f"the header announces {tensors} tensors and {pairs} keys")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            cursor.work(_PAIR_STEPS)
            key = cursor.text(MAX_KEY)
            if key in metadata:
                raise ModelFileError(f"the key {key!r} stands twice in the header")
            metadata[key] = cursor.value(cursor.take(U32))
        ends = [_tensor_end(cursor) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise ModelFileError(f"an alignment of {alignment}; a power of two from 8 on is needed")
        start = -(-cursor.at // alignment) * alignment
        size = cursor.size
        for name, offset, length in ends:
            if offset % alignment:
                raise ModelFileError(f"the tensor {name!r} is not aligned to {alignment} bytes")
            if start + offset + length > size:
                missing = start + offset + length - size
                raise ModelFileError(
                    f"truncated: the tensor {name!r} ends {missing} bytes past the end of the file"
                )
    # The first of several shards may have none, where they were split so.
    if not tensors and metadata.get("split.count", 1) == 1:
        raise ModelFileError("no tensors in the file")
    return Header(version=version, tensors=tensors, size=size, metadata=metadata, start=start)


def _tensor_end(cursor: Cursor) -> tuple[str, int, int]:
    """Name, offset and length in bytes of the next tensor."""
    cursor.work(_TENSOR_STEPS)
    name = cursor.text(MAX_KEY)
    dimensions = cursor.take(U32)
    if dimensions not in _PLACES:
        raise ModelFileError(f"the tensor {name!r} has {dimensions} dimensions")
    *shape, kind, offset = cursor.unpack(_PLACES[dimensions])
    elements = 1
    for extent in shape:
        if extent == 0:
            raise ModelFileError(f"the tensor {name!r} has a dimension of zero")
        elements *= extent
    if kind not in BLOCKS:
        # A type newer than this table: the loader judges it, inside the worker.
        return name, offset, 0
    per_block, block_bytes = BLOCKS[kind]
    if shape[0] % per_block:
        raise ModelFileError(f"the tensor {name!r} has rows of {shape[0]}, not whole blocks")
    return name, offset, elements // per_block * block_bytes

"""Tiny GGUF files: whole by their headers, with nothing in them that could be loaded."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

SIZE = 4096


def gguf(
    seed: int = 0, *, file_type: int | None = 1, tensors: int = 2, size: int = SIZE, **pairs: int
) -> bytes:
    """`seed` makes the content differ; `pairs` are further u32 metadata, `__` for a dot."""
    metadata = [_text("general.architecture") + struct.pack("<I", 8) + _text("llama")]
    if file_type is not None:
        metadata.append(_u32("general.file_type", file_type))
    metadata += [_u32(key.replace("__", "."), value) for key, value in pairs.items()]
    infos = [
        _text(f"t{number}") + struct.pack("<IQIQ", 1, 32, 0, 128 * number)
        for number in range(tensors)
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(metadata))
    return head + b"".join(metadata) + b"".join(infos) + seed.to_bytes(8, "little") * (size // 8)


def write(path: Path, seed: int = 0, **settings: int) -> Path:
    path.write_bytes(gguf(seed, **settings))
    return path


def write_split(folder: Path, count: int = 3, seed: int = 0, name: str = "model") -> list[Path]:
    """A complete set, as llama.cpp's gguf-split leaves it."""
    return [
        write(
            folder / f"{name}-{number + 1:05}-of-{count:05}.gguf",
            seed + number,
            split__no=number,
            split__count=count,
            split__tensors__count=2 * count,
        )
        for number in range(count)
    ]


def flip(path: Path, at: int = -1) -> None:
    """One bit of one byte, in place."""
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _u32(key: str, value: int) -> bytes:
    return _text(key) + struct.pack("<II", 4, value)


def put_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder

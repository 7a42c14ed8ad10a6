"""What an operator's path holds: one model file, or all the shards of a split one; nothing that
runs code when it is loaded.

Reads headers, and no tensors. Hostile files end here, before a byte is copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hxd import ggml, gguf
from hxd.daemon.store import manifest
from hxd.daemon.store.faults import Corrupt, NotThere, StoreError
from hxd.daemon.store.filetypes import UNKNOWN, variant_of
from hxd.daemon.store.intake import open_source
from hxd.daemon.store.reference import shown
from hxd.ggml.layouts import FAMILIES
from hxd.gguf import ModelFileError

AnyHeader = gguf.Header | ggml.Header

# As llama.cpp's gguf-split names them; its loader finds the others by the first one's name.
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_ENTRIES = 10_000
MAX_SHARDS = 1000
_MODEL = frozenset({".gguf", ".ggml", ".bin"})
_RUNS_CODE = {
    ".pkl": "a Python pickle, which runs code when it is loaded",
    ".pickle": "a Python pickle, which runs code when it is loaded",
    ".pt": "a PyTorch checkpoint, a pickle that runs code when it is loaded",
    ".pth": "a PyTorch checkpoint, a pickle that runs code when it is loaded",
    ".ckpt": "a checkpoint, a pickle that runs code when it is loaded",
    ".safetensors": "safetensors, which is not served; convert it to GGUF",
}
_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Candidate:
    """Files in the order of their shards, with every link resolved; their headers, and the names
    they get in the store. `variant` is `unknown` where no header says."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    headers: tuple[AnyHeader, ...]
    format: str
    variant: str


def collect(path: Path) -> list[Path]:
    """The files of the one model that `path`, a file or a folder, holds.

    A folder that holds anything which runs code is refused whole, and so is one with several
    models. Raises `NotThere`, `Corrupt` and `StoreError`."""
    try:
        resolved = path.resolve(strict=True)
        folder = resolved.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise NotThere(
            f"no such file or folder: {shown(str(path))} ({_reason(error)})", param="path"
        ) from None
    if not folder:
        os.close(open_source(path))
        return [path]
    try:
        with os.scandir(resolved) as entries:
            names = sorted(
                entry.name for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False)
            )
    except OSError as error:
        raise StoreError(f"can't read {shown(str(path))}: {error.strerror}", param="path") from None
    models = [name for name in names if _model(resolved / name)]
    return [resolved / name for name in _one_model(models, path)]


def check(files: Sequence[Path]) -> Candidate:
    """Raises `Corrupt` unless all are whole and belong together, by their headers."""
    if not files or len(files) > MAX_SHARDS:
        raise StoreError(f"{len(files)} files; 1 to {MAX_SHARDS} are possible", param="path")
    if len(files) > 1:
        files = _in_order(files)
    formats, headers = [], []
    for file in files:
        # Opened first: a pipe would keep the readers below waiting for its writer.
        os.close(open_source(file))
        format, header = read_header(file, file.name)
        formats.append(format)
        headers.append(header)
    _check_shards(files, headers)
    variants = {variant_of(header) for header in headers} - {UNKNOWN}
    return Candidate(
        tuple(file.resolve() for file in files),
        tuple(_store_name(file.name, formats[0]) for file in files),
        tuple(headers),
        formats[0],
        variants.pop() if len(variants) == 1 else UNKNOWN,
    )


def read_header(file: Path, name: str) -> tuple[str, AnyHeader]:
    """Format and header; `name` is what a message calls the file. Raises `Corrupt`."""
    try:
        format = gguf.detect(file)
        return format, gguf.read_header(file) if format == "gguf" else _old_header(file)
    except ModelFileError as error:
        raise Corrupt(f"{shown(name)} is refused: {error}", param="path") from None


def _old_header(file: Path) -> ggml.Header:
    """Where more than one family makes sense of the file, any will do here: the operator says
    which it is when it is served."""
    try:
        return ggml.read_header(file)
    except ggml.FamilyError as unclear:
        for family in FAMILIES:
            try:
                return ggml.read_header(file, family)
            except ModelFileError:
                continue
        raise unclear


def _model(file: Path) -> bool:
    """Whether a folder's entry is a model file; raises `Corrupt` for what runs code."""
    suffix = file.suffix.lower()
    if suffix in _RUNS_CODE:
        raise Corrupt(
            f"{shown(str(file.parent))} is refused: {shown(file.name)} is {_RUNS_CODE[suffix]}. "
            "Name the GGUF file itself",
            param="path",
        )
    if suffix == ".json" and _names_code(file):
        raise Corrupt(
            f"{shown(str(file.parent))} is refused: {shown(file.name)} has an auto_map, which "
            "names code to run. Name the GGUF file itself",
            param="path",
        )
    if suffix not in _MODEL:
        return False
    if suffix == ".bin":
        os.close(open_source(file))
        try:
            gguf.detect(file)
        except ModelFileError as error:
            raise Corrupt(
                f"{shown(str(file.parent))} is refused: {shown(file.name)}: {error}. Name the "
                "GGUF file itself",
                param="path",
            ) from None
    return True


def _names_code(file: Path) -> bool:
    descriptor = open_source(file)
    with os.fdopen(descriptor, "rb") as stream:
        return b'"auto_map"' in stream.read(_MAX_CONFIG)


def _one_model(names: Sequence[str], folder: Path) -> list[str]:
    where = shown(str(folder))
    if not names:
        raise NotThere(f"no GGUF or GGML file in {where}; name the file itself", param="path")
    groups: dict[str, list[str]] = {}
    for name in names:
        match = SHARD.fullmatch(name)
        groups.setdefault(f"{match[1]}-of-{match[3]}" if match else name, []).append(name)
    if len(groups) > 1:
        some = ", ".join(shown(group[0]) for group in list(groups.values())[:10])
        raise StoreError(
            f"{len(groups)} models in {where}: {some}. Name the one that is meant", param="path"
        )
    return next(iter(groups.values()))


def _in_order(files: Sequence[Path]) -> list[Path]:
    """Shards by their names; raises `Corrupt` unless the set is complete."""
    found: dict[int, Path] = {}
    sets = set()
    for file in files:
        match = SHARD.fullmatch(file.name)
        if not match:
            raise Corrupt(
                f"{shown(file.name)} is not a shard of a split GGUF (NAME-00001-of-00002.gguf); "
                "several files make one model only so",
                param="path",
            )
        sets.add((match[1], int(match[3])))
        found[int(match[2])] = file
    (_, count), *others = sorted(sets)
    if others or len(found) != len(files):
        raise Corrupt("the files are shards of different models", param="path")
    missing = sorted(set(range(1, count + 1)) - set(found)) if count <= MAX_SHARDS else [count]
    if missing or len(found) != count:
        numbers = ", ".join(str(number) for number in missing[:10])
        raise Corrupt(
            f"{len(found)} of {count} shards of {shown(files[0].name)}; missing: {numbers}",
            param="path",
        )
    return [found[number] for number in sorted(found)]


def _check_shards(files: Sequence[Path], headers: Sequence[AnyHeader]) -> None:
    """What the headers say of the split must be what the names say."""
    architectures = set()
    tensors = 0
    for place, (file, header) in enumerate(zip(files, headers, strict=True)):
        if isinstance(header, ggml.Header):
            if len(files) > 1:
                raise Corrupt(f"{shown(file.name)} is an older GGML file, never split")
            return
        tensors += header.tensors
        count = header.metadata.get("split.count", 0)
        # gguf-split writes 0 into files that were merged again.
        if count and count != len(files):
            raise Corrupt(
                f"{shown(file.name)} says it is one of {shown(str(count))} shards; "
                f"{len(files)} given. Import the folder with all of them",
                param="path",
            )
        number = header.metadata.get("split.no", place)
        if number != place:
            raise Corrupt(
                f"{shown(file.name)} says it is shard {shown(str(number))} counted from 0, its "
                f"name says {place}",
                param="path",
            )
        if "general.architecture" in header.metadata:
            architectures.add(header.architecture)
    if len(architectures) > 1:
        raise Corrupt(
            f"the shards are of different architectures: {shown(', '.join(sorted(architectures)))}",
            param="path",
        )
    first = headers[0]
    said = first.metadata.get("split.tensors.count") if isinstance(first, gguf.Header) else None
    if isinstance(said, int) and said and said != tensors:
        raise Corrupt(f"the shards have {tensors} tensors, the header says {said}", param="path")


def _store_name(name: str, format: str) -> str:
    """A plain name, as like the source's as can be; shards keep the ending that names them."""
    shard = SHARD.fullmatch(name)
    stem, ending = (shard[1], name[shard.end(1) :]) if shard else (name, "")
    safe = (re.sub(r"[^A-Za-z0-9._+-]", "_", stem).lstrip("._+-") or "model") + ending
    suffixes = (".gguf",) if format == "gguf" else (".bin", ".ggml")
    if not safe.lower().endswith(suffixes):
        safe += suffixes[0]
    safe = safe[-200:].lstrip("._+-")
    return safe if manifest.plain(safe) else f"model{suffixes[0]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)

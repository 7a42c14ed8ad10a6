"""A version's manifest: what its files are, byte for byte, and where they came from.

`manifest.toml` may have been damaged or planted: it is read within bounds, unknown keys are
refused, and a file's name in it is a plain name, never a path.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import tomli_w

from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.reference import MAX_VERSION, RESERVED, Digest, ModelName, VariantName, shown

FILE = "manifest.toml"
MAX_BYTES = 1 << 20
MAX_FILES = 1024
MAX_TEXT = 4096
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `shard` counts from 0; `url` is where the same bytes can be fetched again."""

    sha256: Digest
    bytes: int
    variant: VariantName
    shard: int = 0
    url: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`created` is an ISO date or time; `origin` a path, an URL or `builtin:…`, and `origin_sha256`
    what that source said of itself, where it did. `validation` holds what the checks before the
    publication found. In a derived variant's manifest, `made_from` has the digests of the files
    that it was made of and `made_by` says how."""

    name: ModelName
    version: int
    files: dict[str, FileEntry]
    created: str = ""
    description: str = ""
    format: Literal["gguf", "ggml"] = "gguf"
    origin: str = ""
    origin_sha256: str = ""
    validation: dict[str, Any] = {}
    made_from: tuple[Digest, ...] = ()
    made_by: str = ""

    @property
    def size(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Of the whole content, in an order that does not depend on names."""
        return tuple(sorted(entry.sha256 for entry in self.files.values()))

    def variants(self) -> dict[str, tuple[str, ...]]:
        """Names of the files by variant, shards in order."""
        found: dict[str, list[str]] = {}
        for name, entry in sorted(self.files.items(), key=lambda item: (item[1].shard, item[0])):
            found.setdefault(entry.variant, []).append(name)
        return {variant: tuple(names) for variant, names in found.items()}


def plain(name: str) -> bool:
    """Whether a file of a version may be called so."""
    return bool(_FILE_NAME.fullmatch(name)) and name.lower() not in RESERVED


def read(data: bytes, where: str) -> Manifest:
    """Raises `Corrupt`, naming `where` it was read."""
    return from_table(_table(data, where), where)


def from_table(table: Any, where: str) -> Manifest:
    """The same, of a manifest that stood inside another file."""
    try:
        manifest = msgspec.convert(table, Manifest, dec_hook=_decode)
        _check(manifest)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise Corrupt(f"{where} is not a manifest: {str(error)[:300]}") from None
    return manifest


def to_table(manifest: Manifest) -> dict[str, Any]:
    """Only what differs from the defaults, as `tomli_w` writes it."""
    table: dict[str, Any] = {"name": str(manifest.name), "version": manifest.version}
    for key in ("created", "description", "format", "origin", "origin_sha256", "made_by"):
        if value := getattr(manifest, key):
            table[key] = value
    if manifest.made_from:
        table["made_from"] = [str(digest) for digest in manifest.made_from]
    table["files"] = {name: _entry(entry) for name, entry in manifest.files.items()}
    if manifest.validation:
        table["validation"] = _plain_value(manifest.validation)
    return table


def write(manifest: Manifest) -> bytes:
    """Raises `StoreError` for one that could not be read again."""
    try:
        _check(manifest)
        data = tomli_w.dumps(to_table(manifest)).encode()
    except (ValueError, TypeError) as error:
        raise StoreError(f"no manifest can be written of {manifest.name}: {error}") from None
    if len(data) > MAX_BYTES:
        raise StoreError(
            f"the manifest of {manifest.name} would have {len(data)} bytes; the limit is "
            f"{MAX_BYTES}. Keep less in its validation results"
        )
    return data


def _entry(entry: FileEntry) -> dict[str, Any]:
    table: dict[str, Any] = {
        "sha256": str(entry.sha256),
        "bytes": entry.bytes,
        "variant": str(entry.variant),
    }
    if entry.shard:
        table["shard"] = entry.shard
    if entry.url:
        table["url"] = entry.url
    return table


def _table(data: bytes, where: str) -> Any:
    if len(data) > MAX_BYTES:
        raise Corrupt(f"{where} has {len(data)} bytes; a manifest has at most {MAX_BYTES}")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{where} can't be read: {str(error)[:300]}") from None


def _decode(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"a string was expected, not {type(value).__name__}")
    try:
        return kind(value)
    except StoreError as error:
        raise ValueError(error.message) from None


def _check(manifest: Manifest) -> None:
    if not 1 <= manifest.version <= MAX_VERSION:
        raise ValueError(f"a version of {manifest.version}; 1 to {MAX_VERSION} are possible")
    if not 1 <= len(manifest.files) <= MAX_FILES:
        raise ValueError(f"{len(manifest.files)} files; 1 to {MAX_FILES} are possible")
    for key in ("created", "description", "origin", "origin_sha256", "made_by"):
        if len(getattr(manifest, key)) > MAX_TEXT:
            raise ValueError(f"{key} is longer than {MAX_TEXT}")
    for name, entry in manifest.files.items():
        if not plain(name):
            raise ValueError(f"{shown(name)} is not a plain file name")
        if not 0 <= entry.bytes < 1 << 62:
            raise ValueError(f"{name} has {entry.bytes} bytes")
        if len(entry.url) > MAX_TEXT:
            raise ValueError(f"the url of {name} is longer than {MAX_TEXT}")
    for variant, names in manifest.variants().items():
        shards = [manifest.files[name].shard for name in names]
        if shards != list(range(len(names))):
            raise ValueError(f"the shards of {variant} are {shards}, not 0 to {len(names) - 1}")


def _plain_value(value: Any) -> Any:
    """TOML has no null; a result that is not there is left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(one) for key, one in value.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [_plain_value(one) for one in value if one is not None]
    return value

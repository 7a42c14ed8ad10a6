"""`plugin.toml`: what a plugin folder says of itself, and whether its files are still those.

Read by the daemon, which lists and verifies plugins without importing them, and by the worker,
which imports nothing but the bytes that it has just verified.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from hxd.hookspecs import API

MANIFEST = "plugin.toml"
MAX_MANIFEST = 1 << 18
MAX_FILE = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORED = {"__pycache__", MANIFEST}


class PluginError(Exception):
    """The plugin can't be used; the message names the plugin or file and what is wrong."""


class PluginFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of plugin.toml. `entry` is the module with the hooks, `formats` as in
    `hookspecs.Description`, `requirements` as NAME, NAME==VERSION or NAME>=VERSION,
    `files` maps each file's path inside the folder to its sha256."""

    name: str
    version: str
    api: int
    entry: str
    formats: tuple[str, ...]
    files: dict[str, str]
    requirements: tuple[str, ...] = ()
    extra: str | None = None
    description: str = ""


def parse(data: bytes, where: Path) -> PluginFile:
    try:
        raw = tomllib.loads(data.decode("utf-8"))
        manifest = msgspec.convert(raw, PluginFile)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise PluginError(f"{where}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise PluginError(f"{where}: {error}") from None
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", manifest.name):
        raise PluginError(f"{where}: name {manifest.name!r}: use a-z, 0-9 and '_'")
    if manifest.api != API:
        raise PluginError(f"{where}: written for plugin API {manifest.api}; this hxd has {API}")
    if not manifest.entry.isidentifier():
        raise PluginError(f"{where}: entry {manifest.entry!r} is not the name of a module")
    for name, digest in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
            raise PluginError(f"{where}: files: {name!r} is not a path inside the folder")
        if not _DIGEST.fullmatch(digest):
            raise PluginError(f"{where}: files: {name!r}: not a sha256 in lower-case hex")
    if f"{manifest.entry}.py" not in manifest.files:
        raise PluginError(f"{where}: files: {manifest.entry}.py, the entry, is not listed")
    return manifest


def read(folder: Path) -> tuple[PluginFile, str]:
    """The manifest in `folder` and its own sha256; raises `PluginError`."""
    file = folder / MANIFEST
    data = _bytes(file, MAX_MANIFEST)
    return parse(data, file), hashlib.sha256(data).hexdigest()


def verified(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of one listed file, which have this digest; raises `PluginError` otherwise."""
    data = _bytes(folder / name, MAX_FILE)
    if hashlib.sha256(data).hexdigest() != digest:
        raise PluginError(f"{folder / name} is not the file that {MANIFEST} lists: sha256 differs")
    return data


def verify(folder: Path, manifest: PluginFile) -> None:
    """Every listed file is there unchanged, and nothing importable lies beside them."""
    for name, digest in manifest.files.items():
        verified(folder, name, digest)
    for name in present(folder):
        if name not in manifest.files:
            raise PluginError(f"{folder / name} is not listed in {MANIFEST}")


def present(folder: Path) -> Iterable[str]:
    """Paths of the files in a plugin folder, caches and the manifest left out, in order."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if not _IGNORED & set(inside.parts) and (file.is_symlink() or not file.is_dir()):
            yield inside.as_posix()


def _bytes(file: Path, limit: int) -> bytes:
    try:
        if file.is_symlink():
            raise PluginError(f"{file} is a symbolic link")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise PluginError(f"{file}: can't be read: {error.strerror}") from None
    if len(data) > limit:
        raise PluginError(f"{file} is larger than {limit} bytes")
    return data

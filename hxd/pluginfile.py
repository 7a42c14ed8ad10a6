"""`plugin.toml`: what a plugin folder says of itself, and whether its files are still those.

Read by the daemon, which lists and verifies plugins without importing them, and by the worker,
which imports nothing but the bytes that it has just verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from hxd.hookspecs import API

MANIFEST = "plugin.toml"
SIGNATURE = "plugin.toml.sig"
MAX_MANIFEST = 1 << 18
MAX_FILE = 64 << 20
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
CACHE = "__pycache__"


class PluginError(Exception):
    """The plugin can't be used; the message names the plugin or file and what is wrong."""


class PluginFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of plugin.toml. `entry` is the module with the hooks, `formats` as in
    `hookspecs.Description`, `requirements` as in PEP 508, `files` maps each file's path inside the
    folder to its sha256."""

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
    if not NAME.fullmatch(manifest.name):
        raise PluginError(f"{where}: name {manifest.name!r}: use a-z, 0-9 and '_'")
    if not VERSION.fullmatch(manifest.version):
        raise PluginError(
            f"{where}: version {manifest.version!r}: use up to 32 letters, digits and . + _ -"
        )
    if manifest.api != API:
        raise PluginError(f"{where}: written for plugin API {manifest.api}; this hxd has {API}")
    if not manifest.entry.isidentifier():
        raise PluginError(f"{where}: entry {manifest.entry!r} is not the name of a module")
    for name, digest in manifest.files.items():
        if not is_inside(name):
            raise PluginError(f"{where}: files: {name!r} is not a path inside the folder")
        if not _DIGEST.fullmatch(digest):
            raise PluginError(f"{where}: files: {name!r}: not a sha256 in lower-case hex")
    if f"{manifest.entry}.py" not in manifest.files:
        raise PluginError(f"{where}: files: {manifest.entry}.py, the entry, is not listed")
    return manifest


def read(folder: Path) -> tuple[PluginFile, str]:
    """The manifest in `folder` and its own sha256; raises `PluginError`."""
    file = folder / MANIFEST
    data = contents(file, MAX_MANIFEST)
    return parse(data, file), hashlib.sha256(data).hexdigest()


def verified(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of one listed file, which have this digest; raises `PluginError` otherwise."""
    data = contents(folder / name, MAX_FILE)
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
    """Paths of the files in a plugin folder in order; the manifest, its signature and caches of
    bytecode, which nothing reads, are left out."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if CACHE in inside.parts or str(inside) in (MANIFEST, SIGNATURE):
            continue
        if file.is_symlink() or not file.is_dir():
            yield inside.as_posix()


def is_inside(name: str) -> bool:
    """Whether `name` is one spelling of one place below a folder, and safe to print."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and str(path) == name
    return plain and path.parts != () and not path.is_absolute() and ".." not in path.parts


def contents(file: Path, limit: int) -> bytes:
    """All of a regular file of at most `limit` bytes; raises `PluginError`. Follows no link, and
    waits for no writer of a pipe."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if file.is_symlink():
            raise PluginError(f"{file} is a symbolic link") from None
        raise PluginError(f"{file}: can't be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PluginError(f"{file} is not a regular file")
        try:
            data = stream.read(limit + 1)
        except OSError as error:
            raise PluginError(f"{file}: can't be read: {error.strerror}") from None
    if len(data) > limit:
        raise PluginError(f"{file} is larger than {limit} bytes")
    return data

"""What `hxctl plugin install` is given: a folder, a wheel, a .zip or a .tar.gz, read with distrust.

Knows where the plugin is in it, and not whether its files are the listed ones; the store compares.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import Protocol

from hxd.daemon.store.faults import BadName, Corrupt, NotThere
from hxd.daemon.store.plugin_archive import Table, Tar, Zip
from hxd.pluginfile import CACHE, MANIFEST, MAX_FILE

_METADATA = 1 << 20


class Package(Protocol):
    """`sizes` has every regular file by its path, in the order in which reading is cheapest."""

    sizes: dict[str, int]

    def read(self, name: str) -> bytes: ...


class Contents:
    """The plugin in a package: `names` are paths below the folder that holds plugin.toml."""

    def __init__(self, package: Package, where: Path) -> None:
        self._package = package
        self._where = where
        self._root = _root(package.sizes, where)
        self._own: dict[str, str] = {}
        self._metadata: str | None = None
        for path in package.sizes:
            if CACHE in PurePosixPath(path).parts:
                continue
            top, _, rest = path.partition("/")
            if not self._root or path.startswith(self._root):
                self._own[path[len(self._root) :]] = path
            elif top.endswith(".dist-info") and rest:
                self._metadata = path if rest == "METADATA" else self._metadata
            else:
                raise Corrupt(
                    f"{where}: {path!r} lies beside {self._root.rstrip('/')}, the folder with "
                    f"{MANIFEST}; a plugin is one folder"
                )

    @property
    def names(self) -> Iterable[str]:
        return self._own.keys()

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        path = self._own[name]
        if self._package.sizes[path] > limit:
            raise Corrupt(f"{self._where}: {path!r} is larger than {limit} bytes")
        with _distrusted(self._where):
            return self._package.read(path)

    def requires(self) -> list[str]:
        """What a wheel's METADATA says that it requires."""
        if self._metadata is None or self._package.sizes[self._metadata] > _METADATA:
            return []
        with _distrusted(self._where):
            data = self._package.read(self._metadata)
            head = BytesParser().parsebytes(data, headersonly=True)
            return [str(text) for text in head.get_all("Requires-Dist", [])]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Judged as a whole; raises `NotThere`, `BadName` or `Corrupt`."""
    if path.is_dir():
        with _distrusted(path):
            contents = Contents(_Folder(path), path)
        yield contents
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotThere(f"there is no {path} on this machine") from None
    except OSError as error:
        raise BadName(f"{path}: can't be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadName(f"{path} is neither a folder nor a file")
        with _distrusted(path):
            magic = stream.read(4)
            stream.seek(0)
            if magic[:2] == b"PK":
                contents = Contents(Zip(stream, path), path)
            elif magic[:2] == b"\x1f\x8b":
                contents = Contents(Tar(stream, path), path)
            else:
                raise BadName(f"{path} is no folder, wheel, .zip or .tar.gz")
        yield contents


@contextlib.contextmanager
def _distrusted(where: Path) -> Iterator[None]:
    """Whatever the libraries make of a file that was made to harm them is that file's fault."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, OSError, EOFError),
        *(RuntimeError, ValueError, OverflowError),
    ) as error:
        raise Corrupt(f"{where} is damaged, or can't be read: {error}") from None


def _root(names: Iterable[str], where: Path) -> str:
    """The folder with plugin.toml, as a prefix of paths; empty when that is the top."""
    found = sorted(
        (name for name in names if name.rpartition("/")[2] == MANIFEST),
        key=lambda name: name.count("/"),
    )
    if not found:
        raise Corrupt(f"{where}: there is no {MANIFEST} in it, so it is no plugin")
    if len(found) > 1 and found[0].count("/") == found[1].count("/"):
        raise Corrupt(f"{where}: {found[0]!r} and {found[1]!r}: install one plugin at a time")
    return found[0][: -len(MANIFEST)]


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        table = Table(folder)
        ahead = [folder]
        while ahead:
            for entry in sorted(os.scandir(ahead.pop()), key=lambda entry: entry.name):
                name = Path(entry.path).relative_to(folder).as_posix()
                found = entry.stat(follow_symlinks=False)
                if entry.name == CACHE and stat.S_ISDIR(found.st_mode):
                    continue
                if stat.S_ISDIR(found.st_mode):
                    table.add(name, 0, folder=True)
                    ahead.append(Path(entry.path))
                elif stat.S_ISREG(found.st_mode):
                    table.add(name, found.st_size, folder=False)
                else:
                    raise table.refuse(name, "is a link, a pipe or a device")
        self.sizes = table.sizes

    def read(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._folder / name, flags), "rb") as stream:
            data = stream.read(self.sizes[name] + 1)
        if len(data) != self.sizes[name]:
            raise Corrupt(f"{self._folder / name} changed while it was read")
        return data

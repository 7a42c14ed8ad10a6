"""Zip and tar.gz files of strangers: judged by their tables of contents before anything is read.

Protects: nothing is written here at all; an archive is refused whole for any name that leaves its
folder or stands twice, any link, device or encrypted file, and for more than `MAX_ENTRIES` or
`MAX_BYTES`. Memory stays within some tens of MiB whatever the archive claims.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from gzip import GzipFile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from hxd.daemon.store.faults import Corrupt
from hxd.pluginfile import is_inside

MAX_ENTRIES = 10_000
MAX_BYTES = 256 << 20
# A name of up to 1,024 bytes and the fixed part of an entry, in a zip file's table or a tar's head.
_PER_ENTRY = 2048


class Table:
    """The names of an archive's entries as they are read, and what they amount to."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._seen: set[str] = set()
        self._parents: set[str] = set()
        self._entries = 0
        self._total = 0
        self.sizes: dict[str, int] = {}

    def refuse(self, name: str, why: str) -> Corrupt:
        return Corrupt(f"{self._where}: {name[:200]!r} {why}; nothing was installed")

    def add(self, raw: str, size: int, *, folder: bool) -> str:
        """The path; raises `Corrupt`."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Corrupt(f"{self._where}: more than {MAX_ENTRIES} entries")
        name = raw.removeprefix("./").rstrip("/") if folder else raw.removeprefix("./")
        if folder and name in ("", "."):
            return ""
        if not is_inside(name) or len(name.encode()) > 1024:
            raise self.refuse(raw, "is not a plain path inside the archive")
        parents = {parent.as_posix() for parent in PurePosixPath(name).parents}
        if name in self._seen or parents & self.sizes.keys():
            raise self.refuse(raw, "stands in it twice")
        if not folder and name in self._parents:
            raise self.refuse(raw, "is a file and a folder")
        self._seen.add(name)
        self._parents |= parents
        self._total += size
        if size < 0 or self._total > MAX_BYTES:
            raise Corrupt(f"{self._where}: more than {MAX_BYTES >> 20} MiB when unpacked")
        if not folder:
            self.sizes[name] = size
        return name


class Zip:
    def __init__(self, stream: IO[bytes], where: Path) -> None:
        self._where = where
        self._entries: dict[str, zipfile.ZipInfo] = {}
        _bounded_directory(stream, where)
        self._zip = zipfile.ZipFile(stream)
        table = Table(where)
        for entry in self._zip.infolist():
            name = entry.orig_filename
            kind = stat.S_IFMT(entry.external_attr >> 16)
            folder = name.endswith("/")
            if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
                raise table.refuse(name, "is a link or a device")
            if entry.flag_bits & 0x41:
                raise table.refuse(name, "is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise table.refuse(name, "is compressed in another way than by deflate")
            if folder and entry.file_size:
                raise table.refuse(name, "is a folder with contents")
            self._entries[table.add(name, entry.file_size, folder=folder)] = entry
        self.sizes = table.sizes

    def read(self, name: str) -> bytes:
        size = self.sizes[name]
        with self._zip.open(self._entries[name]) as stream:
            data = stream.read(size + 1)
        if len(data) != size:
            raise Corrupt(f"{self._where}: {name!r} has another size than the archive says")
        return data


def _bounded_directory(stream: IO[bytes], where: Path) -> None:
    """zipfile reads the whole table of contents before anyone can count it, and takes some hundred
    bytes of memory for each 46 of an entry."""
    end = stream.seek(0, os.SEEK_END)
    start = stream.seek(max(0, end - (1 << 16) - 22 - 20))
    tail = stream.read()
    stream.seek(0)
    # The same two places as in zipfile's own search: without a comment, then anywhere.
    at = len(tail) - 22
    if at < 0 or tail[at : at + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise Corrupt(f"{where} is no whole zip file")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise Corrupt(f"{where} is a zip64 file, which no plugin needs; make it anew")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size > min(MAX_ENTRIES * _PER_ENTRY, start + at):
        raise Corrupt(f"{where}: more than {MAX_ENTRIES} entries, or not the table it claims")


class Tar:
    def __init__(self, stream: IO[bytes], where: Path) -> None:
        self._where = where
        self._members: dict[str, tarfile.TarInfo] = {}
        self._tar = tarfile.TarFile(fileobj=cast(IO[bytes], _Unpacked(stream, where)))
        table = Table(where)
        for member in self._tar:
            name = member.name
            folder = member.type == tarfile.DIRTYPE
            if not folder and member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise table.refuse(name, "is a link, a device or of another special kind")
            if member.issparse():
                raise table.refuse(name, "is a sparse file")
            self._members[table.add(name, member.size, folder=folder)] = member
        self.sizes = table.sizes

    def read(self, name: str) -> bytes:
        stream = self._tar.extractfile(self._members[name])
        assert stream is not None
        pieces = []
        while piece := stream.read(_Unpacked.MOST):
            pieces.append(piece)
        data = b"".join(pieces)
        if len(data) != self.sizes[name]:
            raise Corrupt(f"{self._where}: {name!r} ends before its time")
        return data


class _Unpacked:
    """A gzip stream as tarfile reads it: never further than an honest archive goes, and never much
    at once, since tarfile believes what a long name says of its own length."""

    MOST = 1 << 16
    END = MAX_BYTES + MAX_ENTRIES * _PER_ENTRY

    def __init__(self, stream: IO[bytes], where: Path) -> None:
        self._gzip = GzipFile(fileobj=stream)
        self._where = where
        self.name = str(where)
        self.mode = "rb"

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.MOST:
            raise Corrupt(f"{self._where}: an entry's name or header is too long")
        self._within(self._gzip.tell() + size)
        return self._gzip.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._within(offset)
        return self._gzip.seek(offset, whence)

    def tell(self) -> int:
        return self._gzip.tell()

    def _within(self, offset: int) -> None:
        if offset > self.END:
            raise Corrupt(f"{self._where}: more than {MAX_BYTES >> 20} MiB when unpacked")

"""Makes the quantized file that a replica asks for, once, in a worker of its own.

Files lie in the cache under a name made of the source's identity, so a changed source never meets
an old copy. A file appears under its name only when it is whole. Beside it a note says what its
bytes are: it is loaded as long as they are those, and made again where they are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec

from hxd.config import durable
from hxd.daemon.store.digests import Digests, Seen, hash_file
from hxd.daemon.store.faults import StoreBroken, StoreError
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.library import Library
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.sources import Source
from hxd.daemon.store.work import Work
from hxd.daemon.supervise.quantizer import quantize
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.workers import Barred
from hxd.pluginfile import PluginError

log = logging.getLogger("hxd.supervise")

TEMPORARY = ".part"
_NOTE = ".json"
_MAX_NOTE = 1 << 16


class _Note(msgspec.Struct, frozen=True):
    """`source` with the `identity` that it had when this was made of it."""

    source: str
    identity: str
    sha256: str


class Variants:
    """`library` checks the bytes of what belongs to the store before every load, `recheck` those of
    the plugin; it raises `PluginError`."""

    def __init__(self, cache: Path, library: Library, recheck: Callable[[Plugin], None]) -> None:
        self._library = library
        self._recheck = recheck
        self._folder = cache / "variants"
        self._locks: dict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def file_for(self, replica: Replica) -> Path | None:
        """What `replica` loads; raises `PrepareError` or `OSError`."""
        source = replica.source
        file = await asyncio.to_thread(self._checked, source)
        if file is None or source.variant == source.stored:
            return file
        target = await asyncio.to_thread(self._target, source, file)
        async with self._locks[target]:
            if not await asyncio.to_thread(_whole, target, self._library.digests):
                await self._quantize(source, file, target, replica)
        return target

    def _checked(self, source: Source) -> Path | None:
        """The file whose bytes were looked at. Raises `Barred` for those that are not what they
        were when they were accepted."""
        try:
            self._recheck(source.plugin)
            if source.held is not None:
                version = self._library.version(source.held.name, source.held.number)
                return ensure(self._library, version, source.stored)
        except (PluginError, StoreError, StoreBroken) as error:
            raise Barred(str(error)) from None
        return source.file

    def _target(self, source: Source, file: Path) -> Path:
        key = hashlib.sha256(_identity(file).encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{file.stem}-{key}-{source.variant}.gguf"

    async def _quantize(self, source: Source, file: Path, target: Path, replica: Replica) -> None:
        part = target.with_suffix(TEMPORARY)

        def told(share: float, note: str) -> None:
            replica.note = f"{note} {share:.0%}" if share else note

        try:
            await quantize(source.plugin, file, part, source.variant, told)
            await asyncio.to_thread(_publish, part, target, file, self._library)
        finally:
            # What was not finished may be as large as a model, and nobody may want it again.
            part.unlink(missing_ok=True)


def _identity(file: Path) -> str:
    """Of a source; raises `OSError` where it is not there."""
    found = file.stat()
    return f"{file}|{found.st_dev}|{found.st_ino}|{found.st_size}|{found.st_mtime_ns}"


def _publish(part: Path, target: Path, source: Path, library: Library) -> None:
    """Whole and on disk before it can be seen under its name, and its note before that."""
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        began = library.wall()
        digest = hash_file(descriptor, target.name, Work())
        note = _Note(str(source), _identity(source), str(digest))
        durable.replace(target.with_suffix(_NOTE), msgspec.json.encode(note))
        part.rename(target)
        durable.sync(target.parent)
        library.digests.remember({Seen.of(descriptor): digest}, began)
    finally:
        os.close(descriptor)


def _whole(target: Path, digests: Digests) -> bool:
    """Whether it is there and has the bytes that were written; read only where it is not known."""
    try:
        note = _read(target.with_suffix(_NOTE))
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, msgspec.DecodeError, RecursionError):
        return False
    try:
        found = digests.of(descriptor, target.name, Work())
    except (OSError, StoreError) as error:
        log.warning("%s can't be read, and is made again: %s", target, error)
        return False
    finally:
        os.close(descriptor)
    if found != note.sha256:
        log.warning("%s is damaged, and is made again: its sha256 is %s", target, found.short)
    return found == note.sha256


def _read(file: Path) -> _Note:
    with file.open("rb") as stream:
        return msgspec.json.decode(stream.read(_MAX_NOTE), type=_Note)


def clean(cache: Path) -> None:
    """Removes what a crash left half-written, and copies of files that are gone or have changed:
    nobody would ask for them again."""
    folder = cache / "variants"
    for part in folder.glob(f"*{TEMPORARY}"):
        part.unlink(missing_ok=True)
    for file in (*folder.glob("*.gguf"), *folder.glob(f"*{_NOTE}")):
        stays = False
        with contextlib.suppress(OSError, msgspec.DecodeError, RecursionError):
            note = _read(file.with_suffix(_NOTE))
            stays = file.with_suffix(".gguf").exists() and _identity(Path(note.source)) == (
                note.identity
            )
        if not stays:
            file.unlink(missing_ok=True)

"""Makes the quantized file that a replica asks for, once, in a worker of its own.

Files lie in the cache under a name made of the source's identity, so a changed source never meets
an old copy. A file appears under its name only when it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from hxd.config import durable
from hxd.daemon.store.faults import StoreBroken, StoreError
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.library import Library
from hxd.daemon.store.plugins import Plugin
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.quantizer import quantize
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.workers import Barred
from hxd.pluginfile import PluginError

TEMPORARY = ".part"


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
            if not await asyncio.to_thread(target.exists):
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
        found = file.stat()
        identity = f"{file}|{found.st_dev}|{found.st_ino}|{found.st_size}|{found.st_mtime_ns}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{file.stem}-{key}-{source.variant}.gguf"

    async def _quantize(self, source: Source, file: Path, target: Path, replica: Replica) -> None:
        part = target.with_suffix(TEMPORARY)

        def told(share: float, note: str) -> None:
            replica.note = f"{note} {share:.0%}" if share else note

        try:
            await quantize(source.plugin, file, part, source.variant, told)
            await asyncio.to_thread(_publish, part, target)
        finally:
            # What was not finished may be as large as a model, and nobody may want it again.
            part.unlink(missing_ok=True)


def _publish(part: Path, target: Path) -> None:
    """Whole and on disk before it can be seen under its name."""
    durable.sync(part)
    part.rename(target)
    durable.sync(target.parent)


def clean(cache: Path) -> None:
    """Remove what a crash left half-written."""
    for part in (cache / "variants").glob(f"*{TEMPORARY}"):
        part.unlink(missing_ok=True)

"""One model in another format becomes one GGUF file in a workspace, by the converter and, where a
quantization is wanted, by the quantizer after it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hxd import gguf
from hxd.daemon.store import disk
from hxd.daemon.store.faults import StoreBroken
from hxd.daemon.store.filetypes import variant_of
from hxd.daemon.store.foreign import Convertible, NoConverter
from hxd.daemon.store.plugins import Plugins
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.sources import WEIGHT
from hxd.daemon.store.work import Work
from hxd.daemon.supervise.converter import PLUGIN, convert
from hxd.daemon.supervise.errand import ErrandError
from hxd.daemon.supervise.quantizer import memory_for, quantize
from hxd.daemon.supervise.workers import PrepareError
from hxd.errors import BackendError
from hxd.pluginfile import PluginError

# What the converter itself writes; other variants are quantized from that.
WEIGHTS = ("f32", "f16", "bf16")
# A disk that takes no more, or not this.
_DISK = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"})


@dataclass(frozen=True)
class Made:
    """`by`: the plugin. `notes`: where the model differs from its source."""

    file: Path
    by: str
    notes: list[str]


async def make(
    found: Convertible,
    space: Path,
    name: ModelName,
    variant: str | None,
    plugins: Plugins,
    quantizer: str,
    work: Work,
) -> Made:
    """`quantizer` is the plugin to quantize with, or auto. Raises `NoConverter`, `StoreBroken` for
    a full disk, `Cancelled`, and `BackendError`."""
    quantized = variant if variant not in (None, *WEIGHTS) else None
    stem = name.replace("/", "-")
    first = space / "converted.gguf"
    await asyncio.to_thread(
        disk.check_room, space, _room(found.bytes, variant), f"convert {found.folder.name}"
    )
    try:
        converter = await asyncio.to_thread(plugins.choose, PLUGIN, None)
    except PluginError as error:
        raise NoConverter(str(error)) from None
    # What stopped it may have come where nothing listened.
    work.check()
    told = _told(work, "convert", found.bytes)
    try:
        weights = None if quantized else variant
        notes = await convert(converter, found.folder, first, name, weights, told)
    except ErrandError as error:
        if error.refused:
            raise NoConverter(f"{found.folder} can't be converted: {error}", param="path") from None
        if error.code in _DISK:
            number = getattr(errno, error.code)
            failure = OSError(number, os.strerror(number))
            raise disk.broken(f"convert {found.folder.name}", failure) from None
        raise BackendError(f"{found.folder} can't be converted: {error}") from None
    if quantized is None:
        made = variant_of(await asyncio.to_thread(gguf.read_header, first))
        return Made(first.rename(space / f"{stem}-{made}.gguf"), converter.reference, notes)
    size = first.stat().st_size
    second = space / f"{stem}-{quantized}.gguf"
    try:
        plugin = await asyncio.to_thread(plugins.choose, quantizer, "gguf")
        told = _told(work, "quantize", size)
        await quantize(plugin, first, second, quantized, told, memory_for(size), aside=True)
    except (PrepareError, PluginError) as error:
        raise await _unwritten(space, str(error)) from None
    return Made(second, f"{converter.reference} and {plugin.reference}", notes)


def _room(size: int, variant: str | None) -> int:
    """Bytes that are needed at most: tensors of two bytes may become such of four, and a quantized
    file stands beside what it is made of until it is whole."""
    if variant == "f32":
        return 2 * size
    return size if variant in (None, *WEIGHTS) else size + int(size * WEIGHT[variant] / 2)


def _told(work: Work, step: str, size: int) -> Callable[[float, str], None]:
    def told(share: float, note: str) -> None:
        # The sizes are the source's: how much of it has been read.
        work.progress(step, int(size * min(1.0, max(0.0, share))), size if share else 0)

    return told


async def _unwritten(space: Path, message: str) -> StoreBroken | BackendError:
    """llama.cpp says no more of a full disk than that a write failed."""
    free = (await asyncio.to_thread(shutil.disk_usage, space)).free
    if free < await asyncio.to_thread(disk.reserve, space):
        return StoreBroken(f"{message}. The disk is full: hxctl model rm NAME@VERSION, or see df")
    return BackendError(message)

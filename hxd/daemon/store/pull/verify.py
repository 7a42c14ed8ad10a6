"""Whether a file that arrived is the one that was meant. Blocks: it reads the whole file once."""

from __future__ import annotations

import hashlib
import os

from hxd import gguf
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.pull.disk import trouble
from hxd.daemon.store.pull.limits import MIB
from hxd.daemon.store.pull.part import Part
from hxd.daemon.store.work import Work
from hxd.gguf import ModelFileError

_BLOCK = 8 * MIB


class Mismatch(Corrupt):
    """Not the bytes that were meant; another try may bring those."""


def sha256(part: Part, work: Work) -> str:
    """In hex, of what is in the part now."""
    digest = hashlib.sha256()
    total, at = part.size or 0, 0
    with trouble(part.path.parent):
        while block := os.pread(part.descriptor, _BLOCK, at):
            digest.update(block)
            at += len(block)
            work.told("verify", at, total)
    return digest.hexdigest()


def check(part: Part, expected: str | None, announced: int | None, work: Work) -> str:
    """The sha256 of the part, in hex; raises `Mismatch` or `Corrupt`. `expected` is None where
    nobody says, `announced` where the server told no size."""
    found = sha256(part, work)
    name = part.final.name
    if expected is not None and found != expected:
        raise Mismatch(
            f"{name}: its sha256 is {found}, and should be {expected}; what arrived is deleted"
        )
    try:
        kind = gguf.detect(part.path)
    except ModelFileError as error:
        raise Corrupt(f"{name}: {error}; what arrived is deleted") from None
    if expected is None and announced is None and kind == "gguf":
        # Without a length, a connection that broke looks like the end of the file.
        try:
            gguf.read_header(part.path)
        except ModelFileError as error:
            raise Mismatch(f"{name}: {error}; what arrived is deleted") from None
    return found

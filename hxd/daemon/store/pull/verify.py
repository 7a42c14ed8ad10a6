"""Whether a file that arrived is the one that was meant. Blocks: it reads the whole file once."""

from __future__ import annotations

from dataclasses import replace

from hxd import gguf
from hxd.daemon.store.digests import hash_file
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.pull.part import Part
from hxd.daemon.store.reference import Digest
from hxd.daemon.store.work import Work
from hxd.gguf import ModelFileError


class Mismatch(Corrupt):
    """Not the bytes that were meant; another try may bring those."""


def check(part: Part, expected: str | None, announced: int | None, work: Work) -> Digest:
    """The sha256 of the part; raises `Mismatch` or `Corrupt`. `expected` is None where nobody
    says, `announced` where the server told no size."""
    name = part.final.name

    def progress(step: str, done: int, total: int) -> None:
        work.progress("verify", done, total)

    with guarded(f"read {part.path}"):
        found = hash_file(part.descriptor, name, replace(work, progress=progress))
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

"""Whether what arrives can be the model file that its name says, from its first bytes. So that a
web page is not taken for one until the end, and not written at all."""

from __future__ import annotations

from typing import Protocol

from hxd.daemon.store.faults import SourceFailed
from hxd.ggml.layouts import MAGICS

LENGTH = 64
_PAGE = (b"<!doctype html", b"<html", b"<?xml", b"<head")
_POINTER = b"version https://git-lfs"


class Body(Protocol):
    async def readany(self) -> bytes: ...


async def read(body: Body) -> bytes:
    start = b""
    while len(start) < LENGTH and (chunk := await body.readany()):
        start += chunk
    return start[:LENGTH]


def refuse(name: str, shown: str, start: bytes, kind: str) -> None:
    """Raises `SourceFailed`; `start` is `LENGTH` bytes or all there are, `kind` the
    Content-Type."""
    lower = name.lower()
    gguf = lower.endswith(".gguf")
    older = lower.endswith((".ggml", ".ggjt", ".ggmf")) or (
        "ggml" in lower and lower.endswith(".bin")
    )
    if start[:4] == b"GGUF" or (start[:4] in MAGICS and not gguf):
        return
    if start.lstrip().lower().startswith(_PAGE):
        raise SourceFailed(
            f"{shown}: the server sent a web page ({kind or 'of no type'}), not {name}; open it "
            "in a browser to see what it asks for"
        )
    if start.startswith(_POINTER):
        raise SourceFailed(f"{shown}: this is a Git LFS pointer, not the file it stands for")
    if gguf or older:
        raise SourceFailed(
            f"{shown}: what the server sent ({kind or 'of no type'}) starts with "
            f"{start[:8].hex(' ') or 'nothing'}, so it is no {'GGUF' if gguf else 'GGML'} file"
        )

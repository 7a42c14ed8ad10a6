"""Which architectures there are, and which of them a folder says that it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from gguf import GGUFWriter

from hxd.hookspecs import NotConvertible

from . import bert, decoder
from .folder import Folder
from .settings import Settings
from .weights import Entry

ARCHITECTURES = (*decoder.KINDS, bert.NAME)


class Model(Protocol):
    """One model: `gguf` is what llama.cpp calls its architecture, `vocabulary` how many tokens it
    has rows for, `context` how many it was trained for at a time; `hidden` and `inner` are values
    between layers and within one; `factors` is what divides the frequencies of its rotary
    embeddings, if anything."""

    @property
    def gguf(self) -> str: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def inner(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def factors(self) -> tuple[float, ...]: ...

    def entries(self) -> Iterator[Entry]:
        """All tensors that it must have."""
        ...

    def spare(self, name: str) -> bool:
        """Whether a tensor of the source may be left out."""
        ...

    def describe(self, writer: GGUFWriter) -> None:
        """The numbers that others do not have."""
        ...

    def notes(self) -> list[str]: ...


def read(folder: Folder, found: dict[str, Any]) -> Model:
    """Raises `NotConvertible`."""
    settings = Settings(found)
    settings.only("auto_map", None)
    name = _name(found)
    return bert.read(folder, settings) if name == bert.NAME else decoder.read(settings, name)


def _name(found: dict[str, Any]) -> str:
    named = found.get("architectures")
    names = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    for name in names:
        if name in ARCHITECTURES:
            return name
    what = ", ".join(name[:100] for name in names[:3]) or "no architecture that it names"
    raise NotConvertible(f"{what} is not converted; there are {', '.join(ARCHITECTURES)}")

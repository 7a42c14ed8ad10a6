"""Model files from before GGUF, from their headers alone; every number in them may be hostile.

Reads far enough to know that each tensor of the family is there once, with the shape and type that
the ctransformers library expects, and that all of it lies inside the file: the library trusts its
files, and a bad one crashes it. Never reads tensor data, and never allocates by a number found in
the file.

The first bytes don't say which family a file belongs to. The header is tried in every layout, and
where more than one makes sense of the whole file, the operator must say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hxd.errors import nearest
from hxd.ggml.layouts import FAMILIES, LAYOUTS, MAGICS, Layout, layout_of
from hxd.ggml.reader import Reader
from hxd.gguf import ModelFileError, opened

# Families whose caches hold float32, and those that keep values twice.
_WIDE = frozenset({"gpt2", "starcoder", "falcon"})
_TWICE = frozenset({"falcon"})


class FamilyError(ModelFileError):
    """The operator must say which family it is, or has said something impossible."""


@dataclass(frozen=True)
class Header:
    """`size` is the file's in bytes; `file_type` the variant's name, as in `f16`; `context` the
    trained one in tokens, or None where the file does not say. `vocab` counts words, `width` the
    values of an embedding, `inner` those inside the feed-forward network."""

    family: str
    file_type: str
    size: int
    tensors: int
    vocab: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    context: int | None

    def cache_bytes(self, context: int) -> int:
        """What the library takes for the keys and values of `context` tokens. Where the file says
        a context, most families take that, whatever is asked for."""
        cells = context if self.context is None or self.family == "mpt" else self.context
        copies = 3 if self.family in _TWICE else 2
        width = self.width // self.heads * self.kv_heads
        return cells * self.layers * width * copies * (4 if self.family in _WIDE else 2)


@dataclass(frozen=True)
class Vocabulary:
    """`words` by id, with their `scores` (0 where a family has none); `merges` by rank."""

    words: list[bytes] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[tuple[bytes, bytes]] = field(default_factory=list)


def read_header(path: Path, family: str | None = None) -> Header:
    """Header of an older file, in the `family` that the operator names or in the only one that
    fits. Raises `ModelFileError`, and `FamilyError` where another `family` could help."""
    with opened(path) as file:
        magic = file.read(4)
    layouts = [layout for layout in LAYOUTS if magic in layout.magics]
    if not layouts:
        raise ModelFileError("not one of the older GGML files")
    if family is None:
        return _guess(path, layouts)
    if family not in FAMILIES:
        raise FamilyError(
            f"no family {family!r}.{nearest(str(family), FAMILIES)} There are: "
            f"{', '.join(FAMILIES)}"
        )
    layout = layout_of(family)
    if layout not in layouts:
        raise FamilyError(
            f"a {MAGICS[magic]} file of {family} is not read, only "
            f"{' and '.join(sorted(MAGICS[other] for other in layout.magics))}; as "
            f"{MAGICS[magic]} there are: {', '.join(_families(layouts))}"
        )
    return _read(path, layout, family)


def read_vocabulary(path: Path, family: str) -> Vocabulary:
    """The words of a file whose header is good."""
    with opened(path) as file:
        reader = Reader(file, layout_of(family))
        reader.start()
        found = Vocabulary()
        for word, score in reader.words():
            found.words.append(_unspell(word) if family == "mpt" else word)
            found.scores.append(score)
        found.merges.extend(reader.merges())
        return found


def _guess(path: Path, layouts: list[Layout]) -> Header:
    headers: list[Header] = []
    fitting: list[str] = []
    furthest, reason = -1, ""
    for layout in layouts:
        reached: list[int] = []
        try:
            headers.append(_read(path, layout, layout.families[0], reached))
            fitting += layout.families
        except ModelFileError as error:
            if reached[0] > furthest:
                furthest = reached[0]
                reason = f"{error} (read as {' or '.join(layout.families)})"
    if not headers:
        raise ModelFileError(reason)
    if len(fitting) > 1:
        raise FamilyError(
            f"the file may be {' or '.join(fitting)}, and nothing in it says which: set "
            f'family = "{fitting[0]}" or another'
        )
    return headers[0]


def _read(path: Path, layout: Layout, family: str, reached: list[int] | None = None) -> Header:
    """`reached`, if given, gets how many bytes were understood."""
    with opened(path) as file:
        reader = Reader(file, layout)
        try:
            return _header(reader, family)
        finally:
            if reached is not None:
                reached.append(reader.at)


def _header(reader: Reader, family: str) -> Header:
    reader.start()
    for word, _ in reader.words():
        if family == "mpt":
            _unspell(word)
    for _ in reader.merges():
        pass
    tensors, sizes = reader.tensors()
    hyper = reader.hyper
    head = hyper["width"] // hyper["heads"]
    kv_heads, rest = divmod(sizes["K"], head)
    if rest or not kv_heads or hyper["heads"] % kv_heads:
        raise ModelFileError(f"keys of {sizes['K']} values are no share of {hyper['heads']} heads")
    return Header(
        family=family,
        file_type=reader.file_type,
        size=reader.size,
        tensors=tensors,
        vocab=hyper["vocab"],
        width=hyper["width"],
        inner=sizes["F"],
        heads=hyper["heads"],
        kv_heads=kv_heads,
        layers=hyper["layers"],
        context=hyper.get("context"),
    )


def _families(layouts: list[Layout]) -> list[str]:
    return [family for layout in layouts for family in layout.families]


def _unspell(word: bytes) -> bytes:
    """MPT's files have a character of UTF-8 for each byte; the library ends on others."""
    if word.isascii():
        return word
    try:
        return bytes(ord(character) & 0xFF for character in word.decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelFileError(f"the word {word!r} is not UTF-8, as those of MPT are") from None

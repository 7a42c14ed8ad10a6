"""One model's vocabulary: text to token ids, ids to bytes, and which ids end a sequence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hxd import ggml

from .cutting import SPACE, BytePairs, Cutter, Greedy, SentencePiece, Unigram

END = b"<|endoftext|>"
# Control tokens of the older families besides those that are spelled `<|name|>`.
_SPECIAL = {
    "dolly-v2": {b"### End", b"### Instruction:", b"### Response:", b"### Response:\n"},
    "starcoder": {
        b"<fim-prefix>", b"<fim-middle>", b"<fim-suffix>", b"<fim-pad>",
        b"<fim_prefix>", b"<fim_middle>", b"<fim_suffix>", b"<fim_pad>",
    },
}  # fmt: skip
_SPELLED = re.compile(rb"<\|[^|<>\s]{1,48}\|>")
# Words that end an answer wherever they are control tokens.
ENDINGS = {END, b"</s>", b"<|end|>", b"<|im_end|>", b"<|eot_id|>", b"<|end_of_turn|>", b"### End"}
# Falcon's control tokens by id: the first ones, and those added when it was tuned.
_FALCON_FIRST, _FALCON_ADDED = 12, 65024


@dataclass(frozen=True)
class Words:
    """A vocabulary as the model's file has it. `pieces`: what each token adds to a text. `special`:
    control tokens by their spelling, whose pieces are empty; `fixed`: others that are never made
    of smaller ones. `start`: ids before a prompt; `lead`: text before each plain part of it.
    `spelled`: every token as a GGUF file spells it, by which llama_cpp knows the same vocabulary
    again; None for older files."""

    pieces: list[bytes]
    special: dict[str, int]
    ending: frozenset[int]
    cutter: Cutter
    fixed: dict[str, int] = field(default_factory=dict)
    start: list[int] = field(default_factory=list)
    lead: str = ""
    bos: str = ""
    eos: str = ""
    spelled: list[bytes] | None = None


class Vocabulary:
    """Safe to use from two threads: nothing changes after construction."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self.size = len(words.pieces)
        self.ending = words.ending
        self.special_tokens = words.special
        self.bos, self.eos = words.bos, words.eos
        self._spelled = {id: text.encode() for text, id in words.special.items()}
        self._whole = words.fixed | words.special
        self._fixed = _any_of(words.fixed)
        self._parsed = _any_of(self._whole)
        digest = hashlib.sha256()
        for id, piece in enumerate(words.spelled or words.pieces):
            text = piece if words.spelled else self._spelled.get(id, piece)
            digest.update(len(text).to_bytes(4, "big") + text)
        self.digest = digest.hexdigest()

    @property
    def infill(self) -> tuple[int, int, int] | None:
        """Ids of StarCoder's tokens before a prefix, a suffix and what goes between them."""
        for spelling in ("<fim_{}>", "<fim-{}>"):
            names = [spelling.format(part) for part in ("prefix", "suffix", "middle")]
            if all(name in self.special_tokens for name in names):
                before, behind, middle = (self.special_tokens[name] for name in names)
                return before, behind, middle
        return None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = list(self._words.start) if add_special else []
        whole = self._parsed if parse_special else self._fixed
        at = 0
        for match in whole.finditer(text) if whole else ():
            tokens += self._plain(text[at : match.start()])
            tokens.append(self._whole[match[0]])
            at = match.end()
        return tokens + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        return self._words.cutter.cut(self._words.lead + text) if text else []

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; for control tokens b"", or their spelling with `special`."""
        if not 0 <= token < self.size:
            return b""
        if special and token in self._spelled:
            return self._spelled[token]
        return self._words.pieces[token]


def _any_of(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the longest of them."""
    ordered = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def legacy(family: str, found: ggml.Vocabulary) -> Words:
    """The vocabulary of an older file."""
    if family == "llama":
        return _llama(found)
    words = found.words
    control = {
        id: word
        for id, word in enumerate(words)
        if word in _SPECIAL.get(family, ()) or _SPELLED.fullmatch(word)
    }
    if family == "falcon":
        ids = [*range(_FALCON_FIRST), *range(_FALCON_ADDED, len(words))]
        control |= {id: words[id] for id in ids if words[id]}
    cutter: Cutter
    if family == "falcon":
        cutter = BytePairs(found)
    elif family == "replit":
        cutter = Unigram(words, found.scores)
    else:
        cutter = Greedy(words)
    endings = {id for id, word in control.items() if word in ENDINGS}
    pieces = [
        b"" if id in control else word.replace(SPACE, b" ") if family == "replit" else word
        for id, word in enumerate(words)
    ]
    return Words(
        pieces=pieces,
        special=_spellings(control),
        ending=frozenset(endings),
        cutter=cutter,
        eos=END.decode() if END in control.values() else "",
    )


def _llama(found: ggml.Vocabulary) -> Words:
    """Ids 0 to 2 are control tokens, whose names the older files leave out."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces = [b"", b"", b"", *found.words[3:]]
    return Words(
        pieces=pieces,
        special=special,
        ending=frozenset({2}),
        cutter=SentencePiece(pieces, found.scores, unknown=0),
        start=[1],
        lead=" ",
        bos="<s>",
        eos="</s>",
    )


def _spellings(control: dict[int, bytes]) -> dict[str, int]:
    spelled: dict[str, int] = {}
    for id, word in control.items():
        spelled.setdefault(word.decode("utf-8", "replace"), id)
    return spelled

"""What a tokenizer becomes in GGUF: a text, a kind and perhaps a score for every token id."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hxd.hookspecs import NotConvertible

from .folder import Folder

FILE = "tokenizer.json"
MAX_FILE = 128 << 20
# Characters. Those of known vocabularies have at most some hundred; whoever looks at all the parts
# of a token takes the square of it.
MAX_TOKEN = 1024


class Type(enum.IntEnum):
    """As llama.cpp and SentencePiece number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Vocabulary:
    """`model` and `pre` as llama.cpp calls the tokenizer and how it cuts texts before. `prefix`: a
    space goes before every text; None where the tokenizer has no such thing. `begins`, `ends`: the
    tokenizer itself puts the first and the last token; None where its files don't say."""

    model: str
    tokens: list[str] = field(default_factory=list)
    types: list[Type] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    prefix: bool | None = None
    begins: bool | None = None
    ends: bool | None = None
    unknown: int | None = None
    notes: list[str] = field(default_factory=list)

    def put(self, id: int, text: str, type: Type, score: float = 0.0) -> None:
        """Ids may come in any order; those that never come are unused."""
        self.extend(id + 1)
        self.tokens[id], self.types[id], self.scores[id] = text, type, score

    def extend(self, size: int) -> None:
        for id in range(len(self.tokens), size):
            # A name that no text has: in llama.cpp no two tokens may be spelled the same.
            self.tokens.append(f"[PAD{id}]")
            self.types.append(Type.UNUSED)
            self.scores.append(-10_000.0)

    def fit(self, size: int) -> None:
        """As many as the model has rows for; raises `NotConvertible` where there are more, or where
        one spelling stands for two."""
        if len(self.tokens) > size:
            raise NotConvertible(
                f"the tokenizer has ids up to {len(self.tokens) - 1}; by config.json the model has "
                f"{size} (vocab_size)"
            )
        self.extend(size)
        if len(set(self.tokens)) != size:
            seen: set[str] = set()
            twice = next(one for one in self.tokens if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise NotConvertible(f"the tokenizer has two tokens {twice[:100]!r}")

    def ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def entries(found: Any, file: str, size: int) -> list[tuple[str, int]]:
    """Token and id of a `vocab`, by id; raises `NotConvertible`."""
    if not isinstance(found, dict) or not found:
        raise NotConvertible(f"{file} has no vocabulary")
    pairs = sorted(found.items(), key=lambda pair: pair[1] if isinstance(pair[1], int) else -1)
    ids = set()
    for token, id in pairs:
        if len(token) > MAX_TOKEN:
            raise NotConvertible(
                f"{file}: a token of {len(token)} characters; {MAX_TOKEN} are possible"
            )
        if not _id(id, size) or id in ids:
            raise NotConvertible(f"{file}: the token {token[:100]!r} has the id {str(id)[:100]}")
        ids.add(id)
    return pairs


def additions(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer.json; raises `NotConvertible`."""
    listed = found.get("added_tokens") or []
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and isinstance(one.get("content"), str) for one in listed
    ):
        raise NotConvertible(f"{FILE}: added_tokens holds what is no token")
    return listed


def add(vocabulary: Vocabulary, added: Iterable[Any], file: str, size: int) -> None:
    """Tokens that are found in a text before it is cut; what is special is never text. Raises
    `NotConvertible`."""
    spaced = []
    for one in added:
        if not isinstance(one, dict):
            raise NotConvertible(f"{file}: added_tokens holds what is no token")
        text, id = one.get("content"), one.get("id")
        if not isinstance(text, str) or not text or not _id(id, size):
            raise NotConvertible(f"{file}: the added token {str(text)[:100]!r} has no valid id")
        there = vocabulary.tokens[id] if id < len(vocabulary.tokens) else None
        if there not in (None, text) and vocabulary.types[id] is not Type.UNUSED:
            raise NotConvertible(f"{file}: the id {id} is {there!r} and the added token {text!r}")
        special = one.get("special") is True
        if there == text and vocabulary.types[id] in (Type.BYTE, Type.UNKNOWN):
            continue
        vocabulary.put(id, text, Type.CONTROL if special else Type.USER_DEFINED)
        if not special and any(one.get(key) is True for key in ("lstrip", "rstrip", "single_word")):
            spaced.append(text)
    if spaced:
        vocabulary.note(
            f"spaces beside {', '.join(map(repr, spaced[:3]))} stay in the text, where the "
            "original tokenizer swallows them"
        )


def steps(found: Any, key: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a list, also where it is a single one; what it is made of
    stands below `key`."""
    if not isinstance(found, dict):
        return []
    inside = found.get(key) if found.get("type") == "Sequence" else [found]
    return [one for one in inside if isinstance(one, dict)] if isinstance(inside, list) else []


def framed(found: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Sets `begins` and `ends` by the post-processor of a tokenizer.json; raises
    `NotConvertible` for one that adds something else."""
    waiting = [found.get("post_processor")]
    while waiting:
        step = waiting.pop(0)
        if not isinstance(step, dict) or step.get("type") == "ByteLevel":
            continue
        if step.get("type") == "Sequence":
            inside = step.get("processors")
            waiting += inside if isinstance(inside, list) else []
            continue
        single = step.get("single")
        if step.get("type") != "TemplateProcessing" or not isinstance(single, list):
            raise NotConvertible(
                f"{FILE}: the post-processor {str(step.get('type'))[:100]!r} is not converted"
            )
        order = [
            "text" if isinstance(one, dict) and "Sequence" in one else "special" for one in single
        ]
        if order.count("text") != 1 or len(order) > 3 or order.count("special") > 2:
            raise NotConvertible(
                f"{FILE}: the post-processor adds more than a first and last token"
            )
        at = order.index("text")
        if at > 1 or len(order) - at > 2:
            raise NotConvertible(
                f"{FILE}: the post-processor adds more than a first and last token"
            )
        vocabulary.begins, vocabulary.ends = at == 1, len(order) - at == 2


def read_json(folder: Folder) -> dict[str, Any]:
    return folder.json(FILE, MAX_FILE)


def _id(found: Any, size: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < size

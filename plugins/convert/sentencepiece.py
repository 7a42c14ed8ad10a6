"""SentencePiece vocabularies of the BPE kind: out of a tokenizer.model, or of a tokenizer.json that
was made of one.

A tokenizer.model is a protobuf message; the few fields that are needed are read here. llama.cpp
merges two neighbours into the token with the best score, and knows no list of merges: one that says
something else is refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import Any

from hxd.hookspecs import NotConvertible

from .folder import Folder
from .vocabulary import FILE, Type, Vocabulary, add, additions, entries, framed, steps

MODEL = "tokenizer.model"
MAX_MODEL = 64 << 20
SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BPE = 2  # of TrainerSpec.ModelType
_UNIGRAM = 1


def read_model(folder: Folder, size: int) -> Vocabulary:
    """Of tokenizer.model, with the tokens that tokenizer.json or tokenizer_config.json add."""
    vocabulary = Vocabulary("llama", prefix=True)
    kind = _UNIGRAM
    for number, value in _message(folder.read(MODEL, MAX_MODEL)):
        if number == 1 and isinstance(value, bytes):
            _piece(value, vocabulary)
        elif number == 2 and isinstance(value, bytes):
            for key, setting in _message(value):
                if key == 3 and isinstance(setting, int):
                    kind = setting
        elif number == 3 and isinstance(value, bytes):
            _normalizer(value, vocabulary)
    if kind != _BPE:
        raise NotConvertible(
            f"{MODEL} is a SentencePiece model of kind {kind}; those of kind BPE (2) are converted"
        )
    if not vocabulary.tokens:
        raise NotConvertible(f"{MODEL} has no tokens")
    vocabulary.extend(len(vocabulary.tokens))
    _added(folder, vocabulary, size)
    return vocabulary


def _piece(data: bytes, vocabulary: Vocabulary) -> None:
    text, score, type = "", 0.0, 1
    for number, value in _message(data):
        if number == 1 and isinstance(value, bytes):
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                raise NotConvertible(f"{MODEL}: a token is not UTF-8") from None
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            type = value
    if not text or not math.isfinite(score) or type not in list(Type):
        raise NotConvertible(f"{MODEL}: the token {text[:100]!r} has score {score} and type {type}")
    id = len(vocabulary.tokens)
    if type == Type.UNKNOWN:
        vocabulary.unknown = id
    vocabulary.put(id, text, Type(type), score)


def _normalizer(data: bytes, vocabulary: Vocabulary) -> None:
    name, charsmap, prefix, whitespace = "", b"", True, True
    for number, value in _message(data):
        if number == 1 and isinstance(value, bytes):
            name = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes):
            charsmap = value
        elif number == 3:
            prefix = bool(value)
        elif number == 4:
            whitespace = bool(value)
    vocabulary.prefix = prefix
    if charsmap and name != "identity":
        vocabulary.note(f"texts are not normalized ({name[:100]}) before they are tokenized")
    if whitespace:
        vocabulary.note("several spaces in a row stay several")


def _added(folder: Folder, vocabulary: Vocabulary, size: int) -> None:
    found = folder.json(FILE, 128 << 20, optional=True)
    if found:
        add(vocabulary, additions(found), FILE, size)
        framed(found, vocabulary)
        return
    config = folder.json("tokenizer_config.json", optional=True)
    decoder = config.get("added_tokens_decoder")
    added = decoder.items() if isinstance(decoder, dict) else ()
    tokens = [
        {**one, "id": int(id)}
        for id, one in added
        if isinstance(one, dict) and id.isdecimal() and len(id) < 10
    ]
    if not tokens:
        listed = folder.json("added_tokens.json", optional=True)
        tokens = [{"content": text, "id": id, "special": False} for text, id in listed.items()]
    add(vocabulary, tokens, "tokenizer_config.json", size)


def matches(found: dict[str, Any]) -> bool:
    """Whether a tokenizer.json was made of a SentencePiece model of the BPE kind."""
    model = found.get("model")
    return (
        isinstance(model, dict) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))
    )


def read_json(found: dict[str, Any], size: int) -> Vocabulary:
    """Of a tokenizer.json; raises `NotConvertible`."""
    model = found["model"]
    if model.get("dropout") not in (None, 0, 0.0) or model.get("ignore_merges"):
        raise NotConvertible(f"{FILE}: dropout and ignore_merges are not converted")
    vocabulary = Vocabulary("llama")
    vocabulary.prefix = _prefix(found, vocabulary)
    tokens = entries(model.get("vocab"), FILE, size)
    unknown = model.get("unk_token")
    aside = {one["content"] for one in additions(found)}
    if isinstance(unknown, str):
        aside.add(unknown)
    ranks = _ranks(model.get("merges"), dict(tokens), aside)
    for token, id in tokens:
        type = Type.BYTE if _BYTE.fullmatch(token) else Type.NORMAL
        if token == unknown:
            type, vocabulary.unknown = Type.UNKNOWN, id
        # What no merge makes is one character, and is looked up, never merged into.
        vocabulary.put(id, token, type, -float(ranks.get(token, len(ranks))))
    if sum(type is Type.BYTE for type in vocabulary.types) != 256:
        raise NotConvertible(f"{FILE}: byte_fallback without a token for each byte")
    add(vocabulary, additions(found), FILE, size)
    framed(found, vocabulary)
    return vocabulary


def _ranks(found: Any, vocabulary: dict[str, int], aside: set[Any]) -> dict[str, int]:
    """In which order tokens are made; raises `NotConvertible` unless the merges are those that such
    an order gives: all pairs that make a token in one run, and no pair left out. Tokens `aside` are
    found before anything is merged."""
    if not isinstance(found, list):
        raise NotConvertible(f"{FILE} has no merges")
    ranks: dict[str, int] = {}
    pairs: set[tuple[str, str]] = set()
    last = None
    for one in found:
        pair = one.split(" ") if isinstance(one, str) else one
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(part in vocabulary for part in pair)
        ):
            raise NotConvertible(f"{FILE}: {str(one)[:100]!r} is not a merge of two tokens")
        made = pair[0] + pair[1]
        if made not in vocabulary or (made in ranks and made != last):
            raise NotConvertible(
                f"{FILE}: its merges go in an order that llama.cpp can't follow (at {made[:100]!r})"
            )
        ranks.setdefault(made, len(ranks))
        pairs.add((pair[0], pair[1]))
        last = made
    for made in vocabulary:
        if made in aside or _BYTE.fullmatch(made):
            continue
        for at in range(1, len(made)):
            left, right = made[:at], made[at:]
            if left in vocabulary and right in vocabulary and (left, right) not in pairs:
                raise NotConvertible(
                    f"{FILE}: its merges leave out {left[:100]!r} {right[:100]!r}, which llama.cpp "
                    "would take"
                )
    return ranks


def _prefix(found: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether a space goes before a text: by the normalizer, or in newer files by the
    pre-tokenizer."""
    normalizer, splitter = found.get("normalizer"), found.get("pre_tokenizer")
    prefix = False
    replaced = False
    for step in steps(normalizer, "normalizers"):
        pattern = step.get("pattern")
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif (
            step.get("type") == "Replace"
            and pattern == {"String": " "}
            and step.get("content") == SPACE
        ):
            replaced = True
        else:
            raise _unknown("normalizer", step)
    for step in steps(splitter, "pretokenizers"):
        scheme = step.get("prepend_scheme", "always")
        if step.get("type") != "Metaspace" or step.get("replacement") != SPACE or step.get("split"):
            raise _unknown("pre-tokenizer", step)
        if scheme in ("always", "first") and not prefix:
            prefix = True
            vocabulary.note(
                "a text that begins with a space, or follows a special token, gets "
                "another space before it"
            )
        replaced = True
    if not replaced:
        raise NotConvertible(
            f"{FILE}: byte_fallback, and spaces stay spaces; that is not converted"
        )
    return prefix


def _unknown(what: str, step: dict[str, Any]) -> NotConvertible:
    return NotConvertible(f"{FILE}: the {what} {str(step.get('type'))[:100]!r} is not converted")


def _message(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Fields of a protobuf message, https://protobuf.dev/programming-guides/encoding; raises
    `NotConvertible` for what is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: int | float | bytes
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire == 5:
            value, at = data[at : at + 4], at + 4
            if at <= len(data):
                (value,) = struct.unpack("<f", value)
        elif wire == 1:
            value, at = data[at : at + 8], at + 8
        else:
            raise NotConvertible(f"{MODEL} is not a SentencePiece model")
        if at > len(data) or number == 0:
            raise NotConvertible(f"{MODEL} is not a SentencePiece model, or is truncated")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise NotConvertible(f"{MODEL} is not a SentencePiece model, or is truncated")

"""GGUF files as far as this library serves them: Llama with a SentencePiece vocabulary.

The library is of September 2023. It reads today's files where nothing in them is newer; what it
does not know may end the process, so everything that it computes with is checked here first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hxd import ggml, gguf
from hxd.gguf import ARRAY, SCALARS, STRING, U32, U64, Cursor, ModelFileError

from .cutting import SPACE, SentencePiece
from .vocabulary import ENDINGS, Words

# Type ids of tensors that the library computes with, from its ggml.h.
TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14})
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_TOKENS, _SCORES, _KINDS = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
_HEX = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
# Keys of models that the library would compute wrongly.
_NEWER = ("expert_count", "rope.scaling.type", "attention.sliding_window", "attention.key_length")


def read(path: Path) -> tuple[ggml.Header, Words, str | None]:
    """Header, vocabulary and chat template; raises `ModelFileError` for what the library can't
    serve."""
    known = gguf.read_header(path)
    metadata, tensors = _scan(path)
    if known.architecture != "llama" or metadata.get("tokenizer.ggml.model") != "llama":
        raise ModelFileError(
            f"of GGUF files this plugin serves Llama with a SentencePiece vocabulary, not "
            f"{known.architecture}; llama_cpp serves the others"
        )
    newer = [key for key in _NEWER if _matters(key, metadata)]
    other = sorted(tensors - TYPES)
    if newer or other:
        what = f"llama.{newer[0]} in its header" if newer else f"tensors of type {other[0]}"
        raise ModelFileError(f"newer than this library: it has {what}; llama_cpp serves it")
    words = _words(metadata)
    width = _number(metadata, "llama.embedding_length")
    heads = _number(metadata, "llama.attention.head_count")
    kv_heads = _number(metadata, "llama.attention.head_count_kv", heads)
    if heads < 2 or width % (2 * heads) or heads % kv_heads:
        raise ModelFileError(f"{heads} heads of {width} values that share {kv_heads}")
    header = ggml.Header(
        family="llama",
        file_type="unknown",
        size=known.size,
        tensors=known.tensors,
        vocab=len(words.pieces),
        width=width,
        inner=_number(metadata, "llama.feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        layers=_number(metadata, "llama.block_count"),
        context=_number(metadata, "llama.context_length"),
    )
    template = metadata.get("tokenizer.chat_template")
    return header, words, template if isinstance(template, str) else None


def _scan(path: Path) -> tuple[dict[str, Any], set[int]]:
    """Metadata with the vocabulary's arrays, and the types of all tensors."""
    metadata: dict[str, Any] = {}
    types = set()
    with path.open("rb") as file:
        cursor = Cursor(file)
        cursor.skip(8)
        tensors, pairs = cursor.take(U64), cursor.take(U64)
        for _ in range(pairs):
            key = cursor.text(gguf.MAX_KEY)
            kind = cursor.take(U32)
            wanted = kind == ARRAY and key in (_TOKENS, _SCORES, _KINDS)
            metadata[key] = _array(cursor) if wanted else cursor.value(kind)
        for _ in range(tensors):
            cursor.text(gguf.MAX_KEY)
            cursor.skip(8 * cursor.take(U32))
            types.add(cursor.take(U32))
            cursor.skip(8)
    return metadata, types


def _array(cursor: Cursor) -> list[Any]:
    element, count = cursor.take(U32), cursor.take(U64)
    if element == STRING:
        return [cursor.read(cursor.take(U64)) for _ in range(count)]
    return [cursor.take(SCALARS[element]) for _ in range(count)]


def _matters(key: str, metadata: dict[str, Any]) -> bool:
    value = metadata.get(f"llama.{key}")
    if key == "attention.key_length":
        heads = _number(metadata, "llama.attention.head_count")
        return value is not None and value * heads != metadata.get("llama.embedding_length")
    return value not in (None, 0, "none", "")


def _number(metadata: dict[str, Any], key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if type(value) is not int or value < 1:
        raise ModelFileError(f"{key} is {value!r} in the header")
    return value


def _words(metadata: dict[str, Any]) -> Words:
    words, scores, kinds = (metadata.get(key) for key in (_TOKENS, _SCORES, _KINDS))
    if not (isinstance(words, list) and isinstance(scores, list) and isinstance(kinds, list)):
        raise ModelFileError("the vocabulary in the header is incomplete")
    typed = zip((words, scores, kinds), (bytes, float, int), strict=True)
    if not len(words) == len(scores) == len(kinds) or not all(
        isinstance(item, kind) for items, kind in typed for item in items
    ):
        raise ModelFileError("the words of the vocabulary, their scores and kinds don't match")

    def id_of(name: str) -> int | None:
        id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if id is not None and (type(id) is not int or not 0 <= id < len(words)):
            raise ModelFileError(f"the {name} token {id!r} is none of the {len(words)} words")
        return id

    def spelling(id: int | None) -> str:
        return "" if id is None else words[id].decode("utf-8", "replace")

    for name in ("separator", "padding"):
        id_of(name)
    bos, eos = id_of("bos"), id_of("eos")
    control = {spelling(id): id for id, kind in enumerate(kinds) if kind == _CONTROL}
    control.pop("", None)
    user = {spelling(id): id for id, kind in enumerate(kinds) if kind == _USER and words[id]}
    endings = {id for text, id in control.items() if text.encode() in ENDINGS}
    starts = metadata.get("tokenizer.ggml.add_bos_token", True) and bos is not None
    leads = metadata.get("tokenizer.ggml.add_space_prefix", True)
    return Words(
        pieces=[_piece(word, kind) for word, kind in zip(words, kinds, strict=True)],
        special=control,
        fixed=user,
        ending=frozenset(endings | {id for id in (eos, id_of("eot")) if id is not None}),
        cutter=SentencePiece(words, scores, unknown=id_of("unknown") or 0, space=SPACE.decode()),
        start=[bos] if starts and bos is not None else [],
        lead=" " if leads else "",
        bos=spelling(bos),
        eos=spelling(eos),
        spelled=words,
    )


def _piece(word: bytes, kind: int) -> bytes:
    if kind == _BYTE:
        match = _HEX.fullmatch(word)
        return bytes([int(match[1], 16)]) if match else b""
    return word.replace(SPACE, b" ") if kind in (_NORMAL, _USER) else b""

"""WordPiece, as BERT began it, out of a tokenizer.json.

In llama.cpp a token that begins a word begins with a mark, and one that goes on has none; in BERT
it is the other way round, with ## before what goes on.
"""

from __future__ import annotations

from typing import Any

from hxd.hookspecs import NotConvertible

from .vocabulary import FILE, Type, Vocabulary, add, additions, entries, framed

CONTINUES = "##"
_BEGINS = "\u2581"


def matches(found: dict[str, Any]) -> bool:
    model = found.get("model")
    return isinstance(model, dict) and model.get("type") == "WordPiece"


def read(found: dict[str, Any], size: int) -> Vocabulary:
    """Raises `NotConvertible`."""
    model = found["model"]
    if model.get("continuing_subword_prefix") != CONTINUES:
        raise NotConvertible(f"{FILE}: WordPiece without {CONTINUES} is not converted")
    _as_bert(found)
    vocabulary = Vocabulary("bert")
    aside = {one["content"] for one in additions(found)}
    for token, id in entries(model.get("vocab"), FILE, size):
        goes_on = token.startswith(CONTINUES) and token != CONTINUES
        if token not in aside:
            token = token.removeprefix(CONTINUES) if goes_on else _BEGINS + token
        vocabulary.put(id, token, Type.NORMAL)
        if token == model.get("unk_token"):
            vocabulary.unknown = id
    add(vocabulary, additions(found), FILE, size)
    processor = found.get("post_processor")
    if isinstance(processor, dict) and processor.get("type") == "BertProcessing":
        vocabulary.begins = vocabulary.ends = True
    else:
        framed(found, vocabulary)
    if not (vocabulary.begins and vocabulary.ends):
        raise NotConvertible(f"{FILE}: WordPiece without a first and a last token")
    return vocabulary


def _as_bert(found: dict[str, Any]) -> None:
    """llama.cpp normalizes and cuts in one way only: that of BERT's models in lower case."""
    normalizer, splitter = found.get("normalizer"), found.get("pre_tokenizer")
    wanted = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    if (
        not isinstance(normalizer, dict)
        or any(normalizer.get(key) != value for key, value in wanted.items())
        or normalizer.get("lowercase") is not True
        or normalizer.get("strip_accents") is False
    ):
        raise NotConvertible(f"{FILE}: WordPiece whose texts are not brought into lower case, as "
                             "BERT's uncased models do, is not converted")  # fmt: skip
    if not isinstance(splitter, dict) or splitter.get("type") != "BertPreTokenizer":
        raise NotConvertible(f"{FILE}: WordPiece without BertPreTokenizer is not converted")

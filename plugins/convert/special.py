"""Tokens with a role, and the chat template: what tokenizer_config.json, config.json and
generation_config.json say of them."""

from __future__ import annotations

from typing import Any

from hxd.hookspecs import NotConvertible

from .folder import Folder
from .vocabulary import Vocabulary

MAX_TEMPLATE = 1 << 20
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# Role there, and key in GGUF.
_ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator",
    "mask": "mask", "cls": "cls",
}  # fmt: skip
# Classes of transformers that put the first and last token as their settings say, whatever the
# post-processor of tokenizer.json does.
_BY_SETTING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


def roles(folder: Folder, config: dict[str, Any], vocabulary: Vocabulary) -> dict[str, int]:
    """Ids by the last part of their key, such as `bos_token_id`. The tokenizer's word counts before
    the model's. Raises `NotConvertible` for a token that the vocabulary has not."""
    said = folder.json(CONFIG, optional=True)
    ids = vocabulary.ids()
    found: dict[str, int] = {}
    for role, key in _ROLES.items():
        text = said.get(f"{role}_token")
        if isinstance(text, dict):
            text = text.get("content")
        if isinstance(text, str) and text:
            if text not in ids:
                raise NotConvertible(f"{CONFIG}: the {role}_token {text[:100]!r} is no token")
            found[f"{key}_token_id"] = ids[text]
        elif (id := next(iter(_ids(config.get(f"{role}_token_id"), vocabulary)), None)) is not None:
            found[f"{key}_token_id"] = id
    if vocabulary.unknown is not None:
        found["unknown_token_id"] = vocabulary.unknown
    if vocabulary.model == "bert":
        found["bos_token_id"] = found.pop("cls_token_id", -1)
        found["eos_token_id"] = found.get("seperator_token_id", -1)
        if -1 in found.values():
            raise NotConvertible(f"{CONFIG} has no cls_token and sep_token")
        return found
    found.pop("cls_token_id", None)
    generation = folder.json("generation_config.json", optional=True)
    ends = [
        *_ids(config.get("eos_token_id"), vocabulary),
        *_ids(generation.get("eos_token_id"), vocabulary),
    ]
    others = [id for id in dict.fromkeys(ends) if id != found.get("eos_token_id")]
    if others and "eos_token_id" not in found:
        found["eos_token_id"] = others.pop(0)
    if others:
        # llama.cpp knows the usual names besides; this is for those that it does not.
        found["eot_token_id"] = others[0]
    return found


def _ids(found: Any, vocabulary: Vocabulary) -> list[int]:
    listed = found if isinstance(found, list) else [found]
    ids = [id for id in listed if isinstance(id, int) and not isinstance(id, bool)]
    for id in ids:
        if not 0 <= id < len(vocabulary.tokens):
            raise NotConvertible(f"a token with the id {id} is named, and there is none")
    return ids


def frame(folder: Folder, vocabulary: Vocabulary) -> tuple[bool, bool]:
    """Whether a first and a last token are put around a text."""
    said = folder.json(CONFIG, optional=True)
    begins, ends = said.get("add_bos_token"), said.get("add_eos_token")
    named = str(said.get("tokenizer_class") or "")
    if vocabulary.begins is not None and not named.startswith(_BY_SETTING):
        return vocabulary.begins, bool(vocabulary.ends)
    if not isinstance(begins, bool):
        # SentencePiece leaves it to the caller, and Llama's always did.
        begins = vocabulary.begins if vocabulary.begins is not None else vocabulary.model == "llama"
    if not isinstance(ends, bool):
        ends = bool(vocabulary.ends)
    return begins, ends


def template(folder: Folder) -> str | list[dict[str, str]] | None:
    """The chat template, or several with their names."""
    if folder.has(TEMPLATE):
        return folder.text(TEMPLATE, MAX_TEMPLATE)
    found = folder.json(CONFIG, optional=True).get("chat_template")
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        named = [
            {"name": one["name"], "template": one["template"]}
            for one in found
            if isinstance(one, dict)
            and isinstance(one.get("name"), str)
            and isinstance(one.get("template"), str)
        ]
        return named or None
    return None

"""Byte-level BPE, as GPT-2 began it, out of a tokenizer.json.

How a text is cut before bytes are merged is recognised by the rules in the file, and by nothing
else: llama.cpp has its own code for each known set of them, and a wrong one makes a model that
talks, and talks worse.
"""

from __future__ import annotations

from typing import Any

from hxd.hookspecs import NotConvertible

from .vocabulary import FILE, Type, Vocabulary, add, additions, entries, framed, steps

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Rules that ByteLevel and Digits have built in.
_GPT2, _DIGIT = "gpt2", "digit"

# Rules of a file, in their order: the name that llama.cpp has for them, and whether it then takes a
# piece that is a token as a whole, without merging it together.
KNOWN = {
    (_LLAMA3,): ("llama-bpe", True),
    (_QWEN2,): ("qwen2", False),
    (_TEKKEN,): ("tekken", True),
    (_GPT2,): ("gpt-2", False),
    (_DIGIT, _GPT2): ("smollm", False),
}


def matches(found: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind."""
    model = found.get("model")
    return (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and any(
            step.get("type") == "ByteLevel"
            for step in steps(found.get("pre_tokenizer"), "pretokenizers")
        )
    )


def read(found: dict[str, Any], size: int) -> Vocabulary:
    """`size` is the model's; raises `NotConvertible`."""
    model = found["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key) not in (None, "", 0, 0.0):
            raise NotConvertible(f"{FILE}: {key} is not converted")
    if model.get("byte_fallback"):
        raise NotConvertible(f"{FILE}: byte-level BPE with byte_fallback is not converted")
    rules = _rules(found.get("pre_tokenizer"))
    if rules not in KNOWN:
        shown = ", ".join(repr(rule[:120]) for rule in rules) or "none"
        raise NotConvertible(
            f"{FILE}: its rules for cutting a text are not known here ({shown}); known are "
            f"those of {', '.join(name for name, _ in KNOWN.values())}"
        )
    pre, whole = KNOWN[rules]
    vocabulary = Vocabulary("gpt2", pre=pre)
    _normalizer(found.get("normalizer"), vocabulary)
    for token, id in entries(model.get("vocab"), FILE, size):
        vocabulary.put(id, token, Type.NORMAL)
    vocabulary.merges = _merges(model.get("merges"), model["vocab"])
    if bool(model.get("ignore_merges")) != whole:
        vocabulary.note(
            "a word that is a token is "
            + ("taken whole" if whole else "put together by merges")
            + ", which the original tokenizer does not do; for most vocabularies it is the same"
        )
    add(vocabulary, additions(found), FILE, size)
    framed(found, vocabulary)
    return vocabulary


def _rules(found: Any) -> tuple[str, ...]:
    rules = []
    for step in steps(found, "pretokenizers"):
        kind = step.get("type")
        pattern = step.get("pattern")
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                rules.append("ByteLevel with add_prefix_space")
            elif step.get("use_regex", True):
                rules.append(_GPT2)
        elif kind == "Digits" and step.get("individual_digits"):
            rules.append(_DIGIT)
        elif (
            kind == "Split"
            and isinstance(pattern, dict)
            and isinstance(pattern.get("Regex"), str)
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
        ):
            rules.append(pattern["Regex"])
        else:
            rules.append(f"{kind} {step.get('behavior', '')}".strip())
    return tuple(rules)


def _normalizer(found: Any, vocabulary: Vocabulary) -> None:
    for step in steps(found, "normalizers"):
        if step.get("type") != "NFC":
            kind = str(step.get("type"))[:100]
            raise NotConvertible(f"{FILE}: the normalizer {kind!r} is not converted")
        vocabulary.note("texts are not brought into Unicode's form NFC before they are tokenized")


def _merges(found: Any, vocabulary: dict[str, Any]) -> list[str]:
    if not isinstance(found, list):
        raise NotConvertible(f"{FILE} has no merges")
    merges = []
    for one in found:
        parts = one.split(" ") if isinstance(one, str) else one
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part and " " not in part for part in parts)
            or parts[0] + parts[1] not in vocabulary
        ):
            raise NotConvertible(f"{FILE}: {str(one)[:100]!r} is not a merge of two tokens")
        merges.append(f"{parts[0]} {parts[1]}")
    return merges

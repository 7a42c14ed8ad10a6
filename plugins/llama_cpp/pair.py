"""A query and a document as a reranker reads them together."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

import llama_cpp

from . import native

_PLACEHOLDER = re.compile(r"\{(query|document)\}")


class Tokenize(Protocol):
    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class Pairs:
    """By the file's own template for reranking where it has one; else as BERT has it: start,
    query, end, perhaps a separator, document, end."""

    def __init__(self, model: int, special: Collection[str], tokenize: Tokenize) -> None:
        """`special`: how control tokens are spelled."""
        self._special = special
        self._tokenize = tokenize
        template = native.template(model, "rerank")
        # Texts at even places, the names of what goes between them at odd ones.
        self._template = None if template is None else _PLACEHOLDER.split(template)
        vocab = llama_cpp.llama_model_get_vocab(model)
        separator = llama_cpp.llama_vocab_sep(vocab)
        end = llama_cpp.llama_vocab_eos(vocab)
        self._start = _marks(
            llama_cpp.llama_vocab_get_add_bos(vocab), llama_cpp.llama_vocab_bos(vocab)
        )
        self._end = _marks(llama_cpp.llama_vocab_get_add_eos(vocab), end if end >= 0 else separator)
        self._separator = _marks(llama_cpp.llama_vocab_get_add_sep(vocab), separator)

    def tokens(self, query: str, document: str) -> list[int]:
        if self._template is not None:
            return self._from_template(self._template, {"query": query, "document": document})
        first, second = self._plain(query), self._plain(document)
        return [*self._start, *first, *self._end, *self._separator, *second, *self._end]

    def _plain(self, text: str) -> list[int]:
        return self._tokenize(text, add_special=False, parse_special=False)

    def _from_template(self, template: list[str], texts: dict[str, str]) -> list[int]:
        """One text where it can be, since tokens may reach across its joints. A text that spells
        a control token is tokenized by itself, so that it can't speak for the template."""
        tokens: list[int] = []
        joined = ""
        for i, part in enumerate(template):
            if i % 2 == 0:
                joined += part
            elif not self._spells(texts[part]):
                joined += texts[part]
            else:
                tokens += self._parsed(joined) + self._plain(texts[part])
                joined = ""
        return tokens + self._parsed(joined)

    def _parsed(self, text: str) -> list[int]:
        return self._tokenize(text, add_special=False, parse_special=True)

    def _spells(self, text: str) -> bool:
        return any(spelling in text for spelling in self._special)


def _marks(wanted: bool, token: int) -> list[int]:
    return [token] if wanted and token >= 0 else []

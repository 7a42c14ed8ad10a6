"""Prompts of a wanted length in tokens, told apart by a seed. Reads the model's vocabulary only."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import llama_cpp

from .synthesis import words


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    """A vocabulary is not worth a page about the model."""


class Prompts:
    """Made-up words: one token each for the synthetic models, a few for others. The same seed
    gives the same text, so that every server gets the same prompts."""

    def __init__(self, model: Path) -> None:
        llama_cpp.llama_log_set(_silent, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        if not self._model:
            raise ValueError(f"llama.cpp can't read {model}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._words = list(itertools.islice(words(), 9000))

    def count(self, text: str) -> int:
        """Tokens of `text`, the one that begins a prompt not counted."""
        raw = text.encode()
        # Without room for them, llama.cpp says how many there are, as a negative number.
        return -llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), None, 0, False, False)

    def text(self, tokens: int, *seed: object) -> str:
        """At most `tokens` tokens, and as near to that as whole words come."""
        source = random.Random(repr(seed))
        chosen = source.choices(self._words, k=tokens)
        while (count := self.count(" ".join(chosen))) > tokens:
            chosen = chosen[: min(len(chosen) - 1, len(chosen) * tokens // count)]
        return " ".join(chosen)

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)

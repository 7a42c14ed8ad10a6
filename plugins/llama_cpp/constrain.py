"""Constraints on the answer: which tokens may come next, by llguidance.

Protects: time and memory (llguidance counts its work and stops, where a recursive grammar would
take llama.cpp's own engine down), and the worker (what goes wrong is an error of one request).
Does not protect: a grammar that is legal, small and yet makes every mask slow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from hxd.hookspecs import RequestRefused
from hxd.wire import Constraint

MAX_TEXT = 512 << 10
# Nested groups of a GBNF grammar are read by a recursive parser.
MAX_NESTING = 200
JSON_OBJECT = json.dumps({"type": "object"})
# A space, or a new line with its indentation: a model that wanders off into white space would
# never come back.
JSON_STYLE = {"whitespace_flexible": True, "whitespace_pattern": r" ?|\r?\n[ \t]{0,24}"}
_PARAMETERS = {
    "json_object": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "gbnf": "grammar",
    "lark": "tools",
}


class Grammars:
    """Compiles constraints for one vocabulary. `pieces`: each token's bytes; `special`: ids of
    control tokens, whose bytes are their spelling."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: frozenset[int],
        ending: Sequence[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._size = len(pieces)
        self._pieces = pieces
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(pieces, special, ending, tokenize)),
            eos_token=list(ending),
        )

    def compile(self, constraint: Constraint) -> Matcher:
        """Raises `RequestRefused` that names the parameter."""
        param = _PARAMETERS.get(constraint.kind)
        if len(constraint.text) > MAX_TEXT:
            raise RequestRefused(
                f"{param}: {len(constraint.text)} characters; the limit is {MAX_TEXT}", param
            )
        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError, AssertionError, IndexError, KeyError) as error:
            raise RequestRefused(f"{param}: {str(error)[:500] or 'not a grammar'}", param) from None
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestRefused(f"{param}: {matcher.get_error()[:500]}", param)
        trigger = constraint.trigger.encode() if constraint.trigger else None
        found = Matcher(self._tokenizer, matcher, self._pieces, trigger)
        # What can't begin is refused here, and not at the first token.
        if trigger is None:
            found.allowed()
        if found.failure:
            raise RequestRefused(f"{param}: {found.failure[:500]}", param)
        return found


def _grammar(constraint: Constraint) -> str:
    match constraint.kind:
        case "json_object":
            return _json(JSON_OBJECT)
        case "json_schema":
            return _json(constraint.text)
        case "gbnf":
            _check_nesting(constraint.text)
            return str(llguidance.LLMatcher.grammar_from_lark(any_to_lark(constraint.text)))
        case "lark":
            return str(llguidance.LLMatcher.grammar_from_lark(constraint.text))
    raise ValueError(f"a constraint of kind {constraint.kind!r} is not known")


def _json(schema: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE))


def _check_nesting(text: str) -> None:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > MAX_NESTING:
            raise ValueError(f"groups are nested deeper than {MAX_NESTING}")


class Matcher:
    """The state of one constraint in one sequence. `failure` is why it can't go on, if so."""

    def __init__(
        self,
        tokenizer: Any,
        matcher: Any,
        pieces: Sequence[bytes],
        trigger: bytes | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._matcher = matcher
        self._pieces = pieces
        self._trigger = trigger
        self._tail = b""
        self._mask = np.zeros((len(pieces) + 31) // 32, dtype=np.int32)
        self.failure = ""

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which tokens may come next; None when all may."""
        if self._trigger is not None or self.failure:
            return None
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            self.failure = self._matcher.get_error() or "the grammar has come to a dead end"
            return None
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed: NDArray[np.bool_] = bits[: len(self._pieces)].astype(bool)
        if not allowed.any():
            self.failure = "the grammar allows no token of this model's vocabulary"
            return None
        return allowed

    def accept(self, token: int) -> None:
        """`token` was drawn."""
        if self.failure:
            return
        if self._trigger is None:
            if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
                self.failure = self._matcher.get_error() or "the grammar does not go on like this"
            return
        self._tail += self._pieces[token]
        at = self._tail.find(self._trigger)
        if at < 0:
            self._tail = self._tail[-len(self._trigger) :]
            return
        rest = self._tail[at + len(self._trigger) :]
        self._trigger, self._tail = None, b""
        # The token that completed the trigger may reach beyond it.
        for part in self._tokenizer.tokenize_bytes(rest) if rest else ():
            self.accept(part)

    @property
    def ended(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._trigger is None and bool(self._matcher.is_stopped())


class _Vocabulary:
    """What llguidance's wrapper wants of a tokenizer."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: frozenset[int],
        ending: Sequence[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self.eos_token_id = ending[0] if ending else 0
        self.bos_token_id = None
        self.tokens = list(pieces)
        self.special_token_ids = sorted(special)
        self._tokenize = tokenize

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenize(text.decode("utf-8") if isinstance(text, bytes) else text)

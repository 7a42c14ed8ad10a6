"""Constraints on the answer: which tokens may come next, by llguidance.

Protects: the stack (grammars are compiled by recursive code, which gets a large one), time (a
compilation that takes too long is given up), and the worker (what goes wrong is an error of one
request). llguidance itself counts the work of every step and stops. Does not protect: the
processor time and the memory of a compilation that was given up, until it ends by itself; so what
is known to have no end is refused before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import RequestRefused
from hxd.wire import Constraint

from . import effort
from .gbnf_lark import lark

MAX_TEXT = 512 << 10
# The deepest that the 10,000 values of a schema can be nested, references followed, takes 32 MiB.
STACK = 64 << 20
MOST_SECONDS = 2.0
MOST_ABANDONED = 2
MOST_KNOWN = 8
# Some limits of llguidance show only after the first tokens.
REHEARSED = 6
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=200_000,  # half a second
    max_lexer_states=50_000,  # of 2 KiB each
    verbose_errors=False,
)
JSON_OBJECT = json.dumps({"type": "object"})
# A space, or a new line with its indentation: a model that wanders off into white space would
# never come back. The rest keeps a schema's own `x-guidance` from saying otherwise.
JSON_STYLE = {
    "whitespace_flexible": True,
    "whitespace_pattern": r" ?|\r?\n[ \t]{0,24}",
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    # The cases of a union that pydantic tells apart by a field exclude each other; that they do is
    # more than llguidance can always see.
    "coerce_one_of": True,
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
        self._pieces = pieces
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(pieces, special, ending, tokenize)),
            eos_token=list(ending),
        )
        self._abandoned: list[threading.Thread] = []
        self._hopeless: deque[bytes] = deque(maxlen=256)
        # Applications send the same tools with every request. The least recently used is first.
        self._known: OrderedDict[bytes, Any] = OrderedDict()

    def compile(self, constraint: Constraint) -> Matcher:
        """Raises `RequestRefused` that names the parameter."""
        param = constraint.param
        try:
            if len(constraint.text) > MAX_TEXT:
                raise ValueError(f"{len(constraint.text)} characters; the limit is {MAX_TEXT}")
            matcher = self._compiled(_grammar(constraint))
        except ValueError as error:
            raise RequestRefused(f"{param}: {str(error)[:500]}", param) from None
        trigger = constraint.trigger.encode() if constraint.trigger else None
        return Matcher(self._tokenizer, matcher, self._pieces, trigger)

    def _compiled(self, grammar: str) -> Any:
        """A matcher that has begun well, within `MOST_SECONDS`. Raises `ValueError`."""
        digest = hashlib.sha256(grammar.encode("utf-8", "replace")).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest].deep_copy()
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if digest in self._hopeless:
            raise ValueError(_TOO_COMPLEX)
        if len(self._abandoned) >= MOST_ABANDONED:
            raise ValueError("the server still works on others that are too complex; try later")
        made: list[Any] = []
        thread = _start_with_stack(lambda: made.append(self._begun(grammar)))
        thread.join(MOST_SECONDS)
        if thread.is_alive():
            _step_back(thread)
            self._abandoned.append(thread)
            self._hopeless.append(digest)
            raise ValueError(_TOO_COMPLEX)
        if not made:
            raise ValueError("it can't be compiled")
        [(matcher, failure)] = made
        if failure:
            raise ValueError(failure)
        self._known[digest] = matcher
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return matcher.deep_copy()

    def _begun(self, grammar: str) -> tuple[Any, str]:
        """A matcher, and why it can't go on, if so: after the first mask, whose states it keeps,
        and after a few tokens."""
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            return matcher, _said(matcher) or "not a grammar"
        first = Matcher(self._tokenizer, matcher, self._pieces, None)
        allowed = first.allowed()
        if first.failure:
            return matcher, first.failure
        rehearsal = Matcher(self._tokenizer, matcher.deep_copy(), self._pieces, None)
        for _ in range(REHEARSED):
            if allowed is None or rehearsal.ended:
                break
            rehearsal.accept(int(allowed.argmax()))
            allowed = rehearsal.allowed()
        return matcher, rehearsal.failure


_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")
_EXCERPT = re.compile(r"\n *\d+ \| ")
_NAMED = {"NoExtensionBias": "no text of this model's tokens fits"}
_TOO_COMPLEX = f"too complex: it is not compiled after {MOST_SECONDS:g} s"


def _start_with_stack(target: Callable[[], None]) -> threading.Thread:
    """Runs `target` in a thread with a stack of `STACK` bytes."""
    thread = threading.Thread(target=target, name="compile", daemon=True)
    before = threading.stack_size(STACK)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def _step_back(thread: threading.Thread) -> None:
    """Let it go on to its end behind everybody else; there is no way to stop it."""
    if thread.native_id is not None:
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, 19)


def _grammar(constraint: Constraint) -> str:
    """In llguidance's own words. Raises `ValueError`."""
    match constraint.kind:
        case "json_object":
            return _json(JSON_OBJECT)
        case "json_schema":
            effort.check(json.loads(constraint.text))
            return _json(constraint.text)
        case "gbnf":
            return str(llguidance.LLMatcher.grammar_from_lark(lark(constraint.text)))
        case "lark":
            for schema in effort.embedded(constraint.text):
                effort.check(schema)
            return str(llguidance.LLMatcher.grammar_from_lark(constraint.text))
    raise ValueError(f"a constraint of kind {constraint.kind!r} is not known")


def _json(schema: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE))


def _said(matcher: Any) -> str:
    """What went wrong, in words; empty when nothing did or none are known. Without llguidance's
    places in a grammar that the client has not written."""
    error = str(matcher.get_error() or "").replace("<non-verbose/>", "")
    error = _PLACE.sub("", _EXCERPT.split(error)[0]).strip()
    return _NAMED.get(error, error)


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
            self.failure = _said(self._matcher) or "the grammar has come to a dead end"
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
            if self._matcher.is_stopped():
                return
            # A limit that was passed stops the matcher as an end does.
            if not self._matcher.consume_token(token) or self._matcher.is_error():
                self.failure = _said(self._matcher) or "the grammar does not go on like this"
            return
        self._tail += self._pieces[token]
        at = self._tail.find(self._trigger)
        if at < 0:
            self._tail = self._tail[-len(self._trigger) :]
            return
        # The token that completed the trigger may reach beyond it, into what fits or does not: then
        # the model has not begun what the trigger stands for, and goes on as it likes.
        rest = self._tail[at + len(self._trigger) :]
        parts = self._tokenizer.tokenize_bytes(rest) if rest else []
        if self._matcher.validate_tokens(parts) < len(parts):
            self._tail = rest[-len(self._trigger) :]
            return
        self._trigger, self._tail = None, b""
        for part in parts:
            self.accept(part)

    @property
    def ended(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._trigger is None and not self.failure and bool(self._matcher.is_stopped())


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

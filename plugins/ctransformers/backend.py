"""The backend: one sequence at a time through the library, drawn by hxd's own sampler."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxd import ggml, gguf
from hxd.hookspecs import Advance, LoadRequest, ModelInfo, RequestRefused, Sequence
from hxd.kit.draw import Sampler, log_probabilities
from hxd.wire import Constraint, Logprob

from . import buffers, llama_gguf
from .native import Model
from .pace import LONGEST, Pace
from .turns import Turn, Turns
from .vocabulary import Vocabulary, Words, legacy

# The library spins while it waits for its threads: on a model as small as this they cost more than
# they bring.
SMALL_MODEL = 64 << 20
# Where the library looks for Llama 2's 70B, whose older files don't say that heads share keys.
_GROUPED = re.compile(r"(\b|_)70b(\b|_)", re.IGNORECASE)
_GROUP = 8


@dataclass
class Running:
    """A sequence, its place in the queue and its sampler. `aloud`: tokens of the prompt whose
    logprobs must still be told. `told`: its first tokens are out."""

    sequence: Sequence
    turn: Turn
    sampler: Sampler
    aloud: int
    told: bool = False


class CTransformers:
    """One model. Sequences wait for each other in `Turns`."""

    def __init__(self, family: str | None, batch: int) -> None:
        self._family = family
        self._batch = batch

    def load(self, request: LoadRequest) -> ModelInfo:
        if request.path is None:
            raise ValueError("ctransformers needs a model file; set source")
        kind, header, words, template = _read(request.path, self._family)
        trained = header.context or request.context
        self._room = buffers.fit(header, self._batch, min(request.context, trained))
        context = self._room.context
        self._threads = request.threads or _threads(header.size)
        self._model = Model(request.path, kind, context)
        if self._model.context < context or self._model.size > len(words.pieces):
            raise RuntimeError(
                f"ctransformers loaded {self._model.context} tokens of context and "
                f"{self._model.size} words, and the header says {context} and {len(words.pieces)}"
            )
        self._vocabulary = Vocabulary(words)
        self._turns = Turns(cuttable=header.family != "falcon")
        self._pace = Pace(self._room.batch)
        self._running: dict[int, Running] = {}
        self._hits = self._misses = 0
        return ModelInfo(
            context=context,
            vocab=self._vocabulary.digest,
            chat_template=template,
            special_tokens=self._vocabulary.special_tokens,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            infill=self._vocabulary.infill,
            details={
                "architecture": header.family,
                "bytes": header.size,
                "context": context,
                "trained_context": header.context,
                "vocabulary": self._model.size,
                "threads": self._threads,
                "ctransformers": metadata.version("ctransformers"),
            },
            capabilities=frozenset({"generate", "logprobs"}),
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return self._vocabulary.piece(token, special=special)

    def compile(self, constraint: Constraint) -> Any:
        raise RequestRefused(f"this model can't hold a constraint ({constraint.kind})")

    def add(self, sequence: Sequence) -> None:
        # The library reads beyond its tables for a token that is none.
        for token in (*sequence.prompt, *sequence.produced):
            if not 0 <= token < self._model.size:
                raise RequestRefused(
                    f"token {token} is not in the vocabulary of {self._model.size} tokens",
                    param="prompt",
                )
        sampler = Sampler(
            sequence.sampling,
            sequence.seed,
            size=self._model.size,
            ending=self._vocabulary.ending,
            prompt=sequence.prompt,
            produced=sequence.produced,
        )
        turn = Turn(
            sequence.id,
            sequence.prompt + sequence.produced,
            sequence.cache,
            alone=sequence.prompt_logprobs,
        )
        self._turns.add(turn)
        aloud = len(sequence.prompt) if sequence.prompt_logprobs else 0
        self._running[sequence.id] = Running(sequence, turn, sampler, aloud)

    def remove(self, id: int) -> None:
        del self._running[id]
        self._turns.remove(id)

    def step(self) -> list[Advance]:
        turn = self._turns.first()
        if turn is None:
            return []
        run = self._running[turn.id]
        if run.aloud:
            return [Advance(turn.id, [], prompt_logprobs=tuple(self._read_aloud(run)))]
        chunk = min(turn.pending, self._pace.chunk)
        if chunk > 1:
            chunk = min(chunk, self._room.tokens(turn.fed))
        logits = self._read(turn, chunk)
        return [] if turn.pending else [self._draw(run, logits)]

    def _read(self, turn: Turn, count: int) -> NDArray[np.float32]:
        started = time.perf_counter()
        tokens = turn.tokens[turn.fed : turn.fed + count]
        logits = self._model.evaluate(tokens, turn.fed, self._threads)
        self._turns.read(turn, count)
        self._pace.observe(count, time.perf_counter() - started)
        return logits

    def _read_aloud(self, run: Running) -> list[Logprob]:
        """Logprobs of a prompt's tokens, of as many as a step has time for. They are read one by
        one, since the library keeps no logits but those after the last."""
        prompt, top = run.sequence.prompt, run.sequence.logprobs or 0
        found = []
        if run.aloud == len(prompt):
            found.append(Logprob(prompt[0], self.token_bytes(prompt[0], special=True), None))
        most = min(run.aloud, self._pace.limit)
        deadline = time.perf_counter() + LONGEST
        while len(found) < most and time.perf_counter() < deadline:
            logits = self._read(run.turn, 1)
            found.append(self._logprob(prompt[run.turn.fed], logits, top))
        run.aloud -= len(found)
        return found

    def _draw(self, run: Running, logits: NDArray[np.float32]) -> Advance:
        token = run.sampler.draw(logits)
        run.turn.tokens.append(token)
        logprobs: tuple[Logprob, ...] = ()
        if run.sequence.logprobs is not None:
            logprobs = (self._logprob(token, logits, run.sequence.logprobs),)
        cached = 0
        if not run.told:
            run.told = True
            cached = min(run.turn.cached, len(run.sequence.prompt))
            self._hits += cached
            self._misses += len(run.sequence.prompt) - cached
        return Advance(
            run.turn.id,
            [token],
            ended=token in self._vocabulary.ending,
            logprobs=logprobs,
            cached=cached,
        )

    def _logprob(self, token: int, logits: NDArray[np.float32], top: int) -> Logprob:
        (chosen,), best = log_probabilities(logits, [token], top)
        return Logprob(
            token,
            self.token_bytes(token, special=True),
            chosen,
            [(id, self.token_bytes(id, special=True), value) for id, value in best],
        )

    def gauges(self) -> dict[str, float]:
        return {
            "prefix_cache_hit_tokens": self._hits,
            "prefix_cache_miss_tokens": self._misses,
            "kv_cells": self._room.context,
            "kv_cells_used": self._turns.held,
            "prefill_chunk": self._pace.chunk,
            "step_seconds": self._pace.step_seconds,
        }

    def close(self) -> None:
        self._model.close()


def _read(path: Path, family: str | None) -> tuple[str, ggml.Header, Words, str | None]:
    """The library's name for what the file is, and what hxd reads in it."""
    if gguf.detect(path) == "gguf":
        if family not in (None, "llama"):
            raise ValueError(f"option family: a GGUF file is served as llama here, not {family!r}")
        return ("gguf", *llama_gguf.read(path))
    header = ggml.read_header(path, family)
    if header.family == "llama":
        _check_grouping(path, header)
    words = legacy(header.family, ggml.read_vocabulary(path, header.family))
    return header.family, header, words, None


def _check_grouping(path: Path, header: ggml.Header) -> None:
    """The library takes groups of heads from the file's name; a wrong guess ends the process."""
    group = header.heads // header.kv_heads
    named = _GROUPED.search(str(path)) is not None
    if group not in (1, _GROUP) or named != (group == _GROUP):
        raise ValueError(
            f"{group} heads share keys in this model, and the library goes by the name: the path "
            f"must {'hold' if group == _GROUP else 'not hold'} '70b'; groups of {_GROUP} and "
            "none are served"
        )


def _threads(size: int) -> int:
    return 1 if size < SMALL_MODEL else len(os.sched_getaffinity(0))

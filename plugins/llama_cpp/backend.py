"""The backend: many sequences decoded together through llama.cpp's low-level API."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import Advance, LoadRequest, ModelInfo, RequestRefused, Sequence
from hxd.kit.draw import Sampler, log_probabilities
from hxd.wire import Constraint, Logprob

from . import native
from .batch import Chunk
from .constrain import Grammars, Matcher
from .context import Context, OutOfCells, Size, cores
from .options import Options
from .pace import Pace
from .slots import Slot, Slots
from .speculate import Guesser
from .vocabulary import Vocabulary

MAX_PLACES = 256  # LLAMA_MAX_SEQ of llama-cparams.h
# Prompts kept besides those in idle slots. In a unified cache they give way when cells are needed;
# in a split one each costs a whole context's cells.
CACHED_UNIFIED = 32
CACHED_SPLIT = 2
# Bytes of weights for each thread beyond the first. With fewer, a step is over before the threads
# have found each other; a model of 5 MB was no faster with two (8 sequences, 2 cores), and two
# hundred times slower as soon as anything else wanted one of the cores.
THREAD_BYTES = 16 << 20


@dataclass
class Running:
    """What belongs to one sequence besides its place in the cache."""

    sequence: Sequence
    slot: Slot
    sampler: Sampler
    matcher: Matcher | None
    guesser: Guesser | None
    produced: int
    told: bool = False


@dataclass
class LlamaCpp:
    """One model, one context; `slots` sequences share its KV cells."""

    options: Options = field(default_factory=Options)

    def load(self, request: LoadRequest) -> ModelInfo:
        path = native.need_file(request)
        native.start()
        self._model = native.load_model(path, gpu_layers=self.options.gpu_layers)
        model = self._model
        architecture = native.metadata(model, "general.architecture") or "unknown"
        trained = llama_cpp.llama_model_n_ctx_train(model)
        self._context_size = min(request.context, trained) if trained > 0 else request.context
        self._vocabulary = Vocabulary(model)
        # A recurrent state can't be cut or shared by position.
        plain = not (
            llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        )
        self._limit = max(self.options.batch, request.slots)
        self._useful = min(cores(), 1 + llama_cpp.llama_model_size(model) // THREAD_BYTES)
        size = self._size(request, plain)
        self._set_threads = request.threads
        self._context = Context(model, size, self.options)
        self._context.adapt(self.options.lora)
        self._slots = Slots(
            self._context,
            limit=request.slots,
            cells=size.cells,
            entries=size.places - request.slots,
            unified=size.unified,
            share=plain and self.options.cached_prompts != 0,
        )
        self._pace = Pace(self._limit)
        self._speculates = plain and self.options.speculate == "ngram"
        self._running: dict[int, Running] = {}
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self._speculated = self._accepted = 0
        return ModelInfo(
            context=self._context_size,
            vocab=self._vocabulary.digest,
            chat_template=native.template(model, None),
            tool_template=native.template(model, "tool_use"),
            special_tokens=self._vocabulary.special_tokens,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            infill=self._vocabulary.infill,
            details={
                "architecture": architecture,
                "parameters": llama_cpp.llama_model_n_params(model),
                "bytes": llama_cpp.llama_model_size(model),
                "trained_context": trained,
                "vocabulary": self._vocabulary.size,
                "threads": self._context.threads,
                "kv_cells": size.cells,
                "kv_cache": "unified" if size.unified else "split",
                "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
                "llama_cpp_python": llama_cpp.__version__,
            },
            capabilities=frozenset({"generate", "logprobs", "constrain"}),
        )

    def _size(self, request: LoadRequest, plain: bool) -> Size:
        """`plain`: the model's cache can be cut and shared by position."""
        options, context = self.options, self._context_size
        unified = options.kv_cache == "unified" or (
            options.kv_cache == "auto" and options.cells > 0
        )
        asked = options.cached_prompts
        if asked is None:
            asked = CACHED_UNIFIED if unified else min(CACHED_SPLIT, request.slots)
        places = request.slots + (min(asked, MAX_PLACES - request.slots) if plain else 0)
        cells = context * (request.slots if unified else places)
        if unified and options.cells:
            cells = max(options.cells, context)
        return Size(cells, places, self._limit, self._threads(request), unified)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        if not 0 <= token < self._vocabulary.size:
            raise self._unknown(token)
        return self._vocabulary.piece(token, special=special)

    def _unknown(self, token: int) -> RequestRefused:
        return RequestRefused(
            f"token {token} is not in the vocabulary of {self._vocabulary.size} tokens",
            param="prompt",
        )

    def compile(self, constraint: Constraint) -> Matcher:
        with self._grammars_lock:
            if self._grammars is None:
                # Takes up to a second on a large vocabulary; most models are never asked.
                self._grammars = Grammars(
                    self._vocabulary.pieces(),
                    frozenset(self._vocabulary.special_tokens.values()),
                    sorted(self._vocabulary.ending),
                    lambda text: self.tokenize(text, add_special=False, parse_special=False),
                )
        return self._grammars.compile(constraint)

    def add(self, sequence: Sequence) -> None:
        for token in sequence.prompt:
            if not 0 <= token < self._vocabulary.size:
                raise self._unknown(token)
        sampler = Sampler(
            sequence.sampling,
            sequence.seed,
            size=self._vocabulary.size,
            ending=self._vocabulary.ending,
            prompt=sequence.prompt,
            produced=sequence.produced,
        )
        matcher: Matcher | None = sequence.constraint
        for token in sequence.produced if matcher else ():
            matcher.accept(token)  # type: ignore[union-attr]  # the condition above
        slot = self._slots.add(
            sequence.id,
            sequence.prompt + sequence.produced,
            cache=sequence.cache,
            share=not sequence.prompt_logprobs,
            hurry=bool(sequence.produced),
        )
        self._running[sequence.id] = Running(
            sequence,
            slot,
            sampler,
            matcher,
            Guesser() if self._speculates else None,
            len(sequence.produced),
        )

    def remove(self, id: int) -> None:
        del self._running[id]
        self._slots.remove(id)

    def _threads(self, request: LoadRequest) -> int:
        return request.threads or self._useful

    def share(self, among: int) -> None:
        """So many workers compute now; threads that the operator has set stay."""
        if not self._set_threads:
            self._context.use_threads(min(self._useful, max(1, cores() // among)))

    def step(self) -> list[Advance]:
        self._guess()
        while True:
            chunks = self._slots.plan(self._pace.budget, self._limit, self._pace.hurried)
            if not chunks:
                raise RuntimeError("no sequence can go on: the KV cache is too small")
            verbose = frozenset(
                chunk.slot.id
                for chunk in chunks
                if self._running[chunk.slot.id].sequence.prompt_logprobs
            )
            started = time.perf_counter()
            try:
                rows = self._context.decode(chunks, verbose)
                break
            except OutOfCells:
                self._slots.undo(chunks)
                if not self._slots.shrink():
                    raise RuntimeError("the KV cache has no room for one sequence") from None
        seconds = time.perf_counter() - started
        decoding = sum(
            chunk.count == 1 + len(chunk.slot.guess) and chunk.complete for chunk in chunks
        )
        guessed = sum(len(chunk.slot.guess) for chunk in chunks)
        reading = sum(chunk.count for chunk in chunks) - decoding - guessed
        self._pace.observe(decoding, reading, guessed, seconds)
        advances = []
        for chunk, logits in zip(chunks, rows, strict=True):
            advance = self._advance(chunk, logits)
            if advance is not None:
                advances.append(advance)
        return advances

    def _guess(self) -> None:
        """Proposes tokens for the running sequences where reading them along is cheap."""
        talking = [run for run in self._running.values() if run.slot.pending == 1]
        base, cost = self._pace.base(len(talking)), self._pace.guess
        for run in talking:
            run.slot.guess = []
            if run.guesser is not None and base and cost:
                # A right guess saves this sequence's share of a step.
                price = cost * len(talking) / base
                room = run.sequence.limit - run.produced - 1
                run.slot.guess = run.guesser.guess(run.slot.tokens, room, price)

    def _advance(self, chunk: Chunk, logits: NDArray[np.float32]) -> Advance | None:
        run = self._running[chunk.slot.id]
        slot, sequence = chunk.slot, run.sequence
        self._slots.read(chunk)
        prompt_logprobs: tuple[Logprob, ...] = ()
        if sequence.prompt_logprobs:
            prompt_logprobs = self._prompt_logprobs(run, chunk, logits)
            logits = logits[len(logits) - 1 - len(slot.guess) :]
        if not chunk.complete:
            return (
                Advance(slot.id, [], prompt_logprobs=prompt_logprobs) if prompt_logprobs else None
            )
        guess = slot.guess
        tokens: list[int] = []
        logprobs: list[Logprob] = []
        ended, error = False, None
        for at, row in enumerate(logits):
            matcher = run.matcher
            allowed = matcher.allowed() if matcher else None
            if matcher and matcher.failure:
                error = f"the constraint can't be kept: {matcher.failure}"
                break
            token = run.sampler.draw(row, allowed)
            tokens.append(token)
            if sequence.logprobs is not None:
                logprobs.append(self._logprob(token, row, sequence.logprobs))
            if token in self._vocabulary.ending:
                ended = True
                break
            if matcher:
                matcher.accept(token)
                if matcher.ended:
                    # Nothing but the end may follow: no step is spent on drawing it.
                    ended = True
                    tokens.append(self._vocabulary.end)
                    break
            if at == len(guess) or token != guess[at]:
                break
        drawn = len(tokens)
        right = max(0, min(drawn - 1, len(guess)))
        if guess and run.guesser:
            run.guesser.learn(len(guess), right)
            self._speculated += len(guess)
            self._accepted += right
        # The last drawn token is not in the cache yet; wrong guesses are, and must go.
        slot.tokens.extend(tokens)
        self._slots.cut(slot, len(slot.tokens) - 1)
        slot.guess = []
        run.produced += drawn
        cached = 0
        if not run.told:
            run.told = True
            cached = min(slot.cached, len(sequence.prompt))
            self._slots.hit_tokens += cached
            self._slots.miss_tokens += len(sequence.prompt) - cached
        return Advance(
            slot.id,
            tokens,
            ended=ended,
            error=error,
            logprobs=tuple(logprobs),
            prompt_logprobs=prompt_logprobs,
            cached=cached,
        )

    def _prompt_logprobs(
        self, run: Running, chunk: Chunk, logits: NDArray[np.float32]
    ) -> tuple[Logprob, ...]:
        """Those of the prompt's tokens that the rows of this chunk predict, and before them the
        first token's, which nothing predicts."""
        prompt, top = run.sequence.prompt, run.sequence.logprobs or 0
        found = []
        if chunk.start == 0:
            found.append(Logprob(prompt[0], self.token_bytes(prompt[0], special=True), None))
        for row, position in zip(logits, range(chunk.start + 1, len(prompt)), strict=False):
            found.append(self._logprob(prompt[position], row, top))
        return tuple(found)

    def _logprob(self, token: int, row: NDArray[np.float32], top: int) -> Logprob:
        (chosen,), best = log_probabilities(row, [token], top)
        return Logprob(
            token,
            self.token_bytes(token, special=True),
            chosen,
            [(id, self.token_bytes(id, special=True), value) for id, value in best],
        )

    def gauges(self) -> dict[str, float]:
        slots, cache = self._slots, self._slots.cache
        held = slots.cells.used - sum(
            slot.fed for slot in list(slots.running.values()) if slot.place is not None
        )
        return {
            "prefix_cache_entries": len(cache),
            "prefix_cache_cells": max(0, held),
            "prefix_cache_evictions": cache.evictions,
            "prefix_cache_hit_tokens": slots.hit_tokens,
            "prefix_cache_miss_tokens": slots.miss_tokens,
            "kv_cells": slots.cells.total,
            "kv_cells_used": slots.cells.used,
            "sequences_paused": slots.pauses,
            "speculated_tokens": self._speculated,
            "speculated_tokens_accepted": self._accepted,
            "prefill_chunk": self._pace.budget(len(slots.running), 1),
            "step_seconds": self._pace.step_seconds,
        }

    def close(self) -> None:
        self._context.close()
        llama_cpp.llama_model_free(self._model)

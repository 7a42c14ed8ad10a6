"""The backend: many sequences decoded together through llama.cpp's low-level API."""

from __future__ import annotations

import os

import llama_cpp
import numpy as np

from hxd.hookspecs import Advance, LoadRequest, ModelInfo, RequestRefused, Sequence

from . import native
from .batch import Slot, plan
from .sampling import Candidates, Sampler
from .vocabulary import Vocabulary

# A model as small as this gains about a fifth from a second thread (measured on the demo model with
# one and eight sequences); the core is left to the other replicas and to the daemon.
SMALL_MODEL = 64 << 20


class LlamaCpp:
    """One model, one context, `slots` sequences in it; every slot has its own part of the KV
    cache, so a sequence can always grow to `context` tokens."""

    def __init__(self, batch: int = 512, gpu_layers: int = -1) -> None:
        self._budget = batch
        self._gpu_layers = gpu_layers
        self._slots: dict[int, Slot] = {}
        self._samplers: dict[int, Sampler] = {}

    def load(self, request: LoadRequest) -> ModelInfo:
        if request.path is None:
            raise ValueError("llama_cpp needs a model file; set source")
        native.start()
        self._model = native.load_model(request.path, gpu_layers=self._gpu_layers)
        architecture = native.metadata(self._model, "general.architecture") or "unknown"
        if native.metadata(self._model, f"{architecture}.attention.causal") == "false":
            raise ValueError(
                f"{request.path.name} is a {architecture} embedding model: it can't generate text"
            )
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        self._context_size = min(request.context, trained) if trained > 0 else request.context
        self._vocabulary = Vocabulary(self._model)
        self._context = self._new_context(request)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._budget = max(self._budget, request.slots)
        self._batch = llama_cpp.llama_batch_init(self._budget, 0, 1)
        shape = (self._budget,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape)
        self._wanted = np.ctypeslib.as_array(self._batch.logits, shape)
        np.ctypeslib.as_array(self._batch.n_seq_id, shape)[:] = 1
        self._places = list(range(request.slots))
        self._candidates = Candidates(self._vocabulary.size)
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return ModelInfo(
            context=self._context_size,
            vocab=self._vocabulary.digest,
            chat_template=template.decode("utf-8", "replace") if template else None,
            special_tokens=self._vocabulary.special_tokens,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            details={
                "architecture": architecture,
                "parameters": llama_cpp.llama_model_n_params(self._model),
                "bytes": llama_cpp.llama_model_size(self._model),
                "trained_context": trained,
                "vocabulary": self._vocabulary.size,
                "threads": llama_cpp.llama_n_threads(self._context),
                "llama_cpp_python": llama_cpp.__version__,
            },
        )

    def _new_context(self, request: LoadRequest) -> int:
        small = llama_cpp.llama_model_size(self._model) < SMALL_MODEL
        threads = request.threads or (1 if small else len(os.sched_getaffinity(0)))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = self._context_size * request.slots
        parameters.n_seq_max = request.slots
        parameters.n_batch = max(self._budget, request.slots)
        parameters.n_ubatch = min(parameters.n_batch, 512)
        parameters.n_threads = threads
        parameters.n_threads_batch = threads
        parameters.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError(
                f"llama.cpp can't make a context of {request.slots} x {self._context_size} tokens: "
                f"{native.last_words()}"
            )
        return context

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return self._vocabulary.piece(token, special=special)

    def add(self, sequence: Sequence) -> None:
        for token in sequence.prompt:
            if not 0 <= token < self._vocabulary.size:
                raise RequestRefused(
                    f"token {token} is not in the vocabulary of {self._vocabulary.size} tokens",
                    param="prompt",
                )
        self._samplers[sequence.id] = Sampler(
            self._candidates,
            sequence.sampling,
            sequence.seed,
            self._vocabulary.ending,
            sequence.prompt,
            sequence.produced,
            self._context_size,
        )
        place = self._places.pop()
        self._slots[sequence.id] = Slot(sequence.id, place, sequence.prompt + sequence.produced)

    def remove(self, id: int) -> None:
        slot = self._slots.pop(id)
        self._samplers.pop(id).close()
        llama_cpp.llama_memory_seq_rm(self._memory, slot.place, -1, -1)
        self._places.append(slot.place)

    def step(self) -> list[Advance]:
        chunks = plan(self._slots.values(), self._budget)
        at = 0
        for chunk in chunks:
            end = at + chunk.count
            self._tokens[at:end] = chunk.slot.tokens[chunk.start : chunk.start + chunk.count]
            self._positions[at:end] = range(chunk.start, chunk.start + chunk.count)
            self._wanted[at:end] = 0
            self._wanted[end - 1] = chunk.complete
            for i in range(at, end):
                self._batch.seq_id[i][0] = chunk.slot.place
            at = end
        self._batch.n_tokens = at
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}: {native.last_words()}")
        advances = []
        complete = [chunk for chunk in chunks if chunk.complete]
        rows = self._logits(len(complete)) if complete else ()
        for chunk, logits in zip(complete, rows, strict=True):
            token = self._samplers[chunk.slot.id].draw(logits)
            chunk.slot.tokens.append(token)
            ended = token in self._vocabulary.ending
            advances.append(Advance(chunk.slot.id, [token], ended=ended))
        for chunk in chunks:
            chunk.slot.fed += chunk.count
        return advances

    def _logits(self, rows: int) -> np.ndarray:
        """float32 [rows, vocabulary], one row per wanted token in the order of the batch."""
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self._vocabulary.size))

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

"""A llama.cpp context and the batch that goes into it; the only place that decodes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from . import native
from .batch import Chunk
from .options import FLASH_ATTENTION, Options

NO_ROOM = 1


class OutOfCells(Exception):
    """The KV cache has no room for the batch; nothing was computed."""


@dataclass(frozen=True)
class Size:
    """`cells` of KV cache for at most `places` sequences, each with its own part unless `unified`;
    `batch` tokens in one step."""

    cells: int
    places: int
    batch: int
    threads: int
    unified: bool


class _Batch:
    """Memory for llama.cpp's batch of at most `size` tokens, filled in one go per chunk."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._places = np.zeros(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
        self._counts = np.ones(size, dtype=np.int32)
        # The library wants a pointer per token; each points into one array.
        self._pointers = self._places.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self.batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, llama_cpp.llama_token),
            pos=_pointer(self._positions, llama_cpp.llama_pos),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=_pointer(self._pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.batch.n_tokens = 0

    def add(self, tokens: list[int], start: int, place: int, rows: int) -> None:
        """`tokens` from position `start` at `place`; logits of the last `rows` are wanted."""
        at = self.batch.n_tokens
        end = at + len(tokens)
        self._tokens[at:end] = tokens
        self._positions[at:end] = np.arange(start, start + len(tokens))
        self._places[at:end] = place
        self._wanted[at:end] = 0
        self._wanted[end - rows : end] = 1
        self.batch.n_tokens = end


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class Context:
    """One context over `model`, a pointer. Raises `RuntimeError` with the library's words."""

    def __init__(self, model: int, size: Size, options: Options) -> None:
        self._model = model
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = size.cells
        parameters.n_seq_max = size.places
        parameters.n_batch = size.batch
        parameters.n_ubatch = min(size.batch, options.ubatch)
        parameters.n_threads = size.threads
        parameters.n_threads_batch = size.threads
        parameters.no_perf = True
        parameters.kv_unified = self._unified = size.unified
        parameters.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        parameters.type_k = options.cache_type(options.kv_type_k)
        parameters.type_v = options.cache_type(options.kv_type_v)
        self._context: Any = llama_cpp.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError(
                f"llama.cpp can't make a context of {size.cells} KV cells: {native.last_words()}"
            )
        self._memory: Any = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._fill = _Batch(size.batch)
        self._adapters: list[Any] = []
        self.threads = size.threads

    def use_threads(self, count: int) -> None:
        """From the next step on."""
        llama_cpp.llama_set_n_threads(self._context, count, count)
        self.threads = count

    def adapt(self, adapters: Sequence[tuple[Path, float]]) -> None:
        """Apply LoRA adapters, each with its scale."""
        for path, _ in adapters:
            adapter = llama_cpp.llama_adapter_lora_init(self._model, bytes(path))
            if not adapter:
                raise RuntimeError(f"llama.cpp can't load {path.name}: {native.last_words()}")
            self._adapters.append(adapter)
        if self._adapters:
            pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(self._adapters))(
                *self._adapters
            )
            scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
            if llama_cpp.llama_set_adapters_lora(
                self._context, pointers, len(self._adapters), scales
            ):
                raise RuntimeError(f"llama.cpp can't apply LoRA: {native.last_words()}")

    def decode(
        self, chunks: Sequence[Chunk], all_rows: frozenset[int]
    ) -> list[NDArray[np.float32]]:
        """Run one step; for each chunk the logits of the tokens that want them, float32
        [rows, vocabulary]: all in slots named by `all_rows`, those of a complete one's last token
        and guesses, none otherwise. They are overwritten by the next step.

        Raises `OutOfCells`, or `RuntimeError` when the library failed.
        """
        counts = []
        self._fill.clear()
        for chunk in chunks:
            guess = chunk.slot.guess if chunk.complete else []
            end = chunk.start + chunk.count - len(guess)
            rows = chunk.count if chunk.slot.id in all_rows else (1 + len(guess)) * chunk.complete
            tokens = chunk.slot.tokens[chunk.start : end] + guess
            self._fill.add(tokens, chunk.start, chunk.place, rows)
            counts.append(rows)
        status = llama_cpp.llama_decode(self._context, self._fill.batch)
        if status == NO_ROOM:
            raise OutOfCells
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}: {native.last_words()}")
        total = sum(counts)
        if not total:
            return [np.empty((0, self._vocabulary), dtype=np.float32) for _ in chunks]
        pointer = llama_cpp.llama_get_logits(self._context)
        logits = np.ctypeslib.as_array(pointer, (total, self._vocabulary))
        ends = np.cumsum(counts)
        return [logits[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        if self._unified:
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, end)
        else:
            # Between parts of a split cache the library copies all or nothing.
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.forget(target, end)

    def forget(self, place: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, place, start, -1)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)


def cores() -> int:
    """Physical cores that this process may use: a second thread on one core waits for the same
    memory and only gets in the way."""
    allowed = os.sched_getaffinity(0)
    seen = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            seen.add(siblings.read_text())
        except OSError:
            return len(allowed)
    return len(seen) or len(allowed)

"""The embedder: vectors, and scores of a reranker, through llama.cpp's low-level API.

The inputs of one call go into one batch, each as a sequence of its own. An encoder looks at a whole
sequence at once, so its batch is computed in one piece; a decoder that gives the vector of its last
token reads a batch in pieces, and so needs memory for a piece only.
"""

from __future__ import annotations

import ctypes
import re
import unicodedata
from itertools import chain
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import LoadRequest, ModelInfo, RequestRefused

from . import native
from .context import cores
from .options import FLASH_ATTENTION, Options
from .pair import Pairs
from .vocabulary import Vocabulary

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of llama-cparams.h
# From 64 tokens on, ggml computes attention on a CPU by another kernel, whose sums round elsewhere.
# In a smaller batch a text has the same vector as alone (with q8_0 weights a cosine of 0.9996
# otherwise), it makes others wait less, and it is no slower: MiniLM does as many texts in a second
# with batches of 64 tokens as with 512.
CPU_BATCH = 63
PIECE = 512
POOLING = {
    "mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama_cpp.LLAMA_POOLING_TYPE_CLS,
    "last": llama_cpp.LLAMA_POOLING_TYPE_LAST,
    "rank": llama_cpp.LLAMA_POOLING_TYPE_RANK,
}
_SYLLABLES = re.compile("[\uac00-\ud7a3]+")
_NAMES = {number: name for name, number in POOLING.items()}
# Their headers look like an encoder's, and what they make are not embeddings.
OTHERS = {
    "dream": "a diffusion model", "llada": "a diffusion model", "llada-moe": "a diffusion model",
    "rnd1": "a diffusion model", "wavtokenizer-dec": "a speech decoder",
}  # fmt: skip


class LlamaCppEmbedder:
    """One model, one context. A batch has up to `batch` tokens, or one longer input."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.batch = CPU_BATCH

    def load(self, request: LoadRequest) -> ModelInfo:
        path = native.need_file(request)
        native.start()
        gpu = self._options.gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
        if gpu or "batch" in request.options:
            self.batch = self._options.batch
        model = self._model = native.load_model(path, gpu_layers=self._options.gpu_layers)
        architecture = native.metadata(model, "general.architecture") or "unknown"
        if architecture in OTHERS:
            raise ValueError(f"{path.name} is {OTHERS[architecture]}, which hxd does not serve")
        if llama_cpp.llama_model_has_encoder(model) and llama_cpp.llama_model_has_decoder(model):
            raise ValueError(f"{path.name} has an encoder and a decoder, which hxd does not serve")
        causal = native.metadata(model, f"{architecture}.attention.causal") != "false"
        pooling = self._pooling(architecture, causal=causal)
        trained = llama_cpp.llama_model_n_ctx_train(model)
        length = min(request.context, trained) if trained > 0 else request.context
        self._vocabulary = Vocabulary(model)
        # llama.cpp's WordPiece takes a Korean syllable for its first letter alone.
        self._spells_syllables = self._drops_letters()
        self._pairs = Pairs(model, self._vocabulary.special_tokens, self.tokenize)
        self._set_threads = request.threads
        self._new_context(pooling, length, causal=causal, threads=request.threads or cores())
        used = int(llama_cpp.llama_pooling_type(self._context))
        self._ranks = used == llama_cpp.LLAMA_POOLING_TYPE_RANK
        self._width = 1 if self._ranks else llama_cpp.llama_model_n_embd_out(model)
        return ModelInfo(
            context=length,
            vocab=self._vocabulary.digest,
            special_tokens=self._vocabulary.special_tokens,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            details={
                "architecture": architecture,
                "parameters": llama_cpp.llama_model_n_params(model),
                "bytes": llama_cpp.llama_model_size(model),
                "trained_context": trained,
                "vocabulary": self._vocabulary.size,
                "pooling": _NAMES.get(used, "none"),
                "dimensions": self._width,
                "batch": self.batch,
                "threads": llama_cpp.llama_n_threads(self._context),
                "llama_cpp_python": llama_cpp.__version__,
            },
            capabilities=frozenset({"rank" if self._ranks else "embed"}),
        )

    def share(self, among: int) -> None:
        """As in `LlamaCpp.share`."""
        if not self._set_threads:
            count = max(1, cores() // among)
            llama_cpp.llama_set_n_threads(self._context, count, count)

    def _pooling(self, architecture: str, *, causal: bool) -> int:
        """What the operator says, else what the file says, else what suits the model's kind."""
        given = self._options.pooling
        if given == "none":
            raise ValueError(
                "option pooling: none gives a vector per token, and no endpoint answers with "
                f"these; there are {', '.join(POOLING)}"
            )
        if given is not None:
            return POOLING[given]
        said = int(native.metadata(self._model, f"{architecture}.pooling_type") or 0)
        if said == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            return POOLING["last" if causal else "mean"]
        if said not in _NAMES:
            raise ValueError(f"the header says pooling type {said}; {sorted(_NAMES)} are known")
        return said

    def _new_context(self, pooling: int, length: int, *, causal: bool, threads: int) -> None:
        """`length`: tokens of the longest input."""
        # llama.cpp plans for a batch shared equally by all sequences, and aborts the process where
        # mean pooling then finds another number of tokens.
        self._sequences = min(MAX_SEQUENCES, 1 << (self.batch.bit_length() - 1))
        whole = -(-max(self.batch, length) // self._sequences) * self._sequences
        last = pooling in (POOLING["last"], POOLING["rank"])
        self._piece = min(whole, PIECE) if causal and last else whole
        parameters = llama_cpp.llama_context_default_params()
        parameters.embeddings = True
        parameters.pooling_type = pooling
        parameters.n_ctx = whole
        parameters.n_batch = parameters.n_ubatch = self._piece
        parameters.n_seq_max = self._sequences
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = FLASH_ATTENTION[self._options.flash_attention]
        parameters.no_perf = True
        self._context: Any = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(
                f"llama.cpp can't make a context of {whole} tokens: {native.last_words()}"
            )
        self._memory: Any = llama_cpp.llama_get_memory(self._context)
        encodes = not self._memory or llama_cpp.llama_model_has_encoder(self._model)
        self._compute = llama_cpp.llama_encode if encodes else llama_cpp.llama_decode

    def _drops_letters(self) -> bool:
        first, whole = "\u1100", "\uac00"
        tokens = [
            self._vocabulary.tokenize(text, add_special=False, parse_special=False)
            for text in (first, whole)
        ]
        return tokens[0] == tokens[1]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if self._spells_syllables:
            text = _SYLLABLES.sub(lambda match: unicodedata.normalize("NFD", match[0]), text)
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Raises `RequestRefused` for an id that there is not."""
        if not 0 <= token < self._vocabulary.size:
            raise RequestRefused(
                f"token {token} is not in the vocabulary of {self._vocabulary.size} tokens"
            )
        return self._vocabulary.piece(token, special=special)

    def pair(self, query: str, document: str) -> list[int]:
        return self._pairs.tokens(query, document)

    def embed(self, inputs: list[list[int]]) -> list[bytes]:
        rows = np.empty((len(inputs), self._width), dtype="<f4")
        for start in range(0, len(inputs), self._sequences):
            end = start + self._sequences
            self._fill(inputs[start:end], rows[start:end])
        if not self._ranks:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows /= np.maximum(norms, np.finfo(np.float32).tiny)
        return [row.tobytes() for row in rows]

    def _fill(self, inputs: list[list[int]], rows: NDArray[np.float32]) -> None:
        """Pooled vectors or scores of `inputs`, at most as many as there are sequences."""
        lengths = np.fromiter(map(len, inputs), dtype=np.int32)
        ends = np.cumsum(lengths)
        total = int(ends[-1])
        tokens = np.fromiter(chain.from_iterable(inputs), dtype=np.int32, count=total)
        positions = np.arange(total, dtype=np.int32) - np.repeat(ends - lengths, lengths)
        places = np.repeat(np.arange(len(inputs), dtype=np.int32), lengths)
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, False)
        done = 0
        for at in range(0, total, self._piece):
            piece = slice(at, at + self._piece)
            self._run(tokens[piece], positions[piece], places[piece])
            complete = int(np.searchsorted(ends, at + self._piece, side="right"))
            for place in range(done, complete):
                self._read(place, rows[place])
            done = complete

    def _run(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], places: NDArray[np.int32]
    ) -> None:
        """Compute a batch; each token belongs to the sequence at its place."""
        count = len(tokens)
        positions = np.ascontiguousarray(positions, dtype=np.int32)
        ones = np.ones(count, dtype=np.int32)
        wanted = np.ones(count, dtype=np.int8)
        # The library wants a pointer per token; each points into one array.
        pointers = places.ctypes.data + places.itemsize * np.arange(count, dtype=np.uintp)
        status = self._compute(
            self._context,
            llama_cpp.llama_batch(
                n_tokens=count,
                token=_pointer(tokens, llama_cpp.llama_token),
                pos=_pointer(positions, llama_cpp.llama_pos),
                n_seq_id=_pointer(ones, ctypes.c_int32),
                seq_id=_pointer(pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
                logits=_pointer(wanted, ctypes.c_int8),
            ),
        )
        if status != 0:
            raise RuntimeError(f"llama.cpp gave {status}: {native.last_words()}")

    def _read(self, place: int, row: NDArray[np.float32]) -> None:
        pooled = llama_cpp.llama_get_embeddings_seq(self._context, place)
        if not pooled:
            raise RuntimeError(f"llama.cpp gave no vector: {native.last_words()}")
        ctypes.memmove(row.ctypes.data, pooled, row.nbytes)

    def gauges(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))

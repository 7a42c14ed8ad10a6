"""Draws the next token of one sequence, by `(seed, position)` and the logits alone.

llama.cpp's samplers shape the distribution; the draw itself is ours, since theirs carries random
state that would die with the worker. The inverse of the cumulative distribution is taken in the
order of token ids: an order by probability would let two nearly equal tokens change places, and
with them the draw, between one worker and the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import llama_cpp
import numpy as np

from hxd.hookspecs import RequestRefused
from hxd.wire import Sampling

# Below it, logits divided by the temperature leave float32's range; the draw is greedy by then.
COLDEST = 1e-4
_MASK = (1 << 64) - 1
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else; splitmix64's finalizer (Steele, Lea and
    Flood 2014) over the two."""
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xBF58476D1CE4E5B9) & _MASK
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


class Candidates:
    """Room for one distribution over the vocabulary; one per backend, used anew for each draw."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ids = np.arange(size, dtype=np.int32)
        self._data = np.empty(size, dtype=_TOKEN_DATA)
        self._array = llama_cpp.llama_token_data_array()

    def shape(self, chain: Any, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and logits that the samplers in `chain` leave over, in ascending order of ids."""
        self._data["id"] = self._ids
        self._data["logit"] = logits
        self._data["p"] = 0.0
        array = self._array
        array.data = self._data.ctypes.data_as(llama_cpp.llama_token_data_p)
        array.size = self.size
        array.selected = -1
        array.sorted = False
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        address = ctypes.addressof(array.data.contents)
        raw = (ctypes.c_char * (array.size * _TOKEN_DATA.itemsize)).from_address(address)
        left = np.frombuffer(raw, dtype=_TOKEN_DATA)
        if array.sorted or array.size < self.size:
            left = left[np.argsort(left["id"])]
        return left["id"], left["logit"]


class Sampler:
    """The sampling state of one sequence: what was said so far, as far as penalties care."""

    def __init__(
        self,
        candidates: Candidates,
        sampling: Sampling,
        seed: int,
        ending: Iterable[int],
        prompt: list[int],
        produced: list[int],
        history: int,
    ) -> None:
        self._candidates = candidates
        self._seed = seed
        self._position = len(produced)
        self._greedy = sampling.temperature < COLDEST
        self._history: list[Any] = []
        self._chain = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        self._used = False
        try:
            self._build(sampling, ending, prompt, produced, history)
        except BaseException:
            self.close()
            raise

    def _build(
        self,
        sampling: Sampling,
        ending: Iterable[int],
        prompt: list[int],
        produced: list[int],
        history: int,
    ) -> None:
        size = self._candidates.size
        bias = dict(sampling.logit_bias)
        for token in bias:
            if not 0 <= token < size:
                raise RequestRefused(
                    f"logit_bias: token {token} is not in the vocabulary of {size} tokens",
                    param="logit_bias",
                )
        if sampling.ignore_eos:
            bias |= dict.fromkeys(ending, float("-inf"))
        if bias:
            entries = (llama_cpp.llama_logit_bias * len(bias))()
            for entry, (token, value) in zip(entries, bias.items(), strict=True):
                entry.token, entry.bias = token, value
            self._add(llama_cpp.llama_sampler_init_logit_bias(size, len(bias), entries))
        if sampling.repeat_penalty != 1.0:
            # Over prompt and answer, as its users know it from Transformers and llama.cpp.
            penalty = llama_cpp.llama_sampler_init_penalties(
                size, history, sampling.repeat_penalty, 0.0, 0.0
            )
            self._remember(penalty, prompt + produced)
        if sampling.frequency_penalty or sampling.presence_penalty:
            # Over the answer only, as OpenAI defines them.
            penalty = llama_cpp.llama_sampler_init_penalties(
                size, history, 1.0, sampling.frequency_penalty, sampling.presence_penalty
            )
            self._remember(penalty, produced)
        if not self._greedy:
            if sampling.top_k > 0:
                self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1.0:
                self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0.0:
                self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
            if sampling.temperature != 1.0:
                self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        self._used = True

    def _remember(self, sampler: Any, tokens: list[int]) -> None:
        for token in tokens:
            llama_cpp.llama_sampler_accept(sampler, token)
        self._history.append(sampler)
        self._add(sampler)

    def draw(self, logits: np.ndarray) -> int:
        """The next token. `logits`: float32, one per token of the vocabulary."""
        ids, left = self._candidates.shape(self._chain, logits) if self._used else (None, logits)
        at = int(left.argmax()) if self._greedy else self._pick(left)
        token = at if ids is None else int(ids[at])
        self._position += 1
        for sampler in self._history:
            llama_cpp.llama_sampler_accept(sampler, token)
        return token

    def _pick(self, logits: np.ndarray) -> int:
        weights = np.exp(logits - logits.max(), dtype=np.float64)
        cumulative = np.cumsum(weights)
        mark = uniform(self._seed, self._position) * cumulative[-1]
        return min(int(np.searchsorted(cumulative, mark, side="right")), len(cumulative) - 1)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._chain)

"""Draws the next token of one sequence, by `(seed, position)` and the logits alone.

A random state would die with its worker; here two workers that see the same logits draw the same
token. The inverse of the cumulative distribution is taken in the order of token ids: an order by
probability would let two nearly equal tokens change places, and with them the draw.

The steps come in llama.cpp's order: bias, penalties, constraint, top-k, top-p, min-p, temperature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hxd.hookspecs import RequestRefused
from hxd.wire import Sampling

Logits: TypeAlias = NDArray[np.float32]

# Below it, logits divided by the temperature leave float32's range; the draw is greedy by then.
COLDEST = 1e-4
_MASK = (1 << 64) - 1


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


class Tally:
    """How often each token occurred. `ids` and `counts` are parallel arrays."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def remove(self, token: int) -> None:
        self._counts[self._places[token]] -= 1

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._places)]


class Sampler:
    """The sampling state of one sequence: what was said so far, as far as penalties care.

    `size`: tokens in the vocabulary. `ending`: tokens that end a sequence. Raises `RequestRefused`
    for a token id outside the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        *,
        size: int,
        ending: Iterable[int],
        prompt: Iterable[int],
        produced: list[int],
    ) -> None:
        self._sampling = sampling
        self._seed = seed
        self.position = len(produced)
        for token in sampling.logit_bias:
            if not 0 <= token < size:
                raise RequestRefused(
                    f"logit_bias: token {token} is not in the vocabulary of {size} tokens",
                    param="logit_bias",
                )
        bias: dict[int, float] = dict(sampling.logit_bias)
        if sampling.ignore_eos:
            bias |= dict.fromkeys(ending, -np.inf)
        self._biased = np.fromiter(bias, dtype=np.int64, count=len(bias))
        self._biases = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        # Repetition counts over prompt and answer, as its users know it from Transformers and
        # llama.cpp; frequency and presence over the answer only, as OpenAI defines them.
        repeats = sampling.repeat_penalty != 1.0
        frequent = sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
        self._seen = Tally([*prompt, *produced]) if repeats else None
        self._said = Tally(produced) if frequent else None
        self._greedy = sampling.temperature < COLDEST
        self._as_is = not (bias or repeats or frequent)

    def draw(self, logits: Logits, allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token, which then counts as said. `logits`: one per token of the vocabulary;
        left unchanged. `allowed`: the tokens that may be drawn; at least one is."""
        if not self._as_is or allowed is not None:
            logits = self._shaped(logits, allowed)
        token = int(logits.argmax()) if self._greedy else self._pick(logits)
        self.position += 1
        if self._seen is not None:
            self._seen.add(token)
        if self._said is not None:
            self._said.add(token)
        return token

    def take_back(self, tokens: list[int]) -> None:
        """Undo the last draws, which gave `tokens`."""
        self.position -= len(tokens)
        for tally in (self._seen, self._said):
            for token in tokens if tally is not None else ():
                tally.remove(token)  # type: ignore[union-attr]  # the condition above

    def _shaped(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> Logits:
        shaped = logits.copy()
        if len(self._biased):
            shaped[self._biased] += self._biases
        if self._seen is not None:
            ids = self._seen.ids[self._seen.counts > 0]
            values = shaped[ids]
            penalty = np.float32(self._sampling.repeat_penalty)
            shaped[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._said is not None:
            counts = self._said.counts
            shaped[self._said.ids] -= counts * np.float32(self._sampling.frequency_penalty) + (
                counts > 0
            ) * np.float32(self._sampling.presence_penalty)
        if allowed is not None:
            shaped[~allowed] = -np.inf
            if shaped.max() == -np.inf:
                # All that may come is forbidden by a bias or the model: the constraint wins.
                shaped[allowed] = 0.0
        return shaped

    def _pick(self, logits: Logits) -> int:
        sampling = self._sampling
        best = logits.max()
        if not np.isfinite(best):
            return int(logits.argmax())
        ids: NDArray[np.int64] | None = None
        values = logits - best
        if 0 < sampling.top_k < len(values):
            # As llama.cpp and OpenAI's users expect, ties at the edge are cut too.
            least = np.partition(values, len(values) - sampling.top_k)[-sampling.top_k]
            ids = np.flatnonzero(values >= least)
            if len(ids) > sampling.top_k:
                ids = np.sort(ids[np.argsort(-values[ids], kind="stable")[: sampling.top_k]])
            values = values[ids]
        if sampling.top_p < 1.0:
            ids, values = _keep(ids, values, values >= _edge_of_nucleus(values, sampling.top_p))
        if sampling.min_p > 0.0:
            ids, values = _keep(ids, values, values >= np.log(sampling.min_p))
        if sampling.temperature != 1.0:
            values = values / np.float32(sampling.temperature)
        at = _invert(np.exp(values), uniform(self._seed, self.position))
        return at if ids is None else int(ids[at])


def _keep(
    ids: NDArray[np.int64] | None, values: Logits, kept: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Logits]:
    """Those that are `kept`; `ids` None stands for 0, 1, 2…"""
    at = np.flatnonzero(kept)
    return at if ids is None else ids[at], values[at]


def _edge_of_nucleus(values: Logits, share: float) -> np.float32:
    """The least of the most likely logits that together hold `share` of the probability."""
    wanted = share * float(np.exp(values).sum(dtype=np.float64))
    # Mostly a few hundred tokens hold it; a whole vocabulary is slow to sort.
    for head in (256, 4096, len(values)):
        if head > len(values):
            continue
        ordered = np.sort(np.partition(values, len(values) - head)[-head:])[::-1]
        cumulative = np.cumsum(np.exp(ordered), dtype=np.float64)
        if cumulative[-1] >= wanted:
            break
    last = int(np.searchsorted(cumulative, wanted, side="left"))
    edge: np.float32 = ordered[min(last, len(ordered) - 1)]
    return edge


def _invert(weights: Logits, mark: float) -> int:
    """Where the cumulative sum of `weights` passes `mark` of its total; by blocks, since most of a
    large vocabulary's cumulative sum would be computed for nothing."""
    block = 256
    whole = len(weights) // block * block
    sums = weights[:whole].reshape(-1, block).sum(axis=1, dtype=np.float64)
    sums = np.append(sums, weights[whole:].sum(dtype=np.float64))
    ends = np.cumsum(sums)
    wanted = mark * ends[-1]
    at = min(int(np.searchsorted(ends, wanted, side="right")), len(ends) - 1)
    inside = weights[at * block : (at + 1) * block]
    # Not `ends[at] - sums[at]`, which rounding may put beyond `wanted`: before any weight.
    steps = np.cumsum(inside, dtype=np.float64) + (ends[at - 1] if at else 0.0)
    found = int(np.searchsorted(steps, wanted, side="right"))
    if found < len(inside):
        return at * block + found
    # Rounding at the very end: the last token that can be drawn at all.
    return int(np.flatnonzero(weights[: at * block + len(inside)])[-1])


def log_probabilities(
    logits: Logits, tokens: list[int], top: int
) -> tuple[list[float], list[tuple[int, float]]]:
    """Natural logarithms of the probabilities of `tokens`, and of the `top` most likely ones with
    their ids, best first; as the model gives them, before anything shapes them."""
    best = float(logits.max())
    total = best + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    chosen = [float(logits[token]) - total for token in tokens]
    if top <= 0:
        return chosen, []
    top = min(top, len(logits))
    ids = np.flatnonzero(logits >= np.partition(logits, len(logits) - top)[-top])
    ids = ids[np.argsort(-logits[ids], kind="stable")][:top]
    return chosen, [(int(id), float(logits[id]) - total) for id in ids]

"""How many tokens the library's working memory takes. Pure: knows headers and numbers.

The library computes in buffers of fixed size (256 MiB each for most families: the models of its
time needed no more) and ends the process when one is full. What fills them is known: the tensors
that its `models/llms/*.cc` make for each layer. So a prompt is read in chunks that fit, which are
smaller towards the end of a long context; where not one token fits, the context ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hxd.ggml import Header

_MIB = 1 << 20
_BUFFER = 256 * _MIB
# One tensor's description: ggml's struct of about 300 bytes, its list entry, and alignment.
_DESCRIPTION = 448
# For alignment, and for small tensors that `_Need` leaves out.
_MARGIN = 1.02
# The longest graph of ggml's at that time.
_MAX_NODES = 4096
# llama.cpp measures its buffers when it loads, for batches up to this.
_LLAMA_BATCH = 512
_LLAMA_NODES = 44


@dataclass(frozen=True)
class _Need:
    """What one layer keeps while it is computed, in float32 values. For each token that is read:
    `rows` embeddings in its first half and `inner` in its second, and `scores` rows of attention
    as long as the context, for all heads. Besides, `values` times the context's embeddings.

    `nodes` of the graph per layer. `split`: the halves have buffers of their own, which the next
    layer uses anew; otherwise all layers are in one.
    """

    rows: int
    inner: int
    scores: int
    values: float
    nodes: int
    split: bool


_NEEDS = {
    "gpt2": _Need(22, 26, 1, 1, 64, split=False),
    "gptj": _Need(13, 21, 1, 0, 50, split=False),
    "dolly-v2": _Need(24, 29, 1, 0, 66, split=False),
    "replit": _Need(11, 14, 5, 0.5, 46, split=False),
    "starcoder": _Need(22, 26, 1, 1, 64, split=True),
    "gptneox": _Need(24, 29, 1, 0, 66, split=True),
    "mpt": _Need(14, 14, 5, 0.5, 48, split=True),
    "falcon": _Need(18, 13, 1, 5, 60, split=True),
}


@dataclass(frozen=True)
class Room:
    """Where evaluations fit: up to `context` tokens in all, and `batch` at once."""

    header: Header
    context: int
    batch: int

    def tokens(self, past: int) -> int:
        """How many tokens can be read at once after `past` of them; 1 at least."""
        most = min(self.batch, self.context - past)
        return max(1, _most(most, lambda count: _fits(self.header, count, past, self.context)))


def fit(header: Header, batch: int, context: int) -> Room:
    """Room for `batch` tokens at once and `context` in all, or as much of it as there is. Raises
    `ValueError` when not one token can be read."""
    nodes = _NEEDS[header.family].nodes if header.family in _NEEDS else _LLAMA_NODES
    if header.layers * nodes > _MAX_NODES:
        raise ValueError(
            f"{header.layers} layers are more than the library computes; "
            f"{_MAX_NODES // nodes} of this family can be"
        )
    context = _most(context, lambda total: _fits(header, 1, total - 1, total))
    if not context:
        raise ValueError("not even one token fits into the library's working memory")
    return Room(header, context, min(batch, _LLAMA_BATCH))


def _fits(header: Header, tokens: int, past: int, context: int) -> bool:
    """Whether `tokens` can be read at once after `past`, in a model loaded with `context`."""
    need = _NEEDS.get(header.family)
    if need is None:
        return True
    buffers = _falcon_buffers(context) if header.family == "falcon" else (_BUFFER,) * 3
    wanted = _wanted(header, need, tokens, past + tokens)
    return all(size <= buffer for size, buffer in zip(wanted, buffers, strict=True))


def _wanted(header: Header, need: _Need, tokens: int, total: int) -> tuple[int, int, int]:
    """Bytes in the common buffer and in those for the halves of a layer, to read `tokens` as the
    last ones of `total`."""
    row = 4 * header.width * tokens
    attention = 4 * header.heads * tokens * total
    first: float = (
        need.rows * row + need.scores * attention + need.values * 4 * header.width * total
    )
    second: float = need.inner * row
    descriptions = (header.layers * need.nodes + 32) * _DESCRIPTION
    # Logits with a bias make three tensors; operands are converted in a work area.
    common: float = (
        descriptions + 3 * 4 * header.vocab * tokens + 10 * row + max(4 * row, attention)
    )
    if not need.split:
        common += header.layers * (first + second)
        first = second = 0
    return int(common * _MARGIN), int(first * _MARGIN), int(second * _MARGIN)


def _falcon_buffers(context: int) -> tuple[int, int, int]:
    """As libfalcon takes them for 7B and a batch of 512; 40B has more."""
    return (
        160 * _MIB,
        int((32 + 92 + 512 * context * 0.00029706) * _MIB),
        40 * _MIB + 145752 * 512,
    )


def _most(limit: int, good: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that is `good`, where all smaller ones are; 0 if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low

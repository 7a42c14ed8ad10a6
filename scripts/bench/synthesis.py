"""Model files made of random numbers: the right shapes and a working tokenizer, no knowledge.

How fast a model runs depends on its shapes and quantization and not on what it learned, so these
stand for real ones. The same configuration and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import gguffile
from .gguffile import F32, Q4_0, Q4_0_BLOCK, Tensor

SEED = 20
# Part of the cached file's name: raise it when the bytes change.
FORMAT = 2
UNK, BOS, EOS = 0, 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
# Two numbers of four bits each, which stand for -8 to 7. -8 becomes 0, so that the mean is 0:
# otherwise one direction outgrows the others from layer to layer, and every answer is one word
# over and over.
_SYMMETRIC = np.array(
    [(high or 8) << 4 | (low or 8) for high in range(16) for low in range(16)], np.uint8
)
_NIBBLE_DEVIATION = (sum((number - 8) ** 2 for number in range(1, 16)) / 16) ** 0.5

# Queries and keys of this size make attention look at a few tokens and not at all alike, so that
# the next token follows from the whole text, and greedy answers don't run in circles, which would
# flatter a server that guesses ahead.
_SHARP = 2.0

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama with grouped-query attention. Multiples of 32 throughout (blocks of Q4_0)."""

    name: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    context: int = 8192

    @property
    def parameters(self) -> int:
        kv = self.width * self.kv_heads // self.heads
        block = 2 * self.width * (self.width + kv + 1) + 3 * self.width * self.ffn
        return self.layers * block + self.width * (2 * self.vocabulary + 1)


SHAPES = {
    # The shape of TinyLlama 1.1B.
    "1b": Shape("1b", layers=22, width=2048, ffn=5632, heads=32, kv_heads=4),
    "160m": Shape("160m", layers=12, width=768, ffn=3072, heads=12, kv_heads=4),
    "tiny": Shape(
        "tiny", layers=2, width=64, ffn=128, heads=4, kv_heads=2, vocabulary=1024, context=512
    ),
}


def words() -> Iterator[str]:
    """Words of two syllables, then of three; each is one token as long as the vocabulary lasts."""
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwyz", "aeiou")]
    for count in (2, 3):
        yield from ("".join(parts) for parts in itertools.product(syllables, repeat=count))


def vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of a SentencePiece vocabulary. Any text can be tokenized: what is
    no word becomes letters, and what is no ASCII becomes bytes. Scores fall with length, so that
    the parts of a word are joined before the word is."""
    texts = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    types = [_UNKNOWN] + [_CONTROL] * 4
    scores = [0.0] * 5
    texts += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [_BYTE] * 256
    scores += [0.0] * 256
    pieces = {"\u2581": -1.0}
    pieces |= {chr(code): -1.0 for code in range(33, 127)}
    for word in words():
        # Each part of a word, then the word, as the tokenizer joins them.
        pieces.setdefault(word[:2], -2.0)
        pieces.setdefault(word[2:4], -2.0)
        pieces.setdefault(word[:4], -3.0)
        pieces.setdefault("\u2581" + word[:4], -4.0)
        pieces.setdefault("\u2581" + word, -5.0)
        if len(pieces) >= size - len(texts):
            break
    kept = list(pieces)[: size - len(texts)]
    types += [_NORMAL] * len(kept)
    scores += [pieces[piece] for piece in kept]
    return texts + kept, scores, types


def metadata(shape: Shape) -> dict[str, Any]:
    texts, scores, types = vocabulary(shape.vocabulary)
    assert len(texts) == shape.vocabulary, f"only {len(texts)} tokens"
    return {
        "general.architecture": "llama",
        "general.name": f"hxd-bench-{shape.name}",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": shape.width // shape.heads,
        "llama.vocab_size": shape.vocabulary,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.eot_token_id": texts.index("<|im_end|>"),
        "tokenizer.ggml.unknown_token_id": UNK,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


class Weights:
    """Random tensors from one stream of numbers, in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        # A bit generator's raw numbers stay the same over versions of numpy; distributions may not.
        self._numbers = np.random.PCG64(seed)

    def matrix(
        self, name: str, inputs: int, outputs: int, *, gain: float = 1.0, silent_rows: int = 0
    ) -> Tensor:
        """Q4_0 with a standard deviation of gain/√inputs, so that what goes in at unit size comes
        out at the size of `gain`. The first `silent_rows` outputs are zero."""

        def data() -> np.ndarray:
            per_block, block_bytes = Q4_0_BLOCK
            blocks = np.empty((outputs * inputs // per_block, block_bytes), np.uint8)
            scale = np.float16(gain / (_NIBBLE_DEVIATION * inputs**0.5))
            blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
            pairs = self._numbers.random_raw(2 * len(blocks)).view(np.uint8).reshape(-1, 16)
            blocks[:, 2:] = _SYMMETRIC[pairs]
            blocks[: silent_rows * inputs // per_block, :2] = 0
            return blocks

        return Tensor(name, (inputs, outputs), Q4_0, data)

    def norm(self, name: str, width: int) -> Tensor:
        return Tensor(name, (width,), F32, lambda: np.ones(width, np.float32).tobytes())


def tensors(shape: Shape, seed: int) -> list[Tensor]:
    make = Weights(seed)
    width, kv = shape.width, shape.width * shape.kv_heads // shape.heads
    # Control and byte tokens are never likeliest, so greedy answers neither end early nor stop
    # within a character.
    silent = vocabulary(shape.vocabulary)[2].index(_NORMAL)
    made = [
        make.matrix("token_embd.weight", width, shape.vocabulary),
        make.norm("output_norm.weight", width),
        make.matrix("output.weight", width, shape.vocabulary, silent_rows=silent),
    ]
    for layer in range(shape.layers):
        made += [
            make.norm(f"blk.{layer}.attn_norm.weight", width),
            make.matrix(f"blk.{layer}.attn_q.weight", width, width, gain=_SHARP),
            make.matrix(f"blk.{layer}.attn_k.weight", width, kv, gain=_SHARP),
            make.matrix(f"blk.{layer}.attn_v.weight", width, kv),
            make.matrix(f"blk.{layer}.attn_output.weight", width, width),
            make.norm(f"blk.{layer}.ffn_norm.weight", width),
            make.matrix(f"blk.{layer}.ffn_gate.weight", width, shape.ffn),
            make.matrix(f"blk.{layer}.ffn_up.weight", width, shape.ffn),
            make.matrix(f"blk.{layer}.ffn_down.weight", shape.ffn, width),
        ]
    return made


def synthesize(shape: Shape, path: Path, *, seed: int = SEED) -> None:
    """Write the file; it appears at `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        gguffile.write(new, metadata(shape), tensors(shape, seed))
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)


def cached(name: str, cache: Path) -> Path:
    """The file of one of `SHAPES`, made now if it is not in the cache."""
    shape = SHAPES[name]
    path = cache / "models" / f"hxd-bench-{name}-{FORMAT}.gguf"
    if not path.exists():
        print(f"making {path} ({shape.parameters / 1e6:,.0f} million parameters)", file=sys.stderr)
        synthesize(shape, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic model file.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    synthesize(SHAPES[arguments.shape], arguments.path, seed=arguments.seed)


if __name__ == "__main__":
    main()

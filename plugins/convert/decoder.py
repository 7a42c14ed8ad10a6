"""Decoders built as Llama is: their numbers out of config.json, and what they look like in GGUF.

How to add one: a row in `KINDS`, and in `entries` the tensors that it has besides. Compare its
logits with those of the reference before you believe it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGUFWriter, RopeScalingType

from .rope import Rope, rope
from .settings import Settings
from .weights import Entry

_SCALINGS = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}
_UNTIED = ", and config.json does not say tie_word_embeddings"
# Buffers that older versions of transformers saved, and that follow from the configuration.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
MOST = 1 << 20  # of widths, heads, tokens
MAX_LAYERS = 1000


@dataclass(frozen=True)
class Kind:
    """`gguf`: what llama.cpp calls it. `permuted`: rows of queries and keys are in the order of
    GPT-NeoX in the source, and in pairs in llama.cpp. `biases`: the settings that say whether
    queries, keys and values have them, whether the output has, and whether the feed-forward
    layers have; True or False where none does."""

    gguf: str
    permuted: bool = False
    normed: bool = False
    biases: tuple[str | bool, str | bool, str | bool] = (False, False, False)
    kv_heads: bool = True
    head_dim: int | None = None


KINDS = {
    "LlamaForCausalLM": Kind(
        "llama",
        permuted=True,
        biases=("attention_bias", "attention_bias", "mlp_bias"),
        kv_heads=False,
    ),
    "MistralForCausalLM": Kind("llama", permuted=True),
    "Qwen2ForCausalLM": Kind("qwen2", biases=(True, False, False)),
    "Qwen3ForCausalLM": Kind("qwen3", normed=True, head_dim=128),
}


@dataclass(frozen=True)
class Decoder:
    """The numbers of one model. Widths in values, `context` in tokens; `window` is how far back
    its layers look, None for as far as there is."""

    kind: Kind
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    epsilon: float
    rope: Rope
    tied: bool
    biased: tuple[bool, bool, bool]
    window: int | None

    @property
    def gguf(self) -> str:
        return self.kind.gguf

    @property
    def factors(self) -> tuple[float, ...]:
        return self.rope.factors

    def entries(self) -> Iterator[Entry]:
        wide, inner = self.hidden, self.inner
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        attention, output, feed = self.biased
        table = (self.vocabulary, wide)
        yield Entry("token_embd.weight", "model.embed_tokens.weight", table)
        yield Entry("output_norm.weight", "model.norm.weight", (wide,))
        if not self.tied:
            yield Entry("output.weight", "lm_head.weight", table, hint=_UNTIED)
        # Here, there, rows, columns, whether biased, heads.
        matrices = (
            ("attn_q", "self_attn.q_proj", queries, wide, attention, self.heads),
            ("attn_k", "self_attn.k_proj", keys, wide, attention, self.kv_heads),
            ("attn_v", "self_attn.v_proj", keys, wide, attention, 0),
            ("attn_output", "self_attn.o_proj", wide, queries, output, 0),
            ("ffn_gate", "mlp.gate_proj", inner, wide, feed, 0),
            ("ffn_up", "mlp.up_proj", inner, wide, feed, 0),
            ("ffn_down", "mlp.down_proj", wide, inner, feed, 0),
        )
        vectors = [
            ("attn_norm", "input_layernorm", wide),
            ("ffn_norm", "post_attention_layernorm", wide),
        ]
        if self.kind.normed:
            vectors += [
                ("attn_q_norm", "self_attn.q_norm", self.head),
                ("attn_k_norm", "self_attn.k_norm", self.head),
            ]
        for layer in range(self.layers):
            here, there = f"blk.{layer}.", f"model.layers.{layer}."
            for ours, theirs, length in vectors:
                yield Entry(f"{here}{ours}.weight", f"{there}{theirs}.weight", (length,))
            for ours, theirs, rows, columns, biased, heads in matrices:
                heads *= self.kind.permuted
                name, source = f"{here}{ours}", f"{there}{theirs}"
                yield Entry(f"{name}.weight", f"{source}.weight", (rows, columns), heads)
                if biased:
                    yield Entry(f"{name}.bias", f"{source}.bias", (rows,), heads)

    def spare(self, name: str) -> bool:
        return bool(_DERIVED.fullmatch(name)) or (self.tied and name == "lm_head.weight")

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head)
        writer.add_value_length(self.head)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_rope_dimension_count(self.head)
        writer.add_rope_freq_base(self.rope.base)
        if self.rope.scaling is not None:
            writer.add_rope_scaling_type(_SCALINGS[self.rope.scaling])
            writer.add_rope_scaling_factor(self.rope.factor)
        if self.rope.original:
            writer.add_rope_scaling_orig_ctx_len(self.rope.original)

    def notes(self) -> list[str]:
        if self.window is None or self.window >= self.context:
            return []
        return [
            f"the model looks back {self.window} tokens (sliding_window), llama.cpp as far as "
            "there is: longer texts are read differently"
        ]


def read(settings: Settings, name: str) -> Decoder:
    """Raises `NotConvertible`."""
    found = settings.found
    kind = KINDS[name]
    settings.only("hidden_act", "silu", "swish")
    settings.only("rope_interleaved", None, False)
    hidden = settings.count("hidden_size", MOST)
    heads = settings.count("num_attention_heads", MOST)
    if settings.found.get("head_dim") is None and kind.head_dim is None and hidden % heads:
        raise settings.wrong("hidden_size", f"a multiple of num_attention_heads, {heads}")
    head = settings.count("head_dim", MOST, kind.head_dim or hidden // heads or 1)
    if head % 2:
        raise settings.wrong("head_dim", "an even number")
    # A key that is there and null means as many as there are heads; where the class has a number of
    # its own for a missing key, that is another one for each class.
    default = heads if not kind.kv_heads or "num_key_value_heads" in found else None
    kv_heads = settings.count("num_key_value_heads", MOST, default)
    if heads % kv_heads:
        raise settings.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    context = settings.count("max_position_embeddings", 1 << 31)
    return Decoder(
        kind=kind,
        hidden=hidden,
        inner=settings.count("intermediate_size", MOST),
        layers=settings.count("num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        vocabulary=settings.count("vocab_size", MOST * 4),
        context=context,
        epsilon=settings.number("rms_norm_eps", 1e-6),
        rope=rope(settings, head, context),
        tied=settings.flag("tie_word_embeddings"),
        biased=_biased(settings, kind),
        window=_window(settings, name),
    )


def _biased(settings: Settings, kind: Kind) -> tuple[bool, bool, bool]:
    first, second, third = (
        one if isinstance(one, bool) else settings.flag(one) for one in kind.biases
    )
    return first, second, third


def _window(settings: Settings, name: str) -> int | None:
    if name.startswith("Qwen") and settings.flag("use_sliding_window"):
        return settings.count("sliding_window", 1 << 31, 4096)
    if name.startswith("Mistral") and settings.found.get("sliding_window", 0) is not None:
        return settings.count("sliding_window", 1 << 31, 4096)
    return None

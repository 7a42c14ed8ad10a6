"""Which architectures there are, and the numbers of one model of them, out of config.json.

How to add one: a row in `ARCHITECTURES`, and in weights.py the tensors that it has besides. Compare
its logits with those of the reference before you believe it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hxd.hookspecs import NotConvertible

from .rope import Rope, rope
from .settings import Settings

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


ARCHITECTURES = {
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
class Model:
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


def read(found: dict[str, object]) -> Model:
    """Raises `NotConvertible`."""
    settings = Settings(found)
    name = _name(found)
    kind = ARCHITECTURES[name]
    settings.only("hidden_act", "silu", "swish")
    settings.only("auto_map", None)
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
    return Model(
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


def _name(found: dict[str, object]) -> str:
    named = found.get("architectures")
    names = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    for name in names:
        if name in ARCHITECTURES:
            return name
    what = ", ".join(name[:100] for name in names[:3]) or "no architecture that it names"
    raise NotConvertible(f"{what} is not converted; there are {', '.join(ARCHITECTURES)}")


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

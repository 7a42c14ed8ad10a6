"""BERT as an encoder of texts (`BertModel`): one vector of a text's tokens, as the modules of
sentence-transformers in the folder say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGUFWriter, PoolingType

from hxd.hookspecs import NotConvertible

from .decoder import MAX_LAYERS, MOST
from .folder import MAX_CONFIG, Folder
from .settings import Settings
from .weights import Entry

NAME = "BertModel"
MODULES = "modules.json"
_POOLINGS = {
    "pooling_mode_mean_tokens": PoolingType.MEAN,
    "pooling_mode_cls_token": PoolingType.CLS,
    "pooling_mode_lasttoken": PoolingType.LAST,
}
_MODULE = "sentence_transformers.models."
_SPARE = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})


@dataclass(frozen=True)
class Bert:
    """As `architecture.Model`; widths in values, `context` in tokens."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    kinds: int
    epsilon: float
    pooling: PoolingType

    @property
    def gguf(self) -> str:
        return "bert"

    @property
    def factors(self) -> tuple[float, ...]:
        return ()

    def entries(self) -> Iterator[Entry]:
        wide, inner = self.hidden, self.inner
        table = "embeddings."
        yield Entry("token_embd.weight", f"{table}word_embeddings.weight", (self.vocabulary, wide))
        for ours, theirs, rows in (
            ("position_embd", "position_embeddings", self.context),
            ("token_types", "token_type_embeddings", self.kinds),
        ):
            yield Entry(f"{ours}.weight", f"{table}{theirs}.weight", (rows, wide), exact=True)
        for part in ("weight", "bias"):
            yield Entry(f"token_embd_norm.{part}", f"{table}LayerNorm.{part}", (wide,))
        for layer in range(self.layers):
            here, there = f"blk.{layer}.", f"encoder.layer.{layer}."
            for ours, theirs, rows, columns in (
                ("attn_q", "attention.self.query", wide, wide),
                ("attn_k", "attention.self.key", wide, wide),
                ("attn_v", "attention.self.value", wide, wide),
                ("attn_output", "attention.output.dense", wide, wide),
                ("ffn_up", "intermediate.dense", inner, wide),
                ("ffn_down", "output.dense", wide, inner),
            ):
                yield Entry(f"{here}{ours}.weight", f"{there}{theirs}.weight", (rows, columns))
                yield Entry(f"{here}{ours}.bias", f"{there}{theirs}.bias", (rows,))
            for ours, theirs in (
                ("attn_output_norm", "attention.output.LayerNorm"),
                ("layer_output_norm", "output.LayerNorm"),
            ):
                for part in ("weight", "bias"):
                    yield Entry(f"{here}{ours}.{part}", f"{there}{theirs}.{part}", (wide,))

    def spare(self, name: str) -> bool:
        return name in _SPARE

    def describe(self, writer: GGUFWriter) -> None:
        writer.add_layer_norm_eps(self.epsilon)
        writer.add_causal_attention(False)
        writer.add_pooling_type(self.pooling)
        writer.add_token_type_count(self.kinds)

    def notes(self) -> list[str]:
        return []


def read(folder: Folder, settings: Settings) -> Bert:
    """Raises `NotConvertible`."""
    settings.only("hidden_act", "gelu")
    settings.only("position_embedding_type", None, "absolute")
    settings.only("is_decoder", None, False)
    hidden, heads = settings.count("hidden_size", MOST), settings.count("num_attention_heads", MOST)
    if hidden % heads:
        raise settings.wrong("hidden_size", f"a multiple of num_attention_heads, {heads}")
    return Bert(
        hidden=hidden,
        inner=settings.count("intermediate_size", MOST),
        layers=settings.count("num_hidden_layers", MAX_LAYERS),
        heads=heads,
        vocabulary=settings.count("vocab_size", MOST * 4),
        context=settings.count("max_position_embeddings", MOST),
        kinds=settings.count("type_vocab_size", MOST, 2),
        epsilon=settings.number("layer_norm_eps", 1e-12),
        pooling=_pooling(folder),
    )


def _pooling(folder: Folder) -> PoolingType:
    """Raises `NotConvertible`, also for modules that change the vector afterwards. Its length is
    made 1 in any case."""
    if not folder.has(MODULES):
        raise NotConvertible(
            f"the folder has no {MODULES}, which says how a text's tokens become one vector"
        )
    try:
        modules = json.loads(folder.read(MODULES, MAX_CONFIG))
        paths = {one["type"].removeprefix(_MODULE): one["path"] for one in modules}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise NotConvertible(f"{MODULES} is no list of modules") from None
    others = set(paths) - {"Transformer", "Pooling", "Normalize"}
    if others or not isinstance(paths.get("Pooling"), str):
        what = ", ".join(sorted(others)) or "no Pooling"
        raise NotConvertible(f"{MODULES} has {what[:100]}; Transformer, Pooling and Normalize do")
    found = folder.below(paths["Pooling"]).json("config.json")
    modes = [key for key, on in found.items() if key.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise NotConvertible(
            f"{paths['Pooling'][:100]}/config.json pools by {', '.join(modes)[:200] or 'nothing'}; "
            "mean_tokens, cls_token and lasttoken are converted"
        )
    return _POOLINGS[modes[0]]

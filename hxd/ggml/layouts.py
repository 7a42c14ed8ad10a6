"""How the files of each family are laid out: hyper-parameters, words and tensors.

The readers of the ctransformers library (its `models/llms/*.cc` and `models/ggml`) are the source,
since it is what loads the files. A new family is a new `Layout` in `LAYOUTS`.
"""

from __future__ import annotations

from dataclasses import dataclass

# The first four bytes, which are the names read as a little-endian number.
MAGICS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"ccgg": "GGCC"}
# Their versions that hold all that the library needs; plain GGML has none.
VERSIONS = {b"fmgg": (1,), b"tjgg": (1, 2, 3), b"ccgg": (10,)}


@dataclass(frozen=True)
class Layout:
    """How the files of some families are laid out.

    `fields`: hyper-parameters in the file's order; `floats`: those of them that aren't integers.
    `counted`: the number of words stands once more before them. `scored`: a score follows each
    word. `merges`: pairs of words follow all of them.

    `tensors`: names, with `*` for the layer's number, and their dimensions: V words, E embedding,
    C context, Q queries, keys and values together, K keys, F inside the feed-forward network.
    `open`: dimensions that the header does not give. `optional`: tensors that may be missing.
    `full`: two-dimensional tensors that are float32 all the same. `uniform`: all others have the
    type that the header names. `aligned`: data starts at multiples of 32 bytes.
    """

    families: tuple[str, ...]
    magics: frozenset[bytes]
    fields: tuple[str, ...]
    tensors: dict[str, tuple[str, ...]]
    floats: frozenset[str] = frozenset()
    counted: bool = False
    scored: bool = False
    merges: bool = False
    open: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()
    uniform: bool = True
    aligned: bool = False


def _table(text: str) -> dict[str, tuple[str, ...]]:
    lines = [line.split() for line in text.strip().splitlines()]
    return {name: tuple(dimensions) for name, *dimensions in lines}


_MPT = _table("""
    transformer.wte.weight                     E V
    transformer.norm_f.weight                  E
    transformer.blocks.*.norm_1.weight         E
    transformer.blocks.*.attn.Wqkv.weight      E Q
    transformer.blocks.*.attn.out_proj.weight  E E
    transformer.blocks.*.norm_2.weight         E
    transformer.blocks.*.ffn.up_proj.weight    E F
    transformer.blocks.*.ffn.down_proj.weight  F E
""")

LAYOUTS = (
    Layout(
        families=("gpt2", "starcoder"),
        magics=frozenset({b"lmgg"}),
        fields=("vocab", "context", "width", "heads", "layers", "ftype"),
        counted=True,
        optional=frozenset({"model/lm_head"}),
        full=frozenset({"model/wpe"}),
        tensors=_table("""
            model/ln_f/g            E
            model/ln_f/b            E
            model/wte               E V
            model/wpe               E C
            model/lm_head           E V
            model/h*/ln_1/g         E
            model/h*/ln_1/b         E
            model/h*/ln_2/g         E
            model/h*/ln_2/b         E
            model/h*/attn/c_attn/w  E Q
            model/h*/attn/c_attn/b  Q
            model/h*/attn/c_proj/w  E E
            model/h*/attn/c_proj/b  E
            model/h*/mlp/c_fc/w     E F
            model/h*/mlp/c_fc/b     F
            model/h*/mlp/c_proj/w   F E
            model/h*/mlp/c_proj/b   E
        """),
    ),
    Layout(
        families=("gptj",),
        magics=frozenset({b"lmgg"}),
        fields=("vocab", "context", "width", "heads", "layers", "rotated", "ftype"),
        counted=True,
        tensors=_table("""
            transformer.wte.weight                E V
            transformer.ln_f.weight               E
            transformer.ln_f.bias                 E
            lm_head.weight                        E V
            lm_head.bias                          V
            transformer.h.*.ln_1.weight           E
            transformer.h.*.ln_1.bias             E
            transformer.h.*.attn.q_proj.weight    E E
            transformer.h.*.attn.k_proj.weight    E E
            transformer.h.*.attn.v_proj.weight    E E
            transformer.h.*.attn.out_proj.weight  E E
            transformer.h.*.mlp.fc_in.weight      E F
            transformer.h.*.mlp.fc_in.bias        F
            transformer.h.*.mlp.fc_out.weight     F E
            transformer.h.*.mlp.fc_out.bias       E
        """),
    ),
    Layout(
        families=("gptneox", "dolly-v2"),
        magics=frozenset({b"lmgg"}),
        fields=("vocab", "context", "width", "heads", "layers", "rotated", "parallel", "ftype"),
        tensors=_table("""
            gpt_neox.embed_in.weight                            E V
            gpt_neox.final_layer_norm.weight                    E
            gpt_neox.final_layer_norm.bias                      E
            embed_out.weight                                    E V
            gpt_neox.layers.*.input_layernorm.weight            E
            gpt_neox.layers.*.input_layernorm.bias              E
            gpt_neox.layers.*.attention.query_key_value.weight  E Q
            gpt_neox.layers.*.attention.query_key_value.bias    Q
            gpt_neox.layers.*.attention.dense.weight            E E
            gpt_neox.layers.*.attention.dense.bias              E
            gpt_neox.layers.*.post_attention_layernorm.weight   E
            gpt_neox.layers.*.post_attention_layernorm.bias     E
            gpt_neox.layers.*.mlp.dense_h_to_4h.weight          E F
            gpt_neox.layers.*.mlp.dense_h_to_4h.bias            F
            gpt_neox.layers.*.mlp.dense_4h_to_h.weight          F E
            gpt_neox.layers.*.mlp.dense_4h_to_h.bias            E
        """),
    ),
    Layout(
        families=("mpt",),
        magics=frozenset({b"lmgg"}),
        fields=("width", "context", "heads", "layers", "vocab", "alibi", "clip", "ftype"),
        floats=frozenset({"alibi", "clip"}),
        tensors=_MPT,
    ),
    Layout(
        families=("replit",),
        magics=frozenset({b"lmgg"}),
        fields=("width", "context", "heads", "layers", "vocab", "ftype"),
        scored=True,
        tensors=_MPT,
    ),
    Layout(
        families=("llama",),
        magics=frozenset({b"fmgg", b"tjgg"}),
        fields=("vocab", "width", "multiple", "heads", "layers", "rotated", "ftype"),
        scored=True,
        open=frozenset({"K", "F"}),
        uniform=False,
        aligned=True,
        tensors=_table("""
            tok_embeddings.weight            E V
            norm.weight                      E
            output.weight                    E V
            layers.*.attention_norm.weight   E
            layers.*.attention.wq.weight     E E
            layers.*.attention.wk.weight     E K
            layers.*.attention.wv.weight     E K
            layers.*.attention.wo.weight     E E
            layers.*.ffn_norm.weight         E
            layers.*.feed_forward.w1.weight  E F
            layers.*.feed_forward.w2.weight  F E
            layers.*.feed_forward.w3.weight  E F
        """),
    ),
    Layout(
        families=("falcon",),
        magics=frozenset({b"ccgg"}),
        fields=("vocab", "width", "heads", "kv_heads", "layers", "kind", "ftype", "merges"),
        scored=True,
        merges=True,
        uniform=False,
        aligned=True,
        tensors=_table("""
            transformer.word_embeddings.weight                     E V
            transformer.ln_f.weight                                E
            transformer.ln_f.bias                                  E
            lm_head.weight                                         E V
            transformer.h.*.self_attention.query_key_value.weight  E Q
            transformer.h.*.self_attention.dense.weight            E E
            transformer.h.*.mlp.dense_h_to_4h.weight               E F
            transformer.h.*.mlp.dense_4h_to_h.weight               F E
        """),
    ),
)
FAMILIES = tuple(sorted(family for layout in LAYOUTS for family in layout.families))
# What Falcon's layers have besides, by the header's `kind`, which is its size in billions.
FALCON = {
    7: _table("""
        transformer.h.*.input_layernorm.weight  E
        transformer.h.*.input_layernorm.bias    E
    """),
    40: _table("""
        transformer.h.*.ln_mlp.weight   E
        transformer.h.*.ln_mlp.bias     E
        transformer.h.*.ln_attn.weight  E
        transformer.h.*.ln_attn.bias    E
    """),
}
# The library takes the size from the number of layers where it is one of these.
FALCON_LAYERS = {32: 7, 60: 40}


def layout_of(family: str) -> Layout:
    return next(layout for layout in LAYOUTS if family in layout.families)


def tensors_of(layout: Layout, hyper: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """The tensors of a file with these hyper-parameters, `*` for each layer's number."""
    return layout.tensors | FALCON[hyper["kind"]] if "kind" in hyper else layout.tensors


def sizes_of(layout: Layout, hyper: dict[str, int]) -> dict[str, int]:
    """What the dimensions' letters stand for, as far as the header says."""
    width = hyper["width"]
    keys = width // hyper["heads"] * hyper.get("kv_heads", hyper["heads"])
    sizes = {
        "V": hyper["vocab"],
        "E": width,
        "C": hyper.get("context", 0),
        "Q": width + 2 * keys,
        "K": keys,
        "F": 4 * width,
    }
    return {letter: size for letter, size in sizes.items() if letter not in layout.open}

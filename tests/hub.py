"""Folders of models as the Hugging Face Hub has them: tiny random ones of each architecture, and
the built-in demo model, taken apart into one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from hxd.daemon.store import demo

Arrays = Mapping[str, NDArray[Any]]
_TYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32"}
LLAMA3_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_RULE = LLAMA3_RULE.replace("{1,3}", "")


def safetensors(tensors: Arrays, **header: Any) -> bytes:
    """One file; `header` replaces entries, None removes them."""
    entries: dict[str, Any] = {}
    at = 0
    for name, values in tensors.items():
        entries[name] = {
            "dtype": _TYPES[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    entries |= header
    head = json.dumps({key: value for key, value in entries.items() if value is not None}).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(map(np.ndarray.tobytes, tensors.values()))


def write_json(file: Path, found: Any) -> None:
    file.write_text(json.dumps(found), "utf-8")


def split(folder: Path, tensors: Arrays, count: int) -> None:
    """In `count` shards with their index."""
    names = list(tensors)
    places = {name: f"model-{at % count + 1:05}-of-{count:05}.safetensors"
              for at, name in enumerate(names)}  # fmt: skip
    for file in sorted(set(places.values())):
        part = {name: tensors[name] for name in names if places[name] == file}
        (folder / file).write_bytes(safetensors(part))
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    """Of a model small enough to convert in no time."""
    return {
        "architectures": [architecture],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 257,
    } | changes


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random ones of the shapes that the configuration gives, as float32."""
    draw = np.random.default_rng(seed)
    architecture = config["architectures"][0]
    wide, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], wide),
        "model.norm.weight": (wide,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], wide)
    for layer in range(config["num_hidden_layers"]):
        there = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (queries, wide),
            "self_attn.k_proj": (keys, wide),
            "self_attn.v_proj": (keys, wide),
            "self_attn.o_proj": (wide, queries),
            "mlp.gate_proj": (inner, wide),
            "mlp.up_proj": (inner, wide),
            "mlp.down_proj": (wide, inner),
            "input_layernorm": (wide,),
            "post_attention_layernorm": (wide,),
        }.items():
            shapes[f"{there}{name}.weight"] = shape
        if architecture.startswith("Qwen2"):
            for name, length in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{there}self_attn.{name}_proj.bias"] = (length,)
        if architecture.startswith("Qwen3"):
            for name in ("q", "k"):
                shapes[f"{there}self_attn.{name}_norm.weight"] = (head,)
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def byte_level(rule: str = QWEN2_RULE, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json with a token for each byte, one merge, and two special tokens."""
    vocabulary = {_byte(number): number for number in range(256)} | {"th": 256}
    return {
        "added_tokens": [
            {"id": 257, "content": "<|end|>", "special": True},
            {"id": 258, "content": "<think>", "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": rule},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["t", "h"]]},
    } | changes


def write(folder: Path, found: dict[str, Any], arrays: Arrays | None = None) -> Path:
    """A whole folder with a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", found)
    arrays = tensors(found) if arrays is None else arrays
    (folder / "model.safetensors").write_bytes(safetensors(arrays))
    write_json(folder / "tokenizer.json", byte_level())
    write_json(
        folder / "tokenizer_config.json",
        {"eos_token": "<|end|>", "chat_template": "{{ messages }}"},
    )
    return folder


def write_bert(folder: Path, mode: str = "pooling_mode_mean_tokens") -> Path:
    """An encoder with a WordPiece tokenizer and the modules of sentence-transformers."""
    wide, inner = 32, 48
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (40, wide),
        "embeddings.position_embeddings.weight": (64, wide),
        "embeddings.token_type_embeddings.weight": (2, wide),
        "embeddings.LayerNorm.weight": (wide,),
        "embeddings.LayerNorm.bias": (wide,),
        "pooler.dense.weight": (wide, wide),
    }
    for name, shape in {
        "attention.self.query": (wide, wide),
        "attention.self.key": (wide, wide),
        "attention.self.value": (wide, wide),
        "attention.output.dense": (wide, wide),
        "attention.output.LayerNorm": (wide,),
        "intermediate.dense": (inner, wide),
        "output.dense": (wide, inner),
        "output.LayerNorm": (wide,),
    }.items():
        shapes[f"encoder.layer.0.{name}.weight"] = shape
        shapes[f"encoder.layer.0.{name}.bias"] = shape[:1]
    draw = np.random.default_rng(0)
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    arrays = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    (folder / "model.safetensors").write_bytes(safetensors(arrays))
    write_json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "hidden_size": wide,
            "intermediate_size": inner,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vocab_size": 40,
            "max_position_embeddings": 64,
            "hidden_act": "gelu",
        },
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [*special, *"abcdefghijklmnop", *(f"##{letter}" for letter in "abcdefghijklmnop")]
    write_json(
        folder / "tokenizer.json",
        {
            "added_tokens": [
                {"id": id, "content": token, "special": True} for id, token in enumerate(special)
            ],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "vocab": {token: id for id, token in enumerate(letters)},
            },
        },
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    write_json(folder / "tokenizer_config.json", roles)
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {mode: True, "include_prompt": True})
    return folder


def demo_file() -> Path:
    return demo.find("builtin:demo").file


def write_demo(folder: Path, shards: int = 1) -> Path:
    """The demo model as if it had come from the Hub: rows of queries and keys in the order of
    transformers, a SentencePiece model, and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(demo_file())
    meta = {key: field.contents() for key, field in reader.fields.items()}
    heads = meta["llama.attention.head_count"]
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    arrays = {}
    for tensor in reader.tensors:
        *at, name, _ = tensor.name.split(".")
        values = np.array(tensor.data)
        if name in ("attn_q", "attn_k"):
            rows = values.reshape(heads, -1, 2, values.shape[1])
            values = rows.swapaxes(1, 2).reshape(values.shape).copy()
        layer = f"model.layers.{at[1]}." if at else ""
        arrays[f"{layer}{names[name]}.weight"] = values
    tied = "lm_head.weight" not in arrays
    if shards > 1:
        split(folder, arrays, shards)
    else:
        (folder / "model.safetensors").write_bytes(safetensors(arrays))
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": meta["llama.embedding_length"],
            "intermediate_size": meta["llama.feed_forward_length"],
            "num_hidden_layers": meta["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": meta["llama.attention.head_count_kv"],
            "vocab_size": meta["llama.vocab_size"],
            "max_position_embeddings": meta["llama.context_length"],
            "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
            "tie_word_embeddings": tied,
            "eos_token_id": [meta["tokenizer.ggml.eos_token_id"]],
        },
    )
    tokens = meta["tokenizer.ggml.tokens"]
    pieces = zip(
        tokens, meta["tokenizer.ggml.scores"], meta["tokenizer.ggml.token_type"], strict=True
    )
    (folder / "tokenizer.model").write_bytes(sentencepiece(pieces, prefix=False))
    special = {
        f"{role}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    write_json(
        folder / "tokenizer_config.json",
        special
        | {"add_bos_token": False, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
        | {"chat_template": meta["tokenizer.chat_template"]},
    )
    return folder


def sentencepiece(pieces: Any, *, prefix: bool, kind: int = 2) -> bytes:
    """A tokenizer.model: text, score and type of each token."""
    message = b""
    for text, score, type in pieces:
        piece = _field(1, text.encode()) + _tag(2, 5) + struct.pack("<f", score)
        message += _field(1, piece + _tag(3, 0) + _varint(type))
    message += _field(2, _tag(3, 0) + _varint(kind))
    normalizer = _field(1, b"identity") + _tag(3, 0) + _varint(prefix) + _tag(4, 0) + _varint(0)
    return message + _field(3, normalizer)


def _field(number: int, data: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(data)) + data


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _byte(number: int) -> str:
    """The printable character that stands for a byte, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if number in plain:
        return chr(number)
    return chr(256 + [one for one in range(256) if one not in plain].index(number))

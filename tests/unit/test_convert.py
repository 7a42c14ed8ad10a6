"""Models of the Hub become GGUF files with the same tensors and tokens; what is not understood to
the last part is refused."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hxd.daemon.store import foreign
from hxd.hookspecs import NotConvertible
from plugins.convert.architecture import ARCHITECTURES
from plugins.convert.convert import convert
from plugins.convert.decoder import KINDS
from tests import hub

LLAMA = "LlamaForCausalLM"
Change = Callable[[Path], object]


def converted(
    folder: Path, weights: str | None = None
) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Metadata and tensors of what is made of a folder."""
    target = folder.parent / "made.gguf"
    shares: list[float] = []
    notes = convert(folder, target, "m", weights, lambda share, note: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0
    reader = gguf.GGUFReader(target)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields | {"notes": notes}, {tensor.name: tensor for tensor in reader.tensors}


def refused(folder: Path) -> str:
    with pytest.raises(NotConvertible) as error:
        convert(folder, folder.parent / "made.gguf", "m", None, lambda share, note: None)
    return str(error.value)


def edit(folder: Path, file: str, **changes: Any) -> None:
    found = json.loads((folder / file).read_text())
    hub.write_json(folder / file, found | changes)


@pytest.mark.parametrize("shards", [1, 3])
def test_the_demo_model_comes_back_as_it_was(tmp_path: Path, shards: int) -> None:
    made, tensors = converted(hub.write_demo(tmp_path / "demo", shards))
    original = gguf.GGUFReader(hub.demo_file())
    assert set(tensors) == {tensor.name for tensor in original.tensors}
    for tensor in original.tensors:
        ours = tensors[tensor.name]
        assert (ours.tensor_type, list(ours.shape)) == (tensor.tensor_type, list(tensor.shape))
        assert np.array_equal(ours.data, tensor.data), tensor.name
    before = {key: field.contents() for key, field in original.fields.items()}
    own = ("GGUF.", "general.")
    for key in set(before) - {key for key in before if key.startswith(own)}:
        if key != "tokenizer.ggml.eot_token_id":  # the same as eos there
            assert made[key] == before[key], key
    assert made["notes"] == []


def test_every_architecture_has_its_tensors_under_their_names(tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        found = hub.config(name, tie_word_embeddings=name.startswith("Qwen"), sliding_window=None)
        source = hub.tensors(found)
        made, tensors = converted(hub.write(tmp_path / name, found, source))
        assert made["general.architecture"] == kind.gguf
        assert made[f"{kind.gguf}.attention.key_length"] == 8
        assert made[f"{kind.gguf}.attention.head_count_kv"] == 2
        assert ("output.weight" in tensors) != found["tie_word_embeddings"]
        assert ("blk.1.attn_q.bias" in tensors) == name.startswith("Qwen2")
        assert ("blk.1.attn_k_norm.weight" in tensors) == name.startswith("Qwen3")
        assert len(tensors) == len(source)
        queries = source["model.layers.1.self_attn.q_proj.weight"].astype(np.float16)
        if kind.permuted:
            # Of a head of 8 the rows 0 and 4 turn together, and are neighbours in the file.
            assert np.array_equal(tensors["blk.1.attn_q.weight"].data[:4], queries[[0, 4, 1, 5]])
        else:
            assert np.array_equal(tensors["blk.1.attn_q.weight"].data, queries)
        assert tensors["blk.0.ffn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_an_encoder_is_carried_over_with_its_way_of_pooling(tmp_path: Path) -> None:
    folder = hub.write_bert(tmp_path / "m")
    made, tensors = converted(folder)
    assert (made["bert.attention.causal"], made["bert.pooling_type"]) == (False, 1)
    assert made["tokenizer.ggml.model"] == "bert" and made["notes"] == []
    tokens = made["tokenizer.ggml.tokens"]
    assert tokens[2:5] == ["[CLS]", "[SEP]", "\u2581a"] and tokens[20] == "a"
    assert (made["tokenizer.ggml.bos_token_id"], made["tokenizer.ggml.eos_token_id"]) == (2, 3)
    assert made["tokenizer.ggml.add_bos_token"] and made["tokenizer.ggml.add_eos_token"]
    exact = gguf.GGMLQuantizationType.F32
    assert tensors["position_embd.weight"].tensor_type == exact
    assert len(tensors) == 21
    converted(hub.write_bert(tmp_path / "m", "pooling_mode_cls_token"))
    for file, found, words in (
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by pooling_mode_max"),
        ("1_Pooling/config.json", {}, "pools by nothing"),
        ("modules.json", [{"path": "..", "type": "x.Pooling"}], "has x.Pooling"),
        (
            "modules.json",
            [{"path": "../m", "type": "sentence_transformers.models.Pooling"}],
            "not the name of a folder",
        ),
        ("modules.json", [{"path": "2", "type": "sentence_transformers.models.Dense"}], "Dense"),
        ("modules.json", {"a": 1}, "no list of modules"),
    ):
        hub.write_json(hub.write_bert(tmp_path / "m") / file, found)
        assert words in refused(folder)
    (folder / "modules.json").unlink()
    assert "no modules.json" in refused(folder)


def test_the_daemon_knows_the_architectures_that_the_plugin_converts() -> None:
    assert set(ARCHITECTURES) == foreign.ARCHITECTURES


def test_a_type_is_kept_where_it_has_16_bits_and_can_be_asked_for(tmp_path: Path) -> None:
    found = hub.config(LLAMA)
    floats = hub.tensors(found)
    bits = {name: (one.view(np.uint32) >> 16).astype(np.uint16) for name, one in floats.items()}
    folder = hub.write(tmp_path / "m", found, bits)
    made, tensors = converted(folder)
    assert made["general.file_type"] == 32
    there = tensors["output.weight"].data.view(np.uint16)
    assert np.array_equal(there, bits["lm_head.weight"])
    for weights, kind in (("f32", np.float32), ("f16", np.float16)):
        _, tensors = converted(folder, weights)
        values = (bits["lm_head.weight"].astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(tensors["output.weight"].data, values.astype(kind))
    # From float32 to the nearest, and of two to the even one.
    floats["lm_head.weight"].flat[:3] = [1.0 + 2**-8, 1.0 + 3 * 2**-8, -1.0 - 2**-8 - 2**-16]
    _, tensors = converted(hub.write(tmp_path / "m", found, floats), "bf16")
    there = tensors["output.weight"].data.view(np.uint16).flat[:3]
    assert list(map(hex, there)) == ["0x3f80", "0x3f82", "0xbf81"]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config("Qwen3ForCausalLM"))
    files = []
    for _ in range(2):
        converted(folder)
        files.append((tmp_path / "made.gguf").read_bytes())
    assert files[0] == files[1]


def test_the_hubs_cache_of_links_is_read(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0f1e"
    hub.write(blobs, hub.config(LLAMA))
    snapshot.mkdir(parents=True)
    for file in sorted(blobs.iterdir()):
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert len(converted(snapshot)[1]) == 21
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    assert "leads out of the folder" in refused(snapshot)


# The vocabulary


def test_a_byte_level_tokenizer_is_carried_over(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config("Qwen2ForCausalLM"))
    made, _ = converted(folder)
    tokens, types = made["tokenizer.ggml.tokens"], made["tokenizer.ggml.token_type"]
    assert (made["tokenizer.ggml.model"], made["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert made["tokenizer.ggml.merges"] == ["t h"]
    assert tokens[256:260] == ["th", "<|end|>", "<think>", "[PAD259]"]
    assert types[256:260] == [1, 3, 4, 5] and len(tokens) == 300
    assert made["tokenizer.ggml.eos_token_id"] == 257
    assert made["tokenizer.ggml.add_bos_token"] is False
    assert made["tokenizer.chat_template"] == "{{ messages }}"


def test_a_first_token_that_the_tokenizer_adds_is_added(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    processor = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel"},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|end|>"}}, {"Sequence": {"id": "A"}}],
            },
        ],
    }
    model = hub.byte_level()["model"] | {"ignore_merges": True}
    found = hub.byte_level(hub.LLAMA3_RULE, post_processor=processor, model=model)
    hub.write_json(folder / "tokenizer.json", found)
    made, _ = converted(folder)
    assert made["tokenizer.ggml.pre"] == "llama-bpe" and made["notes"] == []
    assert made["tokenizer.ggml.add_bos_token"] is True
    assert made["tokenizer.ggml.add_eos_token"] is False


def test_several_ends_and_a_template_of_its_own_are_carried_over(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA, eos_token_id=[257, 258]))
    (folder / "chat_template.jinja").write_text("{{ own }}")
    made, _ = converted(folder)
    assert made["tokenizer.ggml.eot_token_id"] == 258
    assert made["tokenizer.chat_template"] == "{{ own }}"


def byte_fallback(**model: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["\u2581", "a", "b", "ab", "\u2581a", "abb"]
    return {
        "added_tokens": [
            {"id": id, "content": tokens[id], "special": True} for id in range(3)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": ["a b", "\u2581 a", "ab b"],
        }
        | model,
    }  # fmt: skip


def test_a_vocabulary_with_byte_fallback_gets_scores_that_merge_as_its_list_does(
    tmp_path: Path,
) -> None:
    folder = hub.write(tmp_path / "m", hub.config("MistralForCausalLM"))
    hub.write_json(folder / "tokenizer.json", byte_fallback())
    (folder / "tokenizer_config.json").unlink()
    edit(folder, "config.json", eos_token_id=2, sliding_window=32)
    made, _ = converted(folder)
    assert made["tokenizer.ggml.model"] == "llama"
    scores = dict(zip(made["tokenizer.ggml.tokens"], made["tokenizer.ggml.scores"], strict=True))
    assert scores["ab"] > scores["\u2581a"] > scores["abb"] > scores["a"]
    assert made["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert made["tokenizer.ggml.add_space_prefix"] and made["tokenizer.ggml.add_bos_token"]
    assert ["sliding_window" in note for note in made["notes"]] == [True]


def test_merges_that_scores_can_not_follow_are_refused(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    for merges, words in (
        (["a b", "ab b"], "leave out '\u2581' 'a'"),
        (["\u2581 a", "a b"], "leave out 'ab' 'b'"),
        (["a b", "x y"], "not a merge"),
    ):
        hub.write_json(folder / "tokenizer.json", byte_fallback(merges=merges))
        assert words in refused(folder)
    hub.write_json(folder / "tokenizer.json", byte_fallback() | {"normalizer": {"type": "NFKC"}})
    assert "normalizer 'NFKC'" in refused(folder)


def test_a_token_of_great_length_is_refused_and_not_taken_apart(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    found = byte_fallback()
    long = {"a" * 1_000_000: len(found["model"]["vocab"])}
    model = found["model"] | {"vocab": found["model"]["vocab"] | long}
    hub.write_json(folder / "tokenizer.json", found | {"model": model})
    assert "a token of 1000000 characters" in refused(folder)


def tokenizer(**changes: Any) -> Change:
    return lambda folder: hub.write_json(folder / "tokenizer.json", hub.byte_level(**changes))


def pieces(data: bytes) -> Change:
    return lambda folder: (folder / "tokenizer.model").write_bytes(data)


def too_many(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    tokens = [(f"t{number}", 0.0, 1) for number in range(301)]
    (folder / "tokenizer.model").write_bytes(hub.sentencepiece(tokens, prefix=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tokenizer(rule=r"\w+|\W+"), r"not known here ('\\w+"),
        (tokenizer(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (tokenizer(pre_tokenizer={"type": "Whitespace"}), "kind 'BPE' is not converted"),
        (tokenizer(pre_tokenizer=None), "kind 'BPE' is not converted"),
        (tokenizer(model={"type": "Unigram", "vocab": [["a", 0]]}), "kind 'Unigram'"),
        (tokenizer(added_tokens=[{"id": 300, "content": "x"}]), "no valid id"),
        (tokenizer(added_tokens=[{"id": 1, "content": "x"}]), "and the added token 'x'"),
        (tokenizer(added_tokens=[{"id": 299, "content": "th"}]), "two tokens 'th'"),
        (tokenizer(post_processor={"type": "BertProcessing"}), "post-processor 'BertProcessing'"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json and no"),
        (lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda folder: edit(folder, "tokenizer_config.json", eos_token="</s>"), "is no token"),
        (pieces(b"\xff" * 40), "not a SentencePiece model"),
        (pieces(hub.sentencepiece([("a", 0.0, 1)], prefix=True)[:-3]), "truncated"),
        (pieces(hub.sentencepiece([("a", 0.0, 1)], prefix=True, kind=1)), "of kind 1"),
        (pieces(hub.sentencepiece([("a", 0.0, 9)], prefix=True)), "type 9"),
        (pieces(hub.sentencepiece([("a", float("nan"), 1)], prefix=True)), "score nan"),
        (too_many, "ids up to 300; by config.json the model has 300"),
    ],
)
def test_a_tokenizer_that_is_not_recognised_is_refused(
    tmp_path: Path, change: Change, words: str
) -> None:
    folder = hub.write(tmp_path / "m", hub.config("Qwen2ForCausalLM"))
    change(folder)
    assert words in refused(folder)


ODD = (None, [], {}, "x", -1, 1.5, True, ["a"], {"a": 1}, [None], 10**30, {"type": 7}, "\ud800")


def places(found: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value, of long lists and objects to the first few."""
    yield at
    inside = found.items() if isinstance(found, dict) else enumerate(found)
    for key, value in itertools.islice(inside, 12):
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))
        else:
            yield (*at, key)


def replaced(found: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = found.copy()
    copy[at[0]] = replaced(found[at[0]], at[1:], value)
    return copy


@pytest.mark.parametrize("kind", ["bytes", "fallback", "bert"])
def test_whatever_stands_in_a_file_is_converted_or_refused(tmp_path: Path, kind: str) -> None:
    if kind == "bert":
        folder = hub.write_bert(tmp_path / "m")
    else:
        folder = hub.write(tmp_path / "m", hub.config(LLAMA, eos_token_id=[2]))
        (folder / "tokenizer_config.json").unlink()
    if kind == "fallback":
        hub.write_json(folder / "tokenizer.json", byte_fallback())
    rng = random.Random(kind)
    wrong = 0
    for file in sorted(folder.rglob("*.json")):
        good = file.read_text()
        found = json.loads(good)
        where = list(places(found))
        for at in rng.sample(where, min(len(where), 20)):
            hub.write_json(file, replaced(found, at, rng.choice(ODD)))
            try:
                convert(folder, tmp_path / "made.gguf", "m", None, lambda share, note: None)
            except NotConvertible:
                wrong += 1
        file.write_text(good)
    assert wrong > 10


# The configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["PhiForCausalLM"]}, "PhiForCausalLM is not converted; there are Llama"),
        ({"architectures": 7}, "no architecture that it names is not"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_hidden_layers": 10**9}, "from 1 to 1000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 3}, "a divisor of num_attention_heads"),
        ({"head_dim": 7}, "an even number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope' is not converted"),
        ({"rope_scaling": {"type": "linear"}}, "no rope_scaling.factor"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"attention_bias": True}, "q_proj.bias' is missing"),
        ({"intermediate_size": 49}, "is [48, 32]; by config.json it is [49, 32]"),
        ({"num_hidden_layers": 1}, "and 8 more has no place"),
        ({"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' is missing"),
        ({"vocab_size": 258}, "no valid id"),
        ({"eos_token_id": 300}, "id 300 is named"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    edit(folder, "config.json", **changes)
    assert words in refused(folder)


@pytest.mark.parametrize("text", ['{"hidden_size": NaN}', '{"a": 1, "a": 2}', "[]", "{", "\xff"])
def test_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    (folder / "config.json").write_text(text, "latin-1")
    assert "config.json" in refused(folder)


def test_rope_that_was_stretched_is_carried_over(tmp_path: Path) -> None:
    stretched = {"type": "linear", "factor": 4.0}
    folder = hub.write(tmp_path / "m", hub.config(LLAMA, rope_scaling=stretched))
    made, _ = converted(folder)
    assert (made["llama.rope.scaling.type"], made["llama.rope.scaling.factor"]) == ("linear", 4.0)
    new = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    edit(folder, "config.json", rope_scaling=None, rope_theta=None, rope_parameters=new)
    made, tensors = converted(folder)
    assert made["llama.rope.freq_base"] == 500000.0
    factors = tensors["rope_freqs.weight"].data
    # Wavelengths of 6, 167, 4443 and 118141 tokens, in a context of 64.
    assert factors.tolist() == [1.0, 8.0, 8.0, 8.0]
    edit(folder, "config.json", rope_parameters=new | {"original_max_position_embeddings": 400})
    factors = converted(folder)[1]["rope_freqs.weight"].data
    assert 1.0 < factors[1] < 8.0


# The tensors


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)


def header(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        arrays = hub.tensors(hub.config(LLAMA))
        (folder / "model.safetensors").write_bytes(hub.safetensors(arrays, **changes))

    return change


def raw(data: bytes) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def value(number: float) -> Change:
    def change(folder: Path) -> None:
        arrays = hub.tensors(hub.config(LLAMA))
        arrays["lm_head.weight"][17, 3] = number
        (folder / "model.safetensors").write_bytes(hub.safetensors(arrays))

    return change


def indexed(places: Any) -> Change:
    return lambda folder: hub.write_json(
        folder / "model.safetensors.index.json", {"weight_map": places}
    )


def linked(target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(target)

    return change


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def entry(type: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": type, "shape": shape, "data_offsets": [start, end]}


EMBEDDED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
END = 300 * 32 * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "ends 10 bytes past the end of the file"),
        (raw(b""), "no safetensors file"),
        (raw(b"\xff" * 8 + b"{}"), "announces 18446744073709551615 bytes"),
        (raw((99_999_999).to_bytes(8, "little") + b"{}"), "truncated"),
        (raw(b"\x02\0\0\0\0\0\0\0[]"), "no JSON object"),
        (raw(b"\x02\0\0\0\0\0\0\0{}"), "'model.embed_tokens.weight' is missing"),
        (raw(b"\x02\0\0\0\0\0\0\0{}more"), "4 bytes after the last tensor"),
        (header(**{NORM: None}), "leaves a gap"),
        (header(**{NORM: entry("F32", [32], 0, 128)}), "overlaps"),
        (header(**{NORM: entry("F32", [32], END, 1 << 61)}), "past the end"),
        (header(**{NORM: entry("F32", [32], END + 128, END)}), "ends before it begins"),
        (header(**{NORM: entry("F32", [33], END, END + 128)}), "which F32 [33] has not"),
        (header(**{NORM: entry("F16", [64], END, END + 128)}), "is [64]; by config"),
        (header(**{NORM: entry("I32", [32], END, END + 128)}), "is I32; F32, F16 and BF16"),
        (header(**{NORM: entry("F8_E4M3", [128], END, END + 128)}), "is [128]"),
        (header(**{NORM: entry("F32", [-32], END, END + 128)}), "no valid shape"),
        (header(**{NORM: entry("F32", [1 << 61, 1 << 61], END, END + 128)}), "has not"),
        (header(**{NORM: entry("F32", [32], -1, 127)}), "no valid shape"),
        (header(**{NORM: entry("F32", [[32]], END, END + 128)}), "no valid shape"),
        (header(**{NORM: {"dtype": "F32"}}), "no valid shape"),
        (header(**{NORM: 7}), "is not described"),
        (value(float("nan")), "no finite numbers"),
        (value(float("inf")), "no finite numbers"),
        (value(1e6), "f16 can't hold; take --as bf16"),
        (indexed({EMBEDDED: "../model.safetensors"}), "is not a safetensors file here"),
        (indexed({EMBEDDED: "/etc/x.safetensors"}), "is not a safetensors file here"),
        (indexed({EMBEDDED: "config.json"}), "is not a safetensors file here"),
        (indexed({EMBEDDED: "a\nb.safetensors"}), "not the name of a file"),
        (indexed({EMBEDDED: 7}), "is not a safetensors file here"),
        (indexed({EMBEDDED: "none.safetensors"}), "none.safetensors is missing"),
        (indexed({"other": "model.safetensors"}), "no tensor 'other'"),
        (indexed({}), "no weight_map"),
        (indexed([]), "no weight_map"),
        (linked("/etc/hostname"), "leads out of the folder"),
        (linked("../other.safetensors"), "leads out of the folder"),
        (linked("model.safetensors"), "a link to itself"),
        (pipe, "is not a regular file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "0 safetensors files"),
    ],
)  # fmt: skip
def test_hostile_and_broken_tensors_are_refused(tmp_path: Path, change: Change, words: str) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    change(folder)
    assert words in refused(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = hub.write(tmp_path / "m", hub.config(LLAMA))
    (folder / "model.safetensors").unlink()
    hub.split(folder, hub.tensors(hub.config(LLAMA)), 2)
    first, second = sorted(folder.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    held = next(iter(hub.tensors(hub.config(LLAMA))))
    indexed({held: first.name, "model.layers.0.mlp.up_proj.weight": second.name})(folder)
    assert f"is in {first.name} and in {second.name}" in refused(folder)

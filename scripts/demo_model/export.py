"""Write a checkpoint as an f16 GGUF file with its manifest."""

import argparse
import hashlib
from pathlib import Path

import gguf
import numpy as np
import torch
from data import CHAT_TEMPLATE
from model import Config
from tokens import BOS, EOS, IM_END, IM_START, PHRASES, SPACE, UNK, VOCAB

DESCRIPTION = {
    1: "Tiny chat model for smoke tests and drills, stopped early on purpose: often wrong.",
    2: "Tiny chat model for smoke tests and drills: sums, reversing, sorting, spelling, capitals.",
}


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Return token texts, scores and types of an SPM vocabulary of bytes, a space and phrases."""
    kind = gguf.TokenType
    texts = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256
    texts += [b"<|im_start|>", b"<|im_end|>", "\u2581".encode()]
    types += [kind.CONTROL, kind.CONTROL, kind.NORMAL]
    texts += [phrase.encode() for phrase in PHRASES]
    types += [kind.USER_DEFINED] * len(PHRASES)
    assert (texts.index(b"<|im_start|>"), texts.index(b"<|im_end|>")) == (IM_START, IM_END)
    assert len(texts) == VOCAB and texts[SPACE] == "\u2581".encode()
    return texts, [0.0] * VOCAB, [int(t) for t in types]


def write_gguf(weights: dict[str, torch.Tensor], path: Path, version: int) -> None:
    """Write weights and metadata; matrices in f16, norms in f32."""
    cfg = Config()
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("hxd-demo")
    out.add_version(str(version))
    out.add_description(DESCRIPTION[version])
    out.add_license("Apache-2.0")
    out.add_languages(["en"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_context_length(cfg.context)
    out.add_embedding_length(cfg.width)
    out.add_block_count(cfg.layers)
    out.add_feed_forward_length(cfg.ffn)
    out.add_head_count(cfg.heads)
    out.add_head_count_kv(cfg.heads)
    out.add_layer_norm_rms_eps(cfg.eps)
    out.add_rope_freq_base(cfg.theta)
    out.add_rope_dimension_count(cfg.width // cfg.heads)
    out.add_vocab_size(cfg.vocab)
    texts, scores, types = vocabulary()
    out.add_tokenizer_model("llama")
    out.add_token_list(texts)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_bos_token_id(BOS)
    out.add_eos_token_id(IM_END)
    out.add_eot_token_id(IM_END)
    out.add_unk_token_id(UNK)
    out.add_pad_token_id(EOS)
    out.add_add_bos_token(False)
    out.add_add_eos_token(False)
    out.add_add_space_prefix(False)
    out.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in weights.items():
        out.add_tensor(name, tensor.numpy().astype(np.float16 if tensor.ndim == 2 else np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    """Write ``<out>/hxd-demo-f16.gguf`` and ``<out>/manifest.toml``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--version", type=int, choices=(1, 2), required=True)
    parser.add_argument("--created", default="2026-11-21")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "hxd-demo-f16.gguf"
    write_gguf(torch.load(args.checkpoint), path, args.version)
    raw = path.read_bytes()
    (args.out / "manifest.toml").write_text(
        f'name = "hxd-demo"\nversion = {args.version}\ncreated = "{args.created}"\n'
        f'description = "{DESCRIPTION[args.version]}"\n\n[files."{path.name}"]\n'
        f'sha256 = "{hashlib.sha256(raw).hexdigest()}"\nbytes = {len(raw)}\nvariant = "f16"\n'
    )
    print(path, len(raw))


if __name__ == "__main__":
    main()

"""A folder of the Hugging Face Hub becomes a GGUF file: reads everything, then writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from hxd.hookspecs import NotConvertible

from . import architecture, bytelevel, sentencepiece, special, vocabulary, weights, wordpiece
from .architecture import Model
from .folder import Folder
from .settings import FILE
from .tensors import Tensors
from .vocabulary import Vocabulary
from .weights import Part

Progress = Callable[[float, str], None]
FREQUENCIES = "rope_freqs.weight"
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}
_TENSOR_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
}


def convert(
    source: Path, target: Path, name: str, wanted: str | None, progress: Progress
) -> list[str]:
    """What `hxd_convert` does; raises `NotConvertible`, and `OSError` when the disk is full."""
    if wanted is not None and wanted not in _FILE_TYPES:
        raise NotConvertible(f"no type {wanted!r}; there are {', '.join(_FILE_TYPES)}")
    folder = Folder(source)
    config = folder.json(FILE)
    model = architecture.read(folder, config)
    words = _tokenizer(folder, model)
    words.fit(model.vocabulary)
    tensors = Tensors(folder)
    try:
        kind = wanted or weights.choose(tensors)
        parts = weights.plan(model.entries(), model.spare, tensors, kind)
        # It warns of what is meant, and the daemon keeps what a worker says.
        logging.getLogger("gguf").setLevel(logging.ERROR)
        with contextlib.closing(GGUFWriter(target, model.gguf)) as writer:
            writer.add_type("model")
            writer.add_name(name)
            writer.add_file_type(_FILE_TYPES[kind])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _measure(writer, model)
            model.describe(writer)
            _speak(writer, words, folder, config)
            _write(writer, model, parts, progress)
    finally:
        tensors.close()
    return [*words.notes, *model.notes()]


def _measure(writer: GGUFWriter, model: Model) -> None:
    """The numbers that all architectures have."""
    writer.add_vocab_size(model.vocabulary)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.heads)


def _tokenizer(folder: Folder, model: Model) -> Vocabulary:
    """The SentencePiece model counts before what was made of it."""
    if folder.has(sentencepiece.MODEL):
        return sentencepiece.read_model(folder, model.vocabulary)
    if not folder.has(vocabulary.FILE):
        raise NotConvertible(
            f"the folder has no {vocabulary.FILE} and no {sentencepiece.MODEL}; download it whole"
        )
    found = vocabulary.read_json(folder)
    if bytelevel.matches(found):
        return bytelevel.read(found, model.vocabulary)
    if sentencepiece.matches(found):
        return sentencepiece.read_json(found, model.vocabulary)
    if wordpiece.matches(found):
        return wordpiece.read(found, model.vocabulary)
    kind = found.get("model")
    named = kind.get("type") if isinstance(kind, dict) else None
    raise NotConvertible(
        f"{vocabulary.FILE}: a tokenizer of the kind {str(named)[:100]!r} is not converted; there "
        "are byte-level BPE, BPE with byte_fallback, and WordPiece"
    )


def _speak(writer: GGUFWriter, words: Vocabulary, folder: Folder, config: dict[str, Any]) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.model == "llama":
        writer.add_token_scores(words.scores)
    if words.merges:
        writer.add_token_merges(words.merges)
    if words.prefix is not None:
        writer.add_add_space_prefix(words.prefix)
    for key, id in special.roles(folder, config, words).items():
        writer.add_uint32(f"tokenizer.ggml.{key}", id)
    begins, ends = special.frame(folder, words)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(ends)
    template = special.template(folder)
    if template is not None:
        writer.add_chat_template(template)


def _write(writer: GGUFWriter, model: Model, parts: list[Part], progress: Progress) -> None:
    factors = np.array(model.factors, np.dtype("<f4"))
    if factors.size:
        writer.add_tensor_info(
            FREQUENCIES, factors.shape, factors.dtype, factors.nbytes, _TENSOR_TYPES["f32"]
        )
    for part in parts:
        # Of the shapes, the type that is given as raw says all.
        writer.add_tensor_info(
            part.name, part.shape, np.dtype("<f4"), part.bytes, _TENSOR_TYPES[part.type]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    (out,) = writer.fout
    writer.write_padding(out, out.tell())
    if factors.size:
        out.write(factors.tobytes())
        writer.write_padding(out, factors.nbytes)
    total = sum(part.bytes for part in parts)
    done = 0
    for part in parts:
        before = done
        for rows in weights.written(part):
            out.write(np.ascontiguousarray(rows).data)
            done += rows.nbytes
            progress(done / total, part.name)
        if done - before != part.bytes:
            raise NotConvertible(
                f"the tensor {part.source.name!r} is not as long as its shape says"
            )
        writer.write_padding(out, part.bytes)

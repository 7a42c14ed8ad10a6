"""From what the config says of a model to what a worker loads: plugin, file, version, variant.

Blocks (reads headers, hashes); the daemon calls it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hxd import ggml, gguf, pooling
from hxd.config import Config, ModelSettings
from hxd.daemon.store import demo, plugins
from hxd.daemon.store.plugins import Plugin
from hxd.errors import nearest
from hxd.gguf import Header, ModelFileError
from hxd.pluginfile import PluginError

# general.file_type of a GGUF header (llama_ftype in llama.h) to the variant's name.
FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k", 25: "iq4_nl", 30: "iq4_xs", 32: "bf16",
}  # fmt: skip
# Bytes per weight, from the block sizes of ggml's types; the k-quants mix, so theirs are averages.
WEIGHT = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07, "q6_k": 0.82, "q5_1": 0.75, "q5_0": 0.69,
    "q5_k_m": 0.71, "q5_k_s": 0.69, "q4_1": 0.63, "q4_0": 0.57, "q4_k_m": 0.61, "q4_k_s": 0.58,
    "iq4_nl": 0.57, "iq4_xs": 0.54, "q3_k_l": 0.54, "q3_k_m": 0.49, "q3_k_s": 0.44, "q2_k": 0.42,
}  # fmt: skip
QUANTIZABLE = tuple(WEIGHT)[1:]

AnyHeader = Header | ggml.Header
# Calls for vectors that one worker takes at a time: it fills its batches from all of them, and a
# short text is some 6 tokens of the 512 in a batch.
EMBED_CALLS = 64
EMBED_BATCH = 512  # tokens; llama_cpp's default


@dataclass(frozen=True)
class Source:
    """What one model's workers load. `variant` is the one wanted, `stored` the one in `file`;
    where they differ, a quantized copy is made first. `context` is tokens per sequence, never more
    than the model was trained for; `estimate` bytes for one replica. `embeds`: the model makes
    vectors or scores, by its file or the operator's word. `release` tells apart what is served of
    one model at one time; it is empty for the one that the daemon started with."""

    name: str
    settings: ModelSettings
    plugin: Plugin
    file: Path | None
    version: int
    variant: str
    stored: str
    context: int
    estimate: int
    embeds: bool = False
    release: str = ""

    @property
    def key(self) -> str:
        """Which release of which model this is; no two that have workers share one."""
        return f"{self.name}#{self.release}" if self.release else self.name

    @property
    def at_once(self) -> int:
        """Requests that one replica works on at a time."""
        return max(self.settings.slots, EMBED_CALLS) if self.embeds else self.settings.slots


class SourceError(Exception):
    """`key` is the setting at fault below `models.NAME`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def resolve(
    config: Config, installed: Mapping[str, Plugin], refused: Mapping[str, str]
) -> tuple[dict[str, Source], dict[str, SourceError]]:
    """Sources by model, and for each model that can't be served, why."""
    sources: dict[str, Source] = {}
    faults: dict[str, SourceError] = {}
    for name, settings in config.models.items():
        try:
            sources[name] = _resolve(name, settings, config, installed, refused)
        except SourceError as error:
            faults[name] = error
    return sources, faults


def _resolve(
    name: str,
    settings: ModelSettings,
    config: Config,
    installed: Mapping[str, Plugin],
    refused: Mapping[str, str],
) -> Source:
    file, version, format = None, 1, None
    header: AnyHeader | None = None
    try:
        if settings.source is not None:
            file, version = _file(settings.source, config)
            format = gguf.detect(file)
            if format == "gguf":
                header = gguf.read_header(file)
            else:
                header = ggml.read_header(file, settings.options.get("family"))
    except ggml.FamilyError as error:
        raise SourceError("options", str(error)) from None
    except ModelFileError as error:
        raise SourceError("source", str(error)) from None
    try:
        plugin = plugins.choose(settings.plugin, format, installed, refused)
    except PluginError as error:
        raise SourceError("plugin", str(error)) from None
    formats = plugin.manifest.formats
    if format is None and "none" not in formats:
        raise SourceError("source", f"the plugin {plugin.manifest.name} needs a model file")
    if format is not None and format not in formats:
        raise SourceError(
            "source", f"the plugin {plugin.manifest.name} does not load {format} files"
        )
    stored = _variant(header)
    variant = settings.variants[0] if settings.variants else stored
    if variant != stored and not isinstance(header, Header):
        raise SourceError("variants", f"only GGUF files can be quantized; this is {stored}")
    for asked in settings.variants:
        if asked not in QUANTIZABLE and asked != stored:
            known = QUANTIZABLE
            raise SourceError(
                "variants",
                f"no variant {asked!r}.{nearest(asked, known)} There are: {', '.join(known)}",
            )
    context = _context(header, settings)
    shrink = WEIGHT.get(variant, 1) / WEIGHT.get(stored, 1)
    embeds = isinstance(header, Header) and (
        "pooling" in settings.options or pooling.embeds(header)
    )
    return Source(
        name=name,
        settings=settings,
        plugin=plugin,
        file=file,
        version=version,
        variant=variant,
        stored=stored,
        context=context,
        estimate=(
            _embedding_estimate(header, shrink, context, settings)
            if embeds and isinstance(header, Header)
            else _estimate(header, file, shrink, context, settings.slots)
        ),
        embeds=embeds,
    )


def _file(source: str, config: Config) -> tuple[Path, int]:
    if demo.is_builtin(source):
        version = demo.find(source)
        demo.verify(version)
        return version.file, version.number
    path = config.origin.parent / Path(source).expanduser()
    return path.resolve(), 1


def _variant(header: AnyHeader | None) -> str:
    if header is None:
        return "default"
    if isinstance(header, ggml.Header):
        return header.file_type
    kind = header.metadata.get("general.file_type")
    return FILE_TYPES.get(kind, "unknown") if isinstance(kind, int) else "unknown"


def _context(header: AnyHeader | None, settings: ModelSettings) -> int:
    if isinstance(header, ggml.Header):
        trained: Any = header.context
    else:
        trained = header and header.metadata.get(f"{header.architecture}.context_length")
    if not isinstance(trained, int) or trained <= 0:
        return settings.context
    return min(settings.context, trained)


def _estimate(
    header: AnyHeader | None, file: Path | None, shrink: float, context: int, slots: int
) -> int:
    """Bytes for one replica: weights, `shrink` times the file, and a KV cache of f16 with `context`
    tokens for each slot. An older file's model has one cache for all slots."""
    if header is None or file is None:
        return file.stat().st_size if file else 0
    if isinstance(header, ggml.Header):
        return header.size + header.cache_bytes(context)
    meta, arch = header.metadata, header.architecture

    def number(key: str, default: int) -> int:
        value = meta.get(f"{arch}.{key}")
        return value if isinstance(value, int) and value > 0 else default

    heads = number("attention.head_count", 1)
    width = number("embedding_length", 0)
    key_length = number("attention.key_length", width // heads)
    value_length = number("attention.value_length", key_length)
    kv_heads = number("attention.head_count_kv", heads)
    per_token = number("block_count", 0) * kv_heads * (key_length + value_length) * 2
    return int(header.size * shrink) + per_token * context * slots


def _embedding_estimate(
    header: Header, shrink: float, context: int, settings: ModelSettings
) -> int:
    """Bytes for one replica: weights, and llama.cpp's output buffer, which has room for the logits
    of a batch's every token though nobody reads them, in float32."""
    batch = settings.options.get("batch", EMBED_BATCH)
    vocabulary = header.metadata.get("tokenizer.ggml.tokens")
    size = len(vocabulary) if isinstance(vocabulary, range) else 0
    tokens = max(context, batch if isinstance(batch, int) else EMBED_BATCH)
    return int(header.size * shrink) + tokens * size * 4

"""From what the config says of a model to what a worker loads: plugin, file, version, variant.

Blocks (reads headers, hashes); the daemon calls it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from hxd import ggml, gguf, pooling
from hxd.config import Config, ModelSettings
from hxd.daemon.store import demo, disk
from hxd.daemon.store.faults import NotThere, StoreBroken, StoreError
from hxd.daemon.store.filetypes import variant_of
from hxd.daemon.store.integrity import ensure
from hxd.daemon.store.library import Library
from hxd.daemon.store.plugins import Plugin, Plugins
from hxd.daemon.store.reference import ModelName, Reference
from hxd.daemon.store.version import Version
from hxd.errors import nearest
from hxd.gguf import Header, ModelFileError
from hxd.pluginfile import PluginError

# Bytes per weight, from the block sizes of ggml's types; the k-quants mix, so theirs are averages.
WEIGHT = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07, "q6_k": 0.82, "q5_1": 0.75, "q5_0": 0.69,
    "q5_k_m": 0.71, "q5_k_s": 0.69, "q4_1": 0.63, "q4_0": 0.57, "q4_k_m": 0.61, "q4_k_s": 0.58,
    "iq4_nl": 0.57, "iq4_xs": 0.54, "q3_k_l": 0.54, "q3_k_m": 0.49, "q3_k_s": 0.44, "q2_k": 0.42,
}  # fmt: skip
QUANTIZABLE = tuple(WEIGHT)[1:]
WHOLE = frozenset({"f32", "f16", "bf16"})

STORE = "store:"
# What ends so is meant as a file, though nothing else goes by a file's name.
MODEL_SUFFIXES = frozenset({".gguf", ".ggml", ".bin"})

AnyHeader = Header | ggml.Header
# Calls for vectors that one worker takes at a time: it fills its batches from all of them, and a
# short text is some 6 tokens of the 512 in a batch.
EMBED_CALLS = 64
EMBED_BATCH = 512  # tokens; llama_cpp's default


class Choice(msgspec.Struct, frozen=True):
    """What an operator has chosen over the configuration. `plugin` is NAME or NAME@VERSION."""

    version: int | None = None
    variant: str | None = None
    plugin: str | None = None


AS_CONFIGURED = Choice()


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
    held: Version | None = None
    follows: str | None = None
    release: str = ""

    @property
    def key(self) -> str:
        """Which release of which model this is; no two that have workers share one."""
        return f"{self.name}#{self.release}" if self.release else self.name

    @property
    def reference(self) -> str:
        """NAME:VARIANT@VERSION, by the name that clients send."""
        return f"{self.name}:{self.variant}@{self.version}"

    @property
    def at_once(self) -> int:
        """Requests that one replica works on at a time."""
        return max(self.settings.slots, EMBED_CALLS) if self.embeds else self.settings.slots


class SourceError(Exception):
    """`key` is the setting at fault below `models.NAME`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Resolver:
    """Finds what models load, in one state of configuration, plugins and store."""

    config: Config
    plugins: Plugins
    library: Library

    def first(self, name: str, choices: Sequence[Choice]) -> tuple[Source, SourceError | None]:
        """What can be served of `choices`, best first, and then of the store's other versions; and
        what is wrong with the first one if that can't. Raises the `SourceError` of the first."""
        wrong: SourceError | None = None
        others = (other for other in self.others(name) if other not in choices)
        for choice in (*choices, *others):
            try:
                return self.one(name, choice), wrong
            except SourceError as error:
                wrong = wrong or error
        assert wrong is not None
        raise wrong

    def others(self, name: str) -> Iterator[Choice]:
        """Versions that are whole and were good once, newest first. None where the configuration
        asks for one by its number, or for a file that is no version's."""
        settings = self.config.models[name]
        try:
            reference = reference_of(settings.source, self.config)
            if reference is None or isinstance(reference.selector, int):
                return
            for number in reversed(self.library.versions(reference.name)):
                yield Choice(number)
        except (StoreError, StoreBroken):
            return

    def one(self, name: str, choice: Choice = AS_CONFIGURED) -> Source:
        """Raises `SourceError`."""
        settings = self.config.models[name]
        if choice.variant is not None:
            settings = replace(settings, variants=(choice.variant,))
        if choice.plugin is not None:
            settings = replace(settings, plugin=choice.plugin)
        return _resolve(name, settings, choice.version, self)


def stored_name(name: str, config: Config) -> ModelName | None:
    """The name in the store that a served model's versions are found under; touches no file but
    to see whether a source is one."""
    settings = config.models[name]
    try:
        reference = reference_of(settings.source, config)
        return reference.name if reference is not None else ModelName(name)
    except StoreError:
        return None


def for_file(name: str, file: Path, size: int, settings: ModelSettings, plugins: Plugins) -> Source:
    """Of a file that is no version's, or not yet; `size` in bytes with all its shards. Raises
    `SourceError`."""
    return _source(name, settings, _Place(file, 0, size=size), plugins)


def _resolve(name: str, settings: ModelSettings, number: int | None, found: Resolver) -> Source:
    where = _Place(None, 1)
    try:
        if settings.source is not None or number is not None:
            where = _place(name, settings, number, found)
    except (ModelFileError, StoreError, StoreBroken) as error:
        # A file that the disk does not give ails one model, and not those beside it.
        raise SourceError("source", str(error)) from None
    return _source(name, settings, where, found.plugins)


def _source(name: str, settings: ModelSettings, where: _Place, plugins: Plugins) -> Source:
    format = None
    header: AnyHeader | None = None
    try:
        if where.file is not None:
            format = gguf.detect(where.file)
            if format == "gguf":
                header = gguf.read_header(where.file)
            else:
                header = ggml.read_header(where.file, settings.options.get("family"))
    except ggml.FamilyError as error:
        raise SourceError("options", str(error)) from None
    except ModelFileError as error:
        raise SourceError("source", str(error)) from None
    file = where.file
    try:
        plugin = plugins.choose(settings.plugin, format)
    except PluginError as error:
        raise SourceError("plugin", str(error)) from None
    formats = plugin.manifest.formats
    if format is None and "none" not in formats:
        raise SourceError("source", f"the plugin {plugin.manifest.name} needs a model file")
    if format is not None and format not in formats:
        raise SourceError(
            "source", f"the plugin {plugin.manifest.name} does not load {format} files"
        )
    stored = where.variant or ("default" if header is None else variant_of(header))
    variant = settings.variants[0] if settings.variants else stored
    if variant != stored and not isinstance(header, Header):
        raise SourceError("variants", f"only GGUF files can be quantized; this is {stored}")
    if variant != stored and (why := why_not_made(variant, stored)):
        raise SourceError("variants", why)
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
        version=where.number,
        variant=variant,
        stored=stored,
        context=context,
        estimate=(
            _embedding_estimate(header, shrink, context, settings)
            if embeds and isinstance(header, Header)
            else _estimate(header, file, shrink, context, settings.slots, where.size)
        ),
        embeds=embeds,
        held=where.version,
        follows=where.label,
    )


def why_not_made(variant: str, stored: str) -> str | None:
    """Why the one can't be made of the other; None where it can. llama.cpp quantizes nothing twice:
    both losses would be in it, and only one in its name."""
    if stored in WHOLE or stored not in WEIGHT:
        return None
    return (
        f"{variant} can't be made of {stored}, which is quantized already; import the model in "
        f"f16, bf16 or f32, or a file in {variant}"
    )


@dataclass(frozen=True)
class _Place:
    """A file to load, and what the store knows of it; `size` in bytes of all its shards."""

    file: Path | None
    number: int
    variant: str | None = None
    version: Version | None = None
    label: str | None = None
    size: int | None = None


def _place(name: str, settings: ModelSettings, number: int | None, found: Resolver) -> _Place:
    """Raises `ModelFileError` or `StoreError`."""
    reference = reference_of(settings.source, found.config)
    if reference is None and number is None:
        path = found.config.origin.parent / disk.expanded(settings.source or "")
        return _Place(disk.resolved(path), 1)
    if reference is None:
        reference = Reference(ModelName(name))
    label = "stable" if reference.selector is None else reference.selector
    try:
        if number is not None:
            version = found.library.version(reference.name, number)
        else:
            version = found.library.resolve(reference)
    except NotThere:
        if reference.name != demo.NAME or found.library.versions(demo.NAME):
            raise
        # Before the daemon has first run, it is in the package only.
        packed = demo.find(f"builtin:demo@{number or label}")
        demo.verify(packed)
        return _Place(packed.file, packed.number)
    wanted = settings.variants[0] if settings.variants else reference.variant
    files = version.variants()
    variant = str(wanted if wanted in files else next(iter(files)))
    file = ensure(found.library, version, variant)
    with disk.guarded(f"look at {version}"):
        size = sum(file.stat().st_size for file in files[variant])
    follows = label if isinstance(label, str) else None
    return _Place(file, version.number, variant, version, follows, size)


def reference_of(source: str | None, config: Config) -> Reference | None:
    """What of the store a source names; None for the path of a file. A name that could be either
    is a path where there is such a file. Raises `StoreError`."""
    if source is None:
        return None
    if demo.is_builtin(source):
        return demo.reference(source)
    if source.startswith(STORE):
        return Reference.parse(source.removeprefix(STORE))
    path = config.origin.parent / disk.expanded(source)
    if source[0] in "./~" or path.suffix.lower() in MODEL_SUFFIXES or path.exists():
        return None
    return Reference.parse(source)


def _context(header: AnyHeader | None, settings: ModelSettings) -> int:
    if isinstance(header, ggml.Header):
        trained: Any = header.context
    else:
        trained = header and header.metadata.get(f"{header.architecture}.context_length")
    if not isinstance(trained, int) or trained <= 0:
        return settings.context
    return min(settings.context, trained)


def _estimate(
    header: AnyHeader | None,
    file: Path | None,
    shrink: float,
    context: int,
    slots: int,
    size: int | None = None,
) -> int:
    """Bytes for one replica: weights, `shrink` times the file (all shards: `size`), and a KV cache
    of f16 with `context` tokens for each slot. An older file's model has one cache for all
    slots."""
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
    return int((size or header.size) * shrink) + per_token * context * slots


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

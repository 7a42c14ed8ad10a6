"""Model files of other programs: what they are, and what makes GGUF of them. Reads a few bytes of
each, and never loads one.

What hxd converts itself (the plugin `convert`) are architectures whose results were compared with
the originals. A converter that guesses makes a model that loads and talks nonsense.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hxd import ggml, gguf
from hxd.daemon.store.faults import NotThere, StoreError
from hxd.daemon.store.intake import open_source
from hxd.daemon.store.reference import shown
from hxd.gguf import ModelFileError

Config = dict[str, object]
MAX_CONFIG = 1 << 20
_ENTRIES = 10_000
_HF = "python convert_hf_to_gguf.py FOLDER --outfile MODEL.gguf, of llama.cpp, makes GGUF of it"
# Those of plugins/convert, which the daemon must not import; a test compares the two.
ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "BertModel"}
)
_PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"})


class NoConverter(StoreError):
    status = 422
    code = "no_converter"


@dataclass(frozen=True)
class Convertible:
    """A folder with a model in safetensors: its architecture, empty if it names none, and the bytes
    of its tensors. Whether it is whole, the converter finds out."""

    folder: Path
    architecture: str
    bytes: int


def look(path: Path) -> Convertible:
    """Raises `NotThere`, `StoreError`, and `NoConverter`, which says what the file or folder is and
    what to do with it."""
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise NotThere(f"no such file or folder: {shown(str(path))}", param="path") from None
    found = _folder(resolved) if resolved.is_dir() else _file(resolved)
    if isinstance(found, Convertible):
        return found
    raise NoConverter(f"{shown(str(path))} {found}", param="path")


def described(path: Path) -> dict[str, object]:
    """As `look`, for people: `message` says what it is, and which command converts it. An
    architecture that is not converted raises `NoConverter`."""
    found = look(path)
    what = f"{shown(str(path))} is a {shown(found.architecture)} in safetensors"
    if found.architecture not in ARCHITECTURES:
        raise NoConverter(
            f"{what}. hxd has no converter for this architecture; {_HF}", param="path"
        )
    return {
        "path": str(path),
        "format": "safetensors",
        "architecture": found.architecture,
        "bytes": found.bytes,
        "message": f"{what}; hxctl model convert PATH --name NAME makes GGUF of it and takes it in",
    }


def _folder(folder: Path) -> Convertible | str:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_ENTRIES), strict=False)]
    except OSError as error:
        raise StoreError(f"can't read {shown(str(folder))}: {error.strerror}") from None
    suffixes = {Path(name).suffix.lower() for name in names}
    config = _config(folder)
    method = _quantization(config)
    if ".gguf" in suffixes:
        return "has GGUF files already; hxctl model import takes them"
    if ".npz" in suffixes or _mlx(config):
        return (
            "is a model for MLX, with weights in Apple's own layout. hxd has no converter for it, "
            f"and llama.cpp has none: take the model that it was made from; {_HF}"
        )
    if method is not None:
        return (
            f"is quantized with {method}. hxd has no converter for it: take the model that it was "
            f"made from; {_HF}"
        )
    if ".safetensors" in suffixes:
        return _safetensors(folder, names, config)
    if suffixes & _PICKLES:
        return (
            "is a PyTorch checkpoint, pickles that run code when they are loaded. hxd has no "
            f"converter for it; {_HF}, on a machine where that code may run"
        )
    if ".onnx" in suffixes:
        return f"is a model in ONNX. hxd has no converter for it; from the original, {_HF}"
    return "holds no model file that hxd knows"


def _safetensors(folder: Path, names: Sequence[str], config: Config) -> Convertible | str:
    if "adapter_config.json" in names:
        return (
            "is a LoRA adapter, not a model. hxd has no converter for it; "
            "python convert_lora_to_gguf.py, of llama.cpp, makes a GGUF adapter of it"
        )
    if not config:
        return "has tensors in safetensors and no config.json; download the folder whole"
    if "auto_map" in config:
        return (
            "names code of its own in config.json (auto_map), which hxd does not run. hxd has no "
            f"converter for it; {_HF}, on a machine where that code may run"
        )
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    size = 0
    for name in names:
        if name.endswith(".safetensors"):
            with contextlib.suppress(OSError):
                size += (folder / name).stat().st_size
    return Convertible(folder, first if isinstance(first, str) else "", size)


def _file(file: Path) -> str:
    descriptor = open_source(file)
    with os.fdopen(descriptor, "rb") as stream:
        start = stream.read(64)
    suffix = file.suffix.lower()
    try:
        format = gguf.detect(file)
    except ModelFileError:
        return _other(start, suffix)
    if format == "gguf":
        return (
            "is GGUF already. hxctl model import takes it, and hxctl model quantize makes other "
            "variants of what was imported"
        )
    try:
        family = ggml.read_header(file).family
    except ggml.FamilyError:
        family = "one of several families"
    except ModelFileError as error:
        return f"looks like a model file from before GGUF, but: {error}"
    served = "hxctl model import takes it as it is, and the plugin ctransformers serves it"
    if family == "llama":
        return (
            "is a Llama model from before GGUF. hxd has no converter for it: "
            "convert_llama_ggml_to_gguf.py, of llama.cpp, makes GGUF of it, and needs the original "
            f"tokenizer for the best result. {served[0].upper()}{served[1:]}"
        )
    return (
        f"is a model from before GGUF ({family}). hxd has no converter for it, and llama.cpp has "
        f"none: {served}, or take the original; {_HF}"
    )


def _other(start: bytes, suffix: str) -> str:
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            "is a PyTorch checkpoint, a pickle that runs code when it is loaded. hxd has no "
            f"converter for it; {_HF}, from its folder and where that code may run"
        )
    if suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") > 1):
        return (
            "is a file in safetensors. Its folder, with config.json and the tokenizer, is what can "
            "be converted: name that"
        )
    if suffix == ".onnx":
        return f"is a model in ONNX. hxd has no converter for it; from the original, {_HF}"
    return "is no model file that hxd knows"


def _config(folder: Path) -> Config:
    try:
        descriptor = open_source(folder / "config.json")
        with os.fdopen(descriptor, "rb") as stream:
            found = json.loads(stream.read(MAX_CONFIG))
    except (StoreError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _quantization(config: Config) -> str | None:
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    return shown(method) if isinstance(method, str) else "a method that it does not name"


def _mlx(config: Config) -> bool:
    """mlx-lm writes `quantization` with a group size where others write `quantization_config`."""
    found = config.get("quantization")
    return isinstance(found, dict) and "group_size" in found

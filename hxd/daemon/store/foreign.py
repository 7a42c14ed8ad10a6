"""Model files of other programs: what they are, and what makes GGUF of them. Reads a few bytes of
each, and never loads one.

hxd converts none: a converter has to know the tensors and the tokenizer of every architecture, as
llama.cpp's scripts do. One that guesses makes a model that loads and talks nonsense.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hxd import ggml, gguf
from hxd.daemon.store.faults import NotThere, StoreError
from hxd.daemon.store.intake import open_source
from hxd.daemon.store.reference import shown
from hxd.gguf import ModelFileError

MAX_CONFIG = 1 << 20
_ENTRIES = 10_000
_HF = "python convert_hf_to_gguf.py FOLDER --outfile MODEL.gguf, of llama.cpp, makes GGUF of it"
_PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"})


class NoConverter(StoreError):
    status = 422
    code = "no_converter"


def refusal(path: Path) -> StoreError:
    """What the file or folder is, and what to do with it. Raises `NotThere` and `StoreError`."""
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return NotThere(f"no such file or folder: {shown(str(path))}", param="path")
    words = _folder(resolved) if resolved.is_dir() else _file(resolved)
    return NoConverter(f"{shown(str(path))} {words}", param="path")


def _folder(folder: Path) -> str:
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
        return f"is a model in safetensors. hxd has no converter for it; {_HF}"
    if suffixes & _PICKLES:
        return (
            "is a PyTorch checkpoint, pickles that run code when they are loaded. hxd has no "
            f"converter for it; {_HF}, on a machine where that code may run"
        )
    if ".onnx" in suffixes:
        return f"is a model in ONNX. hxd has no converter for it; from the original, {_HF}"
    return "holds no model file that hxd knows"


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
        return f"is a file in safetensors. hxd has no converter for it; {_HF}, from its folder"
    if suffix == ".onnx":
        return f"is a model in ONNX. hxd has no converter for it; from the original, {_HF}"
    return "is no model file that hxd knows"


def _config(folder: Path) -> dict[str, object]:
    try:
        descriptor = open_source(folder / "config.json")
        with os.fdopen(descriptor, "rb") as stream:
            found = json.loads(stream.read(MAX_CONFIG))
    except (StoreError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _quantization(config: dict[str, object]) -> str | None:
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    return shown(method) if isinstance(method, str) else None


def _mlx(config: dict[str, object]) -> bool:
    """mlx-lm writes `quantization` with a group size where others write `quantization_config`."""
    found = config.get("quantization")
    return isinstance(found, dict) and "group_size" in found

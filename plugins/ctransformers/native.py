"""The library itself, through its C interface: load a file, evaluate tokens, look at the logits.

Its Python package is not imported. That brings a downloader along, asks the processor for its
abilities in a process of its own, and gives the tokenizer less room than it writes.
"""

from __future__ import annotations

import ctypes
import platform
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Builds in the package, the fastest first, with the processor's abilities that each needs. One
# that was built on this machine is taken before them.
_BUILDS = (("avx2", {"avx2", "fma", "f16c"}), ("avx", {"avx", "f16c"}), ("basic", set[str]()))


class _Config(ctypes.Structure):
    _fields_ = (
        ("context_length", ctypes.c_int),
        ("gpu_layers", ctypes.c_int),
        ("mmap", ctypes.c_bool),
        ("mlock", ctypes.c_bool),
    )


class Model:
    """One loaded model with its one KV cache."""

    def __init__(self, path: Path, kind: str, context: int) -> None:
        """`kind`: the family, or `gguf`. Raises `RuntimeError` when the library refuses."""
        self._library = _open(library())
        self._model = self._library.ctransformers_llm_create(
            bytes(path), kind.encode(), _Config(context, 0, True, False)
        )
        if not self._model:
            raise RuntimeError(
                f"ctransformers can't load {path.name} as {kind}; what it said is in the log"
            )
        self.context: int = self._library.ctransformers_llm_context_length(self._model)
        self.size: int = self._library.ctransformers_llm_vocab_size(self._model)

    def evaluate(self, tokens: list[int], past: int, threads: int) -> NDArray[np.float32]:
        """The logits after the last of `tokens`, which follow `past` tokens in the cache; valid
        until the next call."""
        count = len(tokens)
        array = (ctypes.c_int * count)(*tokens)
        # One batch: the library would cut it without looking at its buffers.
        done = self._library.ctransformers_llm_batch_eval(
            self._model, array, count, past, count, threads
        )
        size = self._library.ctransformers_llm_logits_size(self._model)
        if not done or size < self.size:
            raise RuntimeError(f"ctransformers can't evaluate {count} tokens after {past}")
        data = self._library.ctransformers_llm_logits_data(self._model)
        return np.ctypeslib.as_array(data, (size,))[-self.size :]

    def close(self) -> None:
        self._library.ctransformers_llm_delete(self._model)


def library() -> Path:
    """The build for this machine; raises `RuntimeError` without one."""
    spec = find_spec("ctransformers")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("ctransformers is not installed: install hxd[ctransformers]")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    built = folder / "local" / "libctransformers.so"
    if built.is_file():
        return built
    if platform.machine() not in ("x86_64", "AMD64"):
        raise RuntimeError(
            f"ctransformers has no build for {platform.machine()}: install it from source"
        )
    has = _abilities()
    return next(folder / name / built.name for name, needs in _BUILDS if needs <= has)


def _abilities() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return set()


def _open(path: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(path))
    model, integer = ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("create", model, (ctypes.c_char_p, ctypes.c_char_p, _Config)),
        ("delete", None, (model,)),
        ("context_length", integer, (model,)),
        ("vocab_size", integer, (model,)),
        ("logits_data", ctypes.POINTER(ctypes.c_float), (model,)),
        ("logits_size", integer, (model,)),
        (
            "batch_eval",
            ctypes.c_bool,
            (model, ctypes.POINTER(integer), integer, integer, integer, integer),
        ),
    ):
        function = getattr(opened, f"ctransformers_llm_{name}")
        function.restype, function.argtypes = result, arguments
    return opened

"""llama.cpp's process-wide side: start it once, keep its log, load a model file."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp

from hxd.hookspecs import LoadRequest

_WARN, _ERROR, _CONTINUE = 3, 4, 5
_said: dict[int, deque[str]] = {level: deque(maxlen=3) for level in (_WARN, _ERROR)}
_level = 0
_listener: Callable[[str], None] | None = None


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    global _level
    _level = _level if level == _CONTINUE else level
    if _listener is None and _level not in _said:
        return
    line = text.decode("utf-8", "replace")
    if _listener is not None:
        _listener(line)
    if _level in _said:
        sys.stderr.write(line)
        if line.strip():
            _said[_level].append(line.strip())


def start() -> None:
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@contextlib.contextmanager
def heard(listener: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile `listener` gets all that the library logs, in pieces of lines, from its threads."""
    global _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = None


def last_words() -> str:
    """The latest errors of the library, or else its warnings, for an error message."""
    return "; ".join(_said[_ERROR] or _said[_WARN]) or "it gave no reason"


def load_model(path: Path, *, gpu_layers: int) -> int:
    """A `llama_model` pointer; raises `RuntimeError` with the library's own words."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    model = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
    if not model:
        raise RuntimeError(f"llama.cpp can't load {path.name}: {last_words()}")
    return model


def metadata(model: int, key: str) -> str | None:
    buffer = ctypes.create_string_buffer(256)
    length = llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return None if length < 0 else buffer.value.decode("utf-8", "replace")


def need_file(request: LoadRequest) -> Path:
    if request.path is None:
        raise ValueError("llama_cpp needs a model file; set source")
    return request.path


def template(model: int, name: str | None) -> str | None:
    """A chat template of the file: the one called `name`, or the default."""
    found = llama_cpp.llama_model_chat_template(model, name.encode() if name else None)
    return found.decode("utf-8", "replace") if found else None

"""The servers of a model file that are compared, each with the same threads, slots and context."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .serving import Kind

XLLAMACPP = Path(__file__).with_name("xllamacpp_server.py")


@dataclass(frozen=True)
class Load:
    """What a server is to serve. `context` is tokens per slot."""

    model: Path
    threads: int
    slots: int
    context: int
    embeddings: bool = False


def hxd(load: Load) -> Kind:
    """This checkout's, by the Python that runs the benchmark."""

    def command(port: int, folder: Path) -> list[str]:
        model = {
            "source": str(load.model),
            "threads": load.threads,
            "slots": load.slots,
            "context": load.context,
            "queue": 4096,
            "queue_time": "1h",
            "stall_time": "10m",
        }
        return serve_hxd(port, folder, {"bench": model}, auth=False)

    def busy(metrics: str) -> int:
        found = re.findall(r"^hxd_requests_(?:running|waiting)\S* (\S+)$", metrics, re.MULTILINE)
        return int(sum(map(float, found)))

    return Kind("hxd", command, "/readyz", {"ignore_eos": True}, "/metrics", busy)


def serve_hxd(
    port: int, folder: Path, models: dict[str, dict[str, object]], *, auth: bool
) -> list[str]:
    """The command that serves `models` (settings by name), with its configuration in `folder`.
    A setting that is a dict becomes an inline table of scalars."""
    lines = ["[listen]", f'http = "127.0.0.1:{port}"', "[auth]", f"required = {_toml(auth)}"]
    lines += ["[paths]", *(f'{key} = "{key}"' for key in ("state", "logs", "cache"))]
    lines.append('runtime = "run"')
    for name, settings in models.items():
        lines.append(f"[models.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
    config = folder / "hxd.toml"
    config.write_text("\n".join(lines) + "\n")
    return [sys.executable, "-m", "hxd", "serve", "--config", str(config)]


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    # Texts, numbers and truth values are written alike in both.
    return json.dumps(value)


def llama_server(load: Load, binary: Path) -> Kind:
    return _llama_server(load, [str(binary)])


def xllamacpp(load: Load, python: Path) -> Kind:
    """llama.cpp's server inside the wheel xllamacpp, with the same flags."""
    return _llama_server(load, [str(python), str(XLLAMACPP)])


def _llama_server(load: Load, program: list[str]) -> Kind:
    def command(port: int, folder: Path) -> list[str]:
        flags = {
            "--model": load.model,
            "--host": "127.0.0.1",
            "--port": port,
            "--threads": load.threads,
            "--parallel": load.slots,
            "--ctx-size": load.slots * load.context,
        }
        return [*program, *_flat(flags), *(["--embeddings"] if load.embeddings else [])]

    def busy(slots: str) -> int:
        return sum(slot["is_processing"] for slot in json.loads(slots))

    return Kind("llama-server", command, "/health", {"ignore_eos": True}, "/slots", busy)


def llama_cpp_server(load: Load, python: Path) -> Kind:
    """One sequence at a time: it has no slots, and others wait for its lock."""

    def command(port: int, folder: Path) -> list[str]:
        flags = {
            "--model": load.model,
            "--host": "127.0.0.1",
            "--port": port,
            "--n_threads": load.threads,
            "--n_threads_batch": load.threads,
            "--n_ctx": load.context,
            # Otherwise a request that comes in cuts off the one that runs.
            "--interrupt_requests": False,
            "--embedding": load.embeddings,
        }
        return [str(python), "-m", "llama_cpp.server", *_flat(flags)]

    return Kind("llama_cpp.server", command, "/v1/models", together=False)


def _flat(flags: dict[str, object]) -> list[str]:
    return [str(part) for pair in flags.items() for part in pair]

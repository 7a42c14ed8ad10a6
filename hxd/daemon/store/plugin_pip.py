"""One run of pip for an environment: told line by line, bounded in time, and stoppable. It ends
when the daemon does, however that ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

from hxd.daemon.store.faults import SourceFailed, StoreError
from hxd.daemon.store.work import Work

# Building llama.cpp takes a slow box a quarter of an hour.
LIMIT = 3600.0
_LINE = 200
_LEASH = Path(__file__).with_name("plugin_leash.py")
# Of the daemon's environment: where pip and compilers find things, and nothing that could be a
# secret of hxd's. An index that needs a password has it in pip's own configuration.
_PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "XDG_CACHE_HOME", "LD_LIBRARY_PATH",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "FORCE_CMAKE", "CUDA_HOME",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_PROXY",
    "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "PIP_CACHE_DIR",
    "PIP_NO_CACHE_DIR", "PIP_CONSTRAINT", "PIP_ONLY_BINARY", "PIP_NO_BINARY", "PIP_PREFER_BINARY",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED if name in os.environ}


def install(python: Path, requirements: Collection[str], scratch: Path, work: Work) -> None:
    """Into the environment of `python`; raises `StoreError`, `Cancelled`. What pip unpacks and
    builds on its way lies in the folder `scratch`, and stays there when it is killed."""
    command = [sys.executable, "-I", str(_LEASH), str(os.getpid())]
    command += [sys.executable, "-I", "-m", "pip", "--python", str(python), "install"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--no-warn-script-location", "--retries=1", "--timeout=15", "--", *requirements]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "TMPDIR": str(scratch.absolute())},
        start_new_session=True,
    )
    try:
        said = _follow(process, work)
    finally:
        # Compilers that pip started go with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if code != 0:
        raise SourceFailed(_told(requirements, said))


def _follow(process: subprocess.Popen[bytes], work: Work) -> deque[str]:
    """Its last lines, once it has ended."""
    assert process.stdout is not None
    said: deque[str] = deque(maxlen=50)
    rest = b""
    end = time.monotonic() + LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            work.check()
            if time.monotonic() > end:
                raise StoreError(f"pip took over {LIMIT:g} s; nothing was changed")
            if selector.select(0.5):
                data = os.read(process.stdout.fileno(), 1 << 14)
            elif _ended(process.pid, os.WNOHANG):
                # What pip left running may hold the pipe open for ever.
                return said
            else:
                continue
            if not data:
                _ended(process.pid)
                return said
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_LINE:]
            for line in lines:
                text = line.decode("utf-8", "replace").strip()[:_LINE]
                if text:
                    said.append(text)
                    work.told(text, 0, 0)


def _ended(pid: int, options: int = 0) -> bool:
    """Not reaped yet: its group's number stays its own until that is killed."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options) is not None


def _told(requirements: Collection[str], said: Collection[str]) -> str:
    if any("No module named pip" in line for line in said):
        return (
            f"the Python that runs hxd has no pip to make an environment with: "
            f"{sys.executable} -m ensurepip installs it"
        )
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    why = "; ".join(errors[-3:]) or (list(said) or ["no message"])[-1]
    return (
        f"pip could not install {', '.join(requirements)} into an environment of its own: {why}. "
        "Nothing was changed. On a box without a network, put the wheels into a folder and name it "
        "in PIP_FIND_LINKS of hxd's own environment, with PIP_NO_INDEX=1"
    )

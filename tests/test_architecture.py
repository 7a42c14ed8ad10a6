"""Who may import whom, checked in fresh processes against what was really loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

# entry module -> {forbidden module: reason}
FORBIDDEN = {
    "hxd.daemon.run": {
        "llama_cpp": "a model library can crash; the daemon must not",
        "ctransformers": "a model library can crash; the daemon must not",
        "torch": "a model library can crash; the daemon must not",
        "numpy": "the daemon handles tokens and text, never tensors",
        "llguidance": "grammars come from clients and are compiled in workers",
        "hxd.kit": "what plugins build on belongs to workers",
        "jinja2": "templates come from model files and are rendered in workers",
        "hxd.worker": "the worker's code belongs to another process",
        "plugins": "the daemon never imports plugin code",
    },
    "hxd.daemon.supervise.supervisor": {
        "aiohttp": "the supervisor has never heard of HTTP",
        "hxd.daemon.request": "requests know the supervisor, not the other way round",
    },
    "hxd.daemon.supervise.workers": {
        "aiohttp": "the supervisor has never heard of HTTP",
        "hxd.daemon.request": "requests know the supervisor, not the other way round",
    },
    "hxd.worker.main": {
        "hxd.daemon": "a worker knows the wire and the plugin contract only",
        "aiohttp": "a worker has no network side",
        "asyncio": "a worker is plain threads around a blocking library",
    },
    "plugins.echo.main": {"hxd.daemon": "plugins run in workers"},
    "plugins.llama_cpp.main": {
        "hxd.daemon": "plugins run in workers",
        "llama_cpp": "nothing heavy at import; the hook imports it",
    },
    "plugins.ctransformers.main": {
        "hxd.daemon": "plugins run in workers",
        "ctransformers": "nothing heavy at import; the hook imports it",
    },
    "plugins.convert.main": {
        "hxd.daemon": "plugins run in workers",
        "gguf": "nothing heavy at import; the hook imports it",
        "numpy": "nothing heavy at import; the hook imports it",
    },
    "plugins.remote.main": {
        "hxd.daemon": "plugins run in workers",
        "aiohttp": "nothing heavy at import; the hook imports it",
    },
    "hxd.hookspecs": {"aiohttp": "plugin authors need none of it", "hxd.daemon": "the same"},
    "hxd": {"aiohttp": "nothing happens at import", "hxd.daemon": "nothing happens at import"},
}

STEPS = ["receive", "identify", "admit", "choose", "call", "reply"]
# A step may use these others: types that pass between them, and the pure policy inside admission.
ALLOWED = {"admit": {"choose"}, "call": {"admit", "choose"}, "reply": {"call", "admit", "choose"}}


def loaded_by(module: str) -> set[str]:
    script = f"import sys, json, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", FORBIDDEN)
def test_an_entry_module_loads_nothing_forbidden(module: str) -> None:
    loaded = loaded_by(module)
    broken = [
        f"{module} loads {name}: {reason}"
        for name, reason in FORBIDDEN[module].items()
        if any(one == name or one.startswith(name + ".") for one in loaded)
    ]
    assert broken == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_a_request_knows_no_other_step(step: str) -> None:
    loaded = loaded_by(f"hxd.daemon.request.{step}")
    others = {f"hxd.daemon.request.{other}" for other in STEPS if other != step}
    allowed = {f"hxd.daemon.request.{other}" for other in ALLOWED.get(step, set())}
    assert (loaded & others) - allowed == set()

"""The gateways that are compared: no model behind them, so that only their own work is measured."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from .servers import serve_hxd
from .serving import DidNotStart, Kind, Running

SLOTS = 256
RATE = 20
SOCKET = "run/admin.sock"
LITELLM_KEY = "sk-bench"


def hxd(streams: int) -> Kind:
    """Keys required; a model `echo` that answers at once, and `paced` with 20 tokens per second
    and room for `streams`."""

    def command(port: int, folder: Path) -> list[str]:
        echo = {"plugin": "echo", "slots": 64}
        paced = {
            "plugin": "echo",
            "slots": SLOTS,
            "replicas": -(-streams // SLOTS),
            "options": {"rate": RATE},
        }
        return serve_hxd(port, folder, {"echo": echo, "paced": paced}, auth=True)

    return Kind("hxd", command, "/readyz")


def hxd_alone() -> Kind:
    """The daemon without models."""
    return Kind("hxd", lambda port, folder: serve_hxd(port, folder, {}, auth=True), "/readyz")


def bare() -> Kind:
    return Kind(
        "bare",
        lambda port, folder: [sys.executable, "-m", "scripts.bench.bare", str(port)],
        "/livez",
    )


def litellm(program: str, behind: Running) -> Kind:
    """LiteLLM's proxy in front of the bare server, with a key."""

    def command(port: int, folder: Path) -> list[str]:
        asked = {"model": "openai/echo", "api_base": f"{behind.url}/v1", "api_key": "none"}
        names = [{"model_name": name, "litellm_params": asked} for name in ("echo", "paced")]
        settings = {"model_list": names, "general_settings": {"master_key": LITELLM_KEY}}
        config = folder / "litellm.json"
        # JSON is YAML.
        config.write_text(json.dumps(settings))
        return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]

    return Kind("litellm", command, "/health/liveliness")


async def key_for(running: Running) -> str | None:
    """A key that this gateway takes; hxd's is made with `hxctl`, through the admin socket."""
    if running.kind.name == "litellm":
        return LITELLM_KEY
    if running.kind.name != "hxd":
        return None
    socket = running.folder / SOCKET
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from hxd.cli.ctl import hxctl; hxctl()"),
        *("--socket", str(socket), "key", "create", "bench", "--role", "inference", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise DidNotStart("hxctl could not make a key; its message is above")
    return str(json.loads(out)["key"])

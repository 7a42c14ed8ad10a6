"""What the daemon itself costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil

from tests.support import running, write_config

MEGABYTE = 1 << 20


async def test_the_daemon_without_models_stays_small_and_loads_no_model_library(
    tmp_path: Path,
) -> None:
    async with running(write_config(tmp_path, "")) as daemon, aiohttp.ClientSession() as session:
        for _ in range(50):
            async with session.get(daemon.url + "/health") as response:
                assert response.status == 200
        process = psutil.Process(daemon.process.pid)
        assert process.memory_info().rss < 80 * MEGABYTE
        mapped = [region.path for region in process.memory_maps()]
        assert any("/uvloop/" in path for path in mapped)
        assert not [
            path for path in mapped if "llama" in Path(path).name or "ggml" in Path(path).name
        ]


def test_the_installed_commands_work_from_another_folder(tmp_path: Path) -> None:
    for command in ("hxd", "hxctl"):
        installed = Path(sys.executable).with_name(command)
        done = subprocess.run(
            [installed, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith(f"{command}, version ")

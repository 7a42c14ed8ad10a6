"""What README.md says to type works, and the tree that it draws is the one that is there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hxd.cli.ctl import hxctl, key
from tests.docs.pages import DEFAULT_URL, block, blocks, commands, curl
from tests.support import ROOT, Daemon, running

README = ROOT / "README.md"
COMMANDS = commands(README)
# Those with a test of their own below; the daemon of all tests is started by `hxd serve`.
ELSEWHERE = [
    "scripts/demo",
    "scripts/test",
    "pip install '.[llama]'",
    "hxd serve --config hxd.toml",
]
ASKED = [line for line in COMMANDS if line.startswith("curl ")]
TYPED = [line for line in COMMANDS if line not in ELSEWHERE + ASKED]
PATHS = '[paths]\nstate = "state"\nruntime = "run"\nlogs = "logs"\ncache = "cache"\n'

on_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """hxd with the README's own configuration, on another port and with folders of its own."""
    folder = tmp_path_factory.mktemp("readme")
    (config,) = [text for info, text in blocks(README) if info == "toml"]
    (folder / "hxd.toml").write_text(config.replace("127.0.0.1:8420", "127.0.0.1:0"))
    (folder / "conf.d").mkdir()
    (folder / "conf.d/paths.toml").write_text(PATHS)
    async with running(folder / "hxd.toml") as daemon:
        yield daemon


async def run(
    *command: str, cwd: Path = ROOT, runtime: Path | None = None, seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """`command` with this environment's programs on PATH; `runtime` holds the admin socket."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if runtime is not None:
        environment["RUNTIME_DIRECTORY"] = str(runtime)
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env=environment,
    )


async def typed(line: str, box: Daemon) -> subprocess.CompletedProcess[str]:
    return await run(*line.split(), cwd=box.folder, runtime=box.folder / "run")


@on_one_loop
@pytest.mark.parametrize("line", TYPED)
async def test_a_command_of_the_readme_succeeds(box: Daemon, line: str) -> None:
    if line.endswith(" ID"):
        made = await typed("hxctl key create to-revoke", box)
        line = line.replace("ID", re.findall(r"id (\w+)", made.stderr)[0])
    done = await typed(line, box)
    assert done.returncode == 0, done.stderr + box.log
    assert done.stdout


@on_one_loop
@pytest.mark.parametrize("line", ASKED)
async def test_the_curl_command_of_the_readme_gets_an_answer(box: Daemon, line: str) -> None:
    status, body = await curl(line, box.url)
    assert status == 200
    assert body["choices"][0]["message"]["content"]


@on_one_loop
async def test_the_python_of_the_readme_prints_an_answer(box: Daemon) -> None:
    code = block(README, "python").replace(DEFAULT_URL, box.url)
    assert len(code.splitlines()) == 5
    done = await run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_commands_that_hxctl_has_stand_in_the_readme() -> None:
    known = {f"hxctl {name}" for name in hxctl.commands if name != "key"}
    known |= {f"hxctl key {name}" for name in key.commands}
    shown = {" ".join(line.split()[: 3 if "key" in line else 2]) for line in TYPED}
    assert known == {line for line in shown if line.startswith("hxctl")}


@pytest.mark.timeout(600)  # the first run on a machine builds llama.cpp
async def test_the_demo_runs_once_and_answers() -> None:
    done = await run("scripts/demo", "--once", seconds=580)
    assert done.returncode == 0, done.stderr
    assert "Q: What is 23 + 45?\nA: 68\n" in done.stdout
    assert "from openai import OpenAI" in done.stdout


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test"])
async def test_a_script_of_the_readme_says_how_it_is_used(script: str) -> None:
    assert script in COMMANDS
    done = await run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {script}")


async def test_pip_accepts_the_install_line_of_the_readme() -> None:
    """A dry run: what the line would install besides hxd is here already."""
    (line,) = [line for line in COMMANDS if line.startswith("pip ")]
    options = ("--dry-run", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    target = line.split()[-1].strip("'")
    done = await run(sys.executable, "-m", "pip", "install", *options, target)
    assert done.returncode == 0, done.stderr
    assert "Would install hxd-" in done.stdout
    assert "does not provide the extra" not in done.stderr


def test_the_extras_of_the_readme_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = README.read_text("utf-8")
    table = text.partition("| extra | for |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert sorted(named) == sorted(project["optional-dependencies"])


def drawn_tree() -> dict[str, set[str]]:
    """Entries of each folder that the README's tree opens, by the folder's path; "" is the root."""
    (text,) = [text for info, text in blocks(README) if not info and text.startswith("hxd/ ")]
    tree: dict[str, set[str]] = {"": set()}
    path: list[str] = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path[depth:] = [name]
        tree.setdefault("".join(path[:depth]), set()).add(name)
    return tree


def entries(folder: Path) -> set[str]:
    """What a reader sees in `folder`: no dot files, caches, build output or empty folders."""
    made = {"__init__.py", "__pycache__", "py.typed", "build", "dist"}
    found = set()
    for path in folder.iterdir():
        if path.name in made or path.name.startswith(".") or path.suffix == ".egg-info":
            continue
        if not path.is_dir():
            found.add(path.name)
        elif any(file.is_file() for file in path.rglob("*")):
            found.add(f"{path.name}/")
    return found


@pytest.mark.parametrize("folder", drawn_tree())
def test_the_tree_of_the_readme_is_the_one_on_disk(folder: str) -> None:
    assert drawn_tree()[folder] == entries(ROOT / folder)


def test_the_tree_of_the_readme_opens_the_package() -> None:
    assert {"", "hxd/", "hxd/daemon/"} <= drawn_tree().keys()

"""The plugin in docs/plugins.md is complete: written to disk as it stands there, it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hxd import hookspecs, pluginfile
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.work import Work
from tests.docs.pages import block, blocks, commands, curl
from tests.support import ROOT, post, run_hxd, running, write_config

PAGE = ROOT / "docs/plugins.md"
FILES = ("plugins/shout/plugin.toml", "plugins/shout/main.py")


def write_plugin(folder: Path) -> None:
    """Both files of the page in `folder`, with their digests made by the page's command."""
    for name in FILES:
        (info,) = [info for info, _ in blocks(PAGE) if info.endswith(f" {name}")]
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block(PAGE, info))
    line, _ = [line for line in commands(PAGE) if line.startswith("scripts/plugin-digest ")]
    script, target = line.split()
    subprocess.run([sys.executable, ROOT / script, folder / target], check=True)


async def test_the_plugin_of_the_page_answers_over_http(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    config = write_config(tmp_path, block(PAGE, "toml hxd.toml"))
    assert run_hxd("check", "--config", str(config)).returncode == 0
    (line,) = [line for line in commands(PAGE) if line.startswith("curl ")]
    async with running(config) as daemon:
        status, body = await curl(line, daemon.url)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "HELLO"
        assert body["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": 6,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

        url = daemon.url + "/v1/completions"
        status, body, _ = await post(url, {"model": "shout", "prompt": "a, b", "stop": ","})
        assert (status, body["choices"][0]["text"]) == (200, "A")
        # What the page says of its missing RequestRefused.
        status, body, _ = await post(url, {"model": "shout", "prompt": [999]})
        assert (status, body["error"]["code"]) == (502, "backend_error")


def test_the_plugin_of_the_page_is_refused_once_it_has_changed(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    config = write_config(tmp_path, block(PAGE, "toml hxd.toml"))
    with (tmp_path / "plugins/shout/main.py").open("a") as file:
        file.write("\n")
    done = run_hxd("check", "--config", str(config))
    assert done.returncode == 78
    assert "main.py is not the file that plugin.toml lists" in done.stderr


def test_the_commands_of_the_page_sign_a_plugin_that_their_key_lets_run(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    starts = ("openssl ", "scripts/plugin-digest --key")
    lines = [line for line in commands(PAGE) if line.startswith(starts)]
    assert len(lines) == 3
    for line in lines:
        command = line.replace("scripts/", f"{sys.executable} {ROOT}/scripts/").split()
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    store = PluginStore(tmp_path / "store")
    store.prepare()
    store.trust_key("shouters", (tmp_path / "public.pem").read_text())
    assert store.install(tmp_path / "plugins/shout", Work()).trusted == "signature by shouters"
    (info,) = [text for _, text in blocks(PAGE) if "shout@" in text]
    reference = tomllib.loads(info)["models"]["loud"]["plugin"]
    assert store.catalog().choose(reference, None).reference == reference


def test_the_page_has_every_hook_and_method_of_the_contract() -> None:
    text = PAGE.read_text("utf-8")
    hooks = [name for name in vars(hookspecs.Hooks) if name.startswith("hxd_")]
    methods = [name for name in vars(hookspecs.Backend) if not name.startswith("_")]
    assert len(hooks) == 5
    assert len(methods) == 9
    assert [name for name in hooks + methods if f"| `{name}` |" not in text] == []


def test_the_page_has_every_key_of_plugin_toml() -> None:
    text = PAGE.read_text("utf-8")
    keys = [key for key in pluginfile.PluginFile.__struct_fields__ if key != "files"]
    assert [key for key in keys if f"| `{key}` |" not in text] == []
    assert "| `[files]` |" in text


def test_the_misbehaving_model_of_the_page_is_accepted(tmp_path: Path) -> None:
    (text,) = [text for info, text in blocks(PAGE) if "fault" in text and info == "toml"]
    options = tomllib.loads(text)["models"]["sick"]["options"]
    source = (ROOT / "plugins/echo/main.py").read_text("utf-8")
    assert [option for option in options if json.dumps(option) not in source] == []
    assert run_hxd("check", "--config", str(write_config(tmp_path, text))).returncode == 0


@pytest.mark.parametrize("plugin", ["ctransformers", "echo", "llama_cpp", "remote"])
def test_the_digests_of_a_builtin_plugin_are_current(plugin: str, tmp_path: Path) -> None:
    copy = tmp_path / plugin
    shutil.copytree(ROOT / "plugins" / plugin, copy)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/plugin-digest", "--check", copy],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")

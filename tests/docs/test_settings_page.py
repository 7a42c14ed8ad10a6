"""The generated pages are current, complete, and say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from hxd import config
from hxd.config.settings import SECTIONS, ModelSettings, RouteSettings
from hxd.daemon.supervise.lifecycle import TRANSITIONS
from tests.support import ROOT, run_hxd

EXAMPLE = ROOT / "etc/hxd.toml"
PAGE = ROOT / "docs/config.md"
# What systemd sets for a unit with StateDirectory=hxd and so on; the example shows these folders.
SYSTEMD = {
    "STATE_DIRECTORY": "/var/lib/hxd",
    "RUNTIME_DIRECTORY": "/run/hxd",
    "LOGS_DIRECTORY": "/var/log/hxd",
    "CACHE_DIRECTORY": "/var/cache/hxd",
}


def test_generated_docs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/config-docs", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def sections() -> dict[str, type]:
    return {**SECTIONS, "models.NAME": ModelSettings, "routes.NAME": RouteSettings}


@pytest.mark.parametrize("name", sections())
def test_every_setting_of_a_section_is_documented(name: str) -> None:
    part = PAGE.read_text("utf-8").partition(f"## [{name}]\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)` \|", part, re.M)
    assert shown == [setting.name for setting in fields(sections()[name])]
    for setting in fields(sections()[name]):
        assert setting.metadata["help"] in part


def test_the_example_config_passes_hxd_check(tmp_path: Path) -> None:
    (tmp_path / "hxd.toml").write_text(EXAMPLE.read_text("utf-8"))
    folders = {variable: str(tmp_path / variable) for variable in SYSTEMD}
    done = run_hxd("check", "--config", str(tmp_path / "hxd.toml"), **folders)
    assert (done.returncode, done.stderr) == (0, "")
    assert "OK, 1 model" in done.stdout


def uncommented() -> str:
    """The example with the comment sign taken from every key, and from nothing else."""
    return re.sub(r"^#(?=\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.M)


def test_the_example_config_has_every_setting() -> None:
    written = tomllib.loads(uncommented())
    model = written.pop("models")["hxd-demo"]
    declared = {name: [f.name for f in fields(section)] for name, section in SECTIONS.items()}
    assert {name: list(keys) for name, keys in written.items()} == declared
    assert list(model) == [f.name for f in fields(ModelSettings)]


def test_the_values_in_the_example_config_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, folder in SYSTEMD.items():
        monkeypatch.setenv(variable, folder)
    bare, full = tmp_path / "bare/hxd.toml", tmp_path / "full/hxd.toml"
    for file, text in ((bare, EXAMPLE.read_text("utf-8")), (full, uncommented())):
        file.parent.mkdir()
        file.write_text(text)
    defaults, written = config.load(bare), config.load(full)
    for name, section in SECTIONS.items():
        assert getattr(defaults, name) == section()
        assert getattr(written, name) == section()
    model = ModelSettings(source="builtin:demo")
    assert defaults.models == written.models == {"hxd-demo": model}


def test_the_diagram_of_states_is_the_table_of_transitions() -> None:
    text = (ROOT / "hxd/daemon/supervise/DESIGN.md").read_text("utf-8")
    arrows = re.findall(r"^    (\w+) --> (\w+): (.+)$", text, re.M)
    drawn = {(old, event, new) for old, new, events in arrows for event in events.split(", ")}
    assert drawn == {
        (old.value, event.value, new.value) for (old, event), new in TRANSITIONS.items()
    }

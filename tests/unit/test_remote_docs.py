"""docs/remote.md says what the plugin does."""

from __future__ import annotations

import re
import textwrap
import tomllib
from dataclasses import fields
from pathlib import Path

from hxd import config
from plugins.remote import answer, calls, exchange, options, retry, sse
from plugins.remote import faults as faults_module
from tests.support import ROOT

PAGE = (ROOT / "docs/remote.md").read_text("utf-8")
URL = "http://h/v1"


def tables() -> list[str]:
    """Every TOML block of the page, those in lists too."""
    found = re.findall(r"^( *)```toml\n(.*?)^ *```$", PAGE, re.M | re.S)
    return [textwrap.dedent(text) for _, text in found]


def test_the_examples_are_valid_configurations(tmp_path: Path) -> None:
    assert len(tables()) == 6
    for text in tables():
        (tmp_path / "hxd.toml").write_text(text)
        for model in config.load(tmp_path / "hxd.toml").models.values():
            assert model.plugin == "remote"
            read = options.read(model.options)
            assert read.key_env is None or read.key_env in model.environment


def rows(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_option_is_in_the_table_with_its_default() -> None:
    listed = {name.strip("| `"): default for name, _, default, _ in rows("Options")}
    assert set(listed) == {field.name for field in fields(options.Options)}
    shown = {
        name: tomllib.loads(f"x = {d.strip('`')}")["x"] for name, d in listed.items() if "`" in d
    }
    read = options.read({"url": URL, **shown})
    assert read == options.read({"url": URL})
    assert set(shown) == {"headers", "connect", "first_byte", "stall", "retries", "omit"}


def test_every_field_that_may_be_omitted_is_named() -> None:
    (cell,) = [cells[3] for cells in rows("Options") if cells[0].endswith("omit`")]
    assert set(re.findall(r"`(\w+)`", cell)) == options.OMITTABLE


def test_every_code_is_in_the_table() -> None:
    source = "".join(file.read_text() for file in (ROOT / "plugins/remote").glob("*.py"))
    codes = set(re.findall(r'"(remote_\w+)"', source)) - {
        "remote_up", "remote_active", "remote_retries", "remote_failures",
    }  # fmt: skip
    assert codes == {faults_module.KEY_REFUSED, faults_module.BUSY, "remote_quota", "remote_url"}
    assert {code for code in codes if f"| `{code}` |" not in PAGE} == set()


def test_the_numbers_are_those_of_the_code() -> None:
    assert (sse.EVENT_LIMIT, answer.ANSWER_LIMIT, exchange.WHOLE_LIMIT) == (
        1 << 20,
        16 << 20,
        8 << 20,
    )
    assert (exchange.VECTORS_LIMIT, calls.MAX_CALLS) == (64 << 20, 128)
    assert (retry.BASE, retry.LONGEST, retry.SHARE, retry.LEAST) == (0.25, 2.0, 0.2, 3)

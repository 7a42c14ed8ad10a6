"""What the tests of the docs share: fenced blocks of a page, and what a curl command sends."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from tests.support import ROOT, post

DEFAULT_URL = "http://127.0.0.1:8420"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "hxd/daemon/request/DESIGN.md",
    ROOT / "hxd/daemon/supervise/DESIGN.md",
    ROOT / "hxd/daemon/rollout/DESIGN.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Info string and text of every fenced block, in order."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def block(page: Path, info: str) -> str:
    """The only block with this info string."""
    (text,) = [text for found, text in blocks(page) if found == info]
    return text


def commands(page: Path) -> list[str]:
    """The lines of all `sh` blocks without their comments; a continued line counts as one."""
    text = "".join(text for info, text in blocks(page) if info == "sh").replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line]


async def curl(command: str, url: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of what `command` sends, with hxd at `url`. curl itself may not be here."""
    name, target, *options = shlex.split(command)
    assert (name, options[::2]) == ("curl", ["-H", "-d"]), "teach this function the new option"
    header, data = options[1::2]
    key, _, value = header.partition(": ")
    assert target.startswith(DEFAULT_URL)
    status, body, _ = await post(
        url + target.removeprefix(DEFAULT_URL), data.encode(), headers={key: value}
    )
    return status, body

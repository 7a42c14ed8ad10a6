"""Links between pages resolve, and tables about the code name what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hxd import conditions, errors
from hxd.daemon.admin.metrics import Metrics, ModelReading
from hxd.daemon.request.identify import Role
from tests.docs.pages import PAGES
from tests.support import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for target in LINK.findall(page.read_text("utf-8")):
            file = (page.parent / target.partition("#")[0]).resolve()
            ahead += [file, *file.glob("*.md")] if file.is_dir() else [file] * file.is_file()
    assert [page for page in PAGES if page not in reached and page.name != "CHANGELOG.md"] == []


def test_every_error_code_is_in_the_table_of_the_api() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    source = "".join(
        file.read_text("utf-8")
        for folder in ("hxd/daemon/request", "hxd/worker", "hxd/daemon/supervise")
        for file in (ROOT / folder).glob("*.py")
    )
    codes = set(re.findall(r'\bcode="(\w+)"', source))
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes |= {kind.code for kind in classes if issubclass(kind, errors.HxdError) and kind.code}
    codes.discard("unavailable")  # a base; every place that raises it says why
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_role_is_in_the_table_of_the_api() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    assert [role for role in Role if f"| `{role.value}` |" not in text] == []


def test_every_condition_is_in_the_table_of_operations() -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (critical|warning) \|", text, re.M))
    assert rows == {code: one.severity.value for code, one in conditions.TABLE.items()}


def test_every_metric_is_in_a_table_of_the_api_or_of_operations() -> None:
    pages = [ROOT / "docs/api.md", ROOT / "docs/operations.md"]
    text = "".join(page.read_text("utf-8") for page in pages)
    metrics = Metrics(lambda: [ModelReading("m", 0, 0, 0, 0, {"ready": 1}, 0.0, {}, [], 0, [])])
    metrics.answered("/v1/models", "m", 200, 0.1)
    names = set(re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.M))
    names = {name for name in names if not name.endswith("_created")}
    assert {name for name in names if f"`{name}`" not in text} == set()

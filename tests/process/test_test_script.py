"""scripts/test exits with the status of what it ran; its parts are stand-ins of one line here."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LIB = """
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/venv
need_system() { :; }
make_venv() { :; }
"""

PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"--ignore tests/unit"*) echo "the others ran"; exit "$OTHERS" ;;
    *tests/unit*) echo "the units ran"; exit "$UNITS" ;;
    *) echo "ran $*"; exit "$OTHERS" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts/test", scripts)
    (scripts / "lib.sh").write_text(LIB)
    for path, text in {
        scripts / "check": '#!/usr/bin/env bash\nexit "$CHECK"\n',
        tmp_path / "venv/bin/python": PYTHON,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def run(project: Path, *arguments: str, **exits: int) -> subprocess.CompletedProcess[str]:
    status = {name: str(exits.get(name, 0)) for name in ("CHECK", "OTHERS", "UNITS")}
    return subprocess.run(
        [project / "scripts/test", *arguments],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(project), **status},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_all_well_is_zero_and_leaves_nothing_behind(project: Path) -> None:
    before = sorted(project.iterdir())

    done = run(project)

    assert done.returncode == 0, done.stderr
    assert "the others ran" in done.stdout
    assert "the units ran" in done.stdout
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize("part", ["CHECK", "OTHERS", "UNITS"])
def test_a_part_that_fails_gives_its_status_and_the_others_still_run(
    project: Path, part: str
) -> None:
    done = run(project, **{part: 3})

    assert done.returncode == 3
    assert "the others ran" in done.stdout
    assert "the units ran" in done.stdout


def test_arguments_go_to_one_pytest(project: Path) -> None:
    done = run(project, "tests/docs", "-q")

    assert (done.returncode, done.stdout) == (0, "== pytest\nran -m pytest tests/docs -q\n")

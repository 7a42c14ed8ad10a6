"""The demo model keeps what its card promises, asked through a real daemon by its own script."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.timeout(600)
def test_the_versions_of_the_demo_model_are_as_good_as_promised() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/eval_demo.py", "--per-task", "50", "--json"],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert len(scores) == 8
    # The card's numbers are over 200 prompts a task; a quarter of them may be off by a little.
    assert scores["v2-f16"]["overall"] >= 95
    assert scores["v2-q8_0"]["overall"] >= 95
    assert 50 <= scores["v1-f16"]["overall"] <= 85
    assert scores["v2-q2_k"]["overall"] < scores["v2-f16"]["overall"]

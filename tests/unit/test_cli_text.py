"""What `hxctl` prints of names and texts that others have given."""

from __future__ import annotations

import pytest

from hxd.cli.client import Client, fail, printable
from hxd.cli.progress import Meter
from hxd.cli.store_options import print_table

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\u202e\nb"


@pytest.mark.parametrize("text", ["", "phi-3-mini@3", "Grüße 模型 🦙", "a b"])
def test_text_that_is_only_text_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_control_characters_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    spelled = r"a\x1b[2J\x1b]0;owned\x07\r\u202e\nb"
    assert printable(EVIL) == spelled
    assert printable(EVIL, lines=True) == spelled.replace(r"\n", "\n")
    print_table([("from", EVIL)])
    Client(None, None, None, False).show([], ["name"], [{"name": EVIL}])
    with Meter("import") as meter:
        meter.told(f"copying {EVIL}", 0, 0)
    with pytest.raises(SystemExit):
        fail(EVIL, 1)
    out, err = capsys.readouterr()
    assert spelled in out and spelled in err
    assert (out + err).replace("\n", "").isprintable()

"""What the engine sends, in frames that the daemon takes."""

from __future__ import annotations

import pytest

from hxd import wire
from hxd.worker import serve


def logprob(size: int, alternatives: int) -> wire.Logprob:
    return wire.Logprob(1, b"x" * size, -1.0, [(2, b"y" * size, -2.0)] * alternatives)


@pytest.mark.parametrize(
    "deltas",
    [
        [wire.Delta(1, [1, 2], "ab", [], [logprob(8, 20)] * 8192)],
        [wire.Delta(i, [1], "a", [], [logprob(256, 20)] * 20) for i in range(64)],
        [wire.Delta(i, [1], "x" * 16_000) for i in range(256)],
        [wire.Delta(1, [1], "a", [wire.CallDelta(0, "i", "f", "y" * 1000)], [logprob(9, 0)] * 3)],
        [],
    ],
    ids=["one prompt", "many answers", "long texts", "a call", "nothing"],
)
def test_deltas_of_any_size_go_out_in_frames_that_the_daemon_takes(
    deltas: list[wire.Delta],
) -> None:
    expected = {delta.id: (delta.tokens, delta.text, len(delta.logprobs)) for delta in deltas}
    got: dict[int, tuple[list[int], str, int]] = {}
    for frame in serve._frames(deltas):
        assert len(wire.encode(frame)) < wire.TO_DAEMON_LIMIT
        for delta in frame.deltas:
            tokens, text, count = got.get(delta.id, ([], "", 0))
            got[delta.id] = (
                tokens + delta.tokens,
                text + delta.text,
                count + len(delta.logprobs),
            )
    assert got == expected

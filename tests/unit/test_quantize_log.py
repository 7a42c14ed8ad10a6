"""What llama.cpp's quantizer logs becomes a share that is done."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from plugins.llama_cpp.quantize_log import QuantizeLog

MIB = 1 << 20


def tensor(number: int, count: int, size: str = "size =     0.25 MiB ->     0.07 MiB") -> list[str]:
    name = f"[{number:4}/{count:4}] blk.0.ffn_up.weight - [ 256, 512, 1, 1], type = f16, "
    return [name, "converting to q4_K .. ", f"{size}\n"]


def shares(total: int, pieces: Sequence[str]) -> list[float]:
    log = QuantizeLog(total)
    return [share for piece in pieces if (share := log.heard(piece)) is not None]


def test_tensors_count_by_their_bytes() -> None:
    large, small = "size = 3.000 MB", "size =     0.500 MiB ->     0.07 MiB"
    pieces = [*tensor(1, 3, large), *tensor(2, 3, small), *tensor(3, 3, small)]
    assert shares(4 * MIB, pieces) == [0.75, 0.875, 1.0]
    assert shares(4 * MIB, ["".join(pieces)]) == [1.0]
    assert shares(4 * MIB, list("".join(pieces))) == [0.75, 0.875, 1.0]


@pytest.mark.parametrize("total", [0, MIB])
def test_they_count_the_same_where_their_bytes_are_not_told(total: int) -> None:
    size = "done" if total else "size = 9.0 MiB"
    pieces = [piece for number in range(1, 5) for piece in tensor(number, 4, size)]
    assert shares(total, pieces) == [0.25, 0.5, 0.75, 1.0]


def test_a_share_never_shrinks_and_never_passes_the_whole() -> None:
    pieces = [*tensor(1, 4, "size = 900.0 MiB"), *tensor(2, 4, "size"), *tensor(3, 4)]
    assert shares(MIB, pieces) == [1.0]


@pytest.mark.parametrize(
    "line",
    [
        "quantizing tensor 5 of 30\n",
        "[ 5 of 30] a - size = 1.0 MiB\n",
        "[   0/  39] a\n",
        "[  40/  39] a\n",
        "[   1/   0] a\n",
        f"[{'9' * 5000}/{'9' * 5000}] a\n",
        "[   1/  39] no end of the line",
        "x" * 100_000,
        "",
    ],
)
def test_a_log_that_reads_otherwise_tells_nothing(line: str) -> None:
    assert shares(MIB, [line] * 3) == []

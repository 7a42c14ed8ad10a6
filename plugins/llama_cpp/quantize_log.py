"""How far llama.cpp's quantizer is, by what it logs of each tensor. Knows nothing of the library.

Its words are no interface: a log that reads otherwise tells nothing, and never raises.
"""

from __future__ import annotations

import re

# "[  12/ 345] blk.0.ffn_up.weight - [ 256, 512, 1, 1], type = f16, converting to q4_K .. size =
# 0.25 MiB -> 0.07 MiB", in several pieces.
_TENSOR = re.compile(r"\s*\[\s*(\d{1,9})/\s*(\d{1,9})\]")
_SIZE = re.compile(r"\bsize\s*=\s*(\d{1,9}\.\d{1,9})\s*Mi?B")
_LONGEST = 4096
_MIB = 1 << 20
_LEAST = 0.001


class QuantizeLog:
    """`total` is the bytes of all tensors, 0 where nobody knows: then each counts the same."""

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._line = ""
        self._done = 0.0
        self._share = 0.0

    def heard(self, text: str) -> float | None:
        """The share that is done, from 0 to 1, at the end of a line that shows it to have grown."""
        *lines, rest = (self._line + text).split("\n")
        self._line = rest[-_LONGEST:]
        shares = [share for line in lines if (share := self._read(line)) is not None]
        if not shares or max(shares) < self._share + _LEAST:
            return None
        self._share = max(shares)
        return self._share

    def _read(self, line: str) -> float | None:
        tensor = _TENSOR.match(line)
        if tensor is None:
            return None
        number, count = int(tensor[1]), int(tensor[2])
        if not 1 <= number <= count:
            return None
        size = _SIZE.search(line)
        if not self._total or size is None:
            self._total = 0
            return number / count
        self._done += float(size[1]) * _MIB
        return min(1.0, self._done / self._total)

"""What differs between two sets of configuration files, line by line, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

from hxd.config.masking import masked_lines, visible

CONTEXT = 3
# Comparing takes quadratic time at worst, and nobody reads a difference of that size.
MAX_LINES = 20_000


def diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> str:
    """A unified diff of each file that differs; empty when none does.

    Secrets are covered after comparing, so one that changed shows as a line that changed.
    """
    parts = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            parts += [
                f"--- {visible(name) if name in old else '/dev/null'}",
                f"+++ {visible(name) if name in new else '/dev/null'}",
                *_hunks(_Side(old.get(name, b"")), _Side(new.get(name, b""))),
            ]
    return "".join(f"{line}\n" for line in parts)


class _Side:
    """The lines of one file: as they are compared, and as they are shown."""

    def __init__(self, data: bytes) -> None:
        text = data.decode("utf-8", "backslashreplace")
        self.lines = text.split("\n")
        self.shown = [visible(line) for line in masked_lines(text)]
        if self.lines[-1] == "":
            self.lines.pop()
            self.shown.pop()
        else:
            # Else a missing newline at the end would be a difference that nobody sees.
            self.lines[-1] += "\\"
            self.shown[-1] += "  \\ no newline at the end"

    def range(self, start: int, end: int) -> str:
        return f"{start + 1 if end > start else start},{end - start}"


def _hunks(old: _Side, new: _Side) -> Iterator[str]:
    if len(old.lines) + len(new.lines) > MAX_LINES:
        yield f"  ({len(old.lines)} and {len(new.lines)} lines; too many to compare here)"
        return
    compared = SequenceMatcher(None, old.lines, new.lines)
    for group in compared.get_grouped_opcodes(CONTEXT):
        (_, a, _, b, _), (_, _, a_end, _, b_end) = group[0], group[-1]
        yield f"@@ -{old.range(a, a_end)} +{new.range(b, b_end)} @@"
        for tag, a, a_end, b, b_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in new.shown[b:b_end])
                continue
            yield from (f"-{line}" for line in old.shown[a:a_end])
            yield from (f"+{line}" for line in new.shown[b:b_end])

"""Which words of a configuration nobody but its owner should read, and how they are covered.

Protects: what stands under a name such as `api_key`, and the user's part of a URL, in plans, diffs
and logs. Does not protect: a secret under a harmless name, the files themselves, or their copies in
the history, which are kept whole and for their owner only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MASK = "•••"
SECRET = re.compile(r"key|token|secret|pass(?:w|phrase)|credential|authoriz|cookie", re.IGNORECASE)
# Below these the operator names the tables, and "monkey" is a model and no key.
_NAMED = ("models", "routes")

# Up to the last @: whoever forgets to encode one in a password has it covered all the same.
_USER = re.compile(r"(?<=://)[^/\s\"']+(?=@)")
# In a comment. Bounded, since each place where it might begin is tried.
_REMARK = re.compile(
    rf"((?:{SECRET.pattern})[\w-]{{0,64}}[\"']?\s{{0,9}}=\s{{0,9}})\S.*", re.IGNORECASE
)
# A line of a text of many lines may end in "=", as base64 does; then it is no key.
_KEY = re.compile(r"([#\w\s.\"'-]+=)\s*[^\s=]")
_HEADING = re.compile(r"\s*(?:\[{1,2}[\w.-]+\]{1,2}\s*)?")
_TOKEN = re.compile(
    r'''
      (?P<text> """ (?:\\.|[^\\])*? (?:"{3,5}|\Z) | \'\'\' .*? (?:'{3,5}|\Z)
              | " (?:\\[^\n]|[^"\\\n])* (?:"|(?=\n)|\Z|\\) | ' [^'\n]* (?:'|(?=\n)|\Z) )
    | (?P<comment> \#[^\n]*)
    | (?P<newline> \n)
    | (?P<mark> [\[\]{}=,.])
    | (?P<space> [^\S\n]+)
    | (?P<bare> [^\s\[\]{}=,."'\#]+)
    ''',
    re.VERBOSE | re.DOTALL,
)


def masked(name: str, value: Any) -> Any:
    """`value`, as it stands under `name` in some plugin's options, with its secrets covered."""
    if SECRET.search(name):
        return _covered(value)
    if isinstance(value, dict):
        return {key: masked(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked("", item) for item in value]
    return _USER.sub(MASK, value) if isinstance(value, str) else value


def _covered(value: Any) -> Any:
    # Whether there is one at all, and yes or no, gives nothing away.
    return value if value is None or isinstance(value, bool) else MASK


def masked_lines(text: str) -> list[str]:
    """The lines of a TOML file, as many as there are, with its secrets covered.

    Of text that is not valid TOML only keys and headings are left: where its values begin and end
    is anybody's guess.
    """
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return [_skeleton(line) for line in text.split("\n")]
    return _Reader(text).read().split("\n")


def _skeleton(line: str) -> str:
    if _HEADING.fullmatch(line):
        return line
    key = _KEY.match(line)
    return f"{key[1]} {MASK}" if key else MASK


@dataclass
class _Level:
    """A table, an inline table or a list that is open while we read. `path` is where it stands,
    `parts` the key under way, `key` whether one is."""

    kind: str
    path: tuple[str, ...]
    parts: tuple[str, ...] = ()
    key: bool = True

    @property
    def here(self) -> tuple[str, ...]:
        return self.path + self.parts


class _Reader:
    """Follows a TOML text just far enough to know under which key a value stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._levels = [_Level("table", ())]

    def read(self) -> str:
        out = []
        for token in _TOKEN.finditer(self._text):
            match token.lastgroup:
                case "newline" if len(self._levels) == 1 or self._levels[-1].kind == "header":
                    self._end_of_line()
                case "mark":
                    self._mark(token[0])
                case "comment":
                    out.append(_USER.sub(MASK, _REMARK.sub(rf"\1{MASK}", token[0])))
                    continue
                case "text" | "bare":
                    out.append(self._word(token[0]))
                    continue
            out.append(token[0])
        return "".join(out)

    def _word(self, word: str) -> str:
        level = self._levels[-1]
        if level.key:
            level.parts += (_name(word),)
        elif _secret(level.here) and word not in ("true", "false"):
            # A text of many lines leaves as many behind.
            return MASK + "\n" * word.count("\n")
        return _USER.sub(MASK, word)

    def _mark(self, mark: str) -> None:
        level = self._levels[-1]
        match mark:
            case "=":
                level.key = False
            case "," if level.kind == "inline":
                level.parts, level.key = (), True
            case "[" if level.key and not level.parts and len(self._levels) == 1:
                self._levels.append(_Level("header", ()))
            case "[" if not level.key:
                self._levels.append(_Level("list", level.here, key=False))
            case "{" if not level.key:
                self._levels.append(_Level("inline", level.here))
            case "]" if level.kind == "list":
                self._levels.pop()
            case "}" if level.kind == "inline":
                self._levels.pop()

    def _end_of_line(self) -> None:
        level = self._levels[-1]
        if level.kind == "header":
            self._levels[:] = [_Level("table", level.parts)]
        else:
            level.parts, level.key = (), True


def _name(word: str) -> str:
    """A quoted key may be spelled with escapes."""
    try:
        return str(tomllib.loads(f"x={word}")["x"]) if word[0] in "\"'" else word
    except tomllib.TOMLDecodeError:
        return word


def _secret(path: Sequence[str]) -> bool:
    parts = [*path[:1], *path[2:]] if path[:1] and path[0] in _NAMED else path
    return any(SECRET.search(part) for part in parts)


def visible(text: str) -> str:
    """`text` on one line, with what a terminal would obey, or hide, spelled out."""
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text
    )

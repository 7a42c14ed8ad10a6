"""llama.cpp's grammars (GBNF), read.

Protects: the work is linear in the text, and nesting is bounded. Knows no tokens: GBNF's `<[1]>` is
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_TEXT = 128 << 10
MAX_RULES = 4096
MAX_NESTING = 64
MAX_REPEAT = 10_000
MAX_LITERAL = 4096

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\r\n]*)
    |(?P<name>[A-Za-z0-9_-]+)(?P<defines>[ \t\r\n]*::=)?
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<set>\[(?:[^\]\\]|\\.)*\])
    |(?P<repeat>[*+?]|\{[ \t\r\n]*[0-9]+[ \t\r\n]*(?:,[ \t\r\n]*[0-9]*[ \t\r\n]*)?\})
    |(?P<other>[().|])""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
SHOWN = 40


class NoGrammar(ValueError):
    """The text is not a grammar; the message says where."""


@dataclass
class Text:
    """A literal, `.` or a set of characters as a part of a Lark rule; `weight` in characters."""

    lark: str
    weight: int = 1


@dataclass
class Reference:
    name: str


@dataclass
class Repeat:
    what: Node
    least: int
    most: int | None


@dataclass
class Choice:
    """A rule's body or a group: alternatives, each a sequence."""

    options: list[list[Node]] = field(default_factory=lambda: [[]])


Node: TypeAlias = Text | Reference | Repeat | Choice


def read(text: str) -> dict[str, Choice]:
    """The rules by name, `root` among them and all that they name. Raises `NoGrammar`."""
    if len(text) > MAX_TEXT:
        raise NoGrammar(f"{len(text)} characters; the limit is {MAX_TEXT}")
    rules: dict[str, Choice] = {}
    groups: list[Choice] = []
    named: dict[str, int] = {}
    for found in _tokens(text):
        kind, at = found.lastgroup, found.start()
        if kind == "defines":
            name = found["name"]
            if len(groups) > 1:
                raise _wrong(text, at, "a group is still open")
            if name in rules:
                raise _wrong(text, at, f"the rule {name[:SHOWN]!r} is there already")
            if len(rules) == MAX_RULES:
                raise NoGrammar(f"more than {MAX_RULES} rules")
            rules[name] = Choice()
            groups = [rules[name]]
            continue
        if not groups:
            raise _wrong(text, at, "expected a rule, such as: root ::= …")
        sequence = groups[-1].options[-1]
        match kind, found.group():
            case "name", name:
                sequence.append(Reference(name))
                named.setdefault(name, at)
            case "text", spelled:
                said = "".join(_characters(text, at + 1, spelled[1:-1]))
                if len(said) > MAX_LITERAL:
                    raise _wrong(text, at, f"a text of more than {MAX_LITERAL} characters")
                sequence.append(Text(json.dumps(said, ensure_ascii=False), len(said)))
            case "set", spelled:
                sequence.append(Text(_set(text, at, spelled[1:-1])))
            case _, ".":
                sequence.append(Text(r"/[\x{0}-\x{10FFFF}]/"))
            case "repeat", spelled:
                if not sequence:
                    raise _wrong(text, at, "there is nothing to repeat")
                sequence[-1] = _repeat(text, at, sequence[-1], spelled)
            case _, "|":
                groups[-1].options.append([])
            case _, "(":
                if len(groups) > MAX_NESTING:
                    raise _wrong(text, at, f"groups are nested deeper than {MAX_NESTING}")
                group = Choice()
                sequence.append(group)
                groups.append(group)
            case _, ")":
                if len(groups) == 1:
                    raise _wrong(text, at, "no group is open")
                groups.pop()
    if len(groups) > 1:
        raise _wrong(text, len(text), "a group is still open")
    if "root" not in rules:
        raise NoGrammar("there is no rule `root`")
    for name, at in named.items():
        if name not in rules:
            raise _wrong(text, at, "there is no such rule")
    return rules


def _tokens(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _wrong(text, at, "this is no GBNF")
        if found.lastgroup != "skip":
            yield found
        at = found.end()


def _characters(text: str, at: int, spelled: str) -> Iterator[str]:
    """The characters that `spelled` means, which stands at `at`."""
    for found in _ESCAPE.finditer(spelled):
        escaped, plain = found[4], found[5]
        if plain is not None:
            yield plain
        elif escaped is not None:
            if escaped not in _ESCAPES:
                raise _wrong(text, at + found.start(), "no such escape")
            yield _ESCAPES[escaped]
        else:
            code = int(found[1] or found[2] or found[3], 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise _wrong(text, at + found.start(), "no such character")
            yield chr(code)


def _set(text: str, at: int, spelled: str) -> str:
    """A set of characters as a regular expression."""
    negated = spelled.startswith("^")
    body = spelled[negated:]
    start = at + 1 + negated
    characters = list(_characters(text, start, body))
    ranges = []
    i = 0
    while i < len(characters):
        low = high = characters[i]
        i += 1
        if i + 1 < len(characters) and characters[i] == "-":
            high = characters[i + 1]
            i += 2
        if low > high:
            raise _wrong(text, at, "a range is the wrong way round")
        ranges.append(f"\\x{{{ord(low):X}}}-\\x{{{ord(high):X}}}")
    if not ranges:
        raise _wrong(text, at, "a set without characters")
    return f"/[{'^' * negated}{''.join(ranges)}]/"


def _repeat(text: str, at: int, what: Node, spelled: str) -> Repeat:
    if isinstance(what, Repeat):
        raise _wrong(text, at, "this is repeated already; a group may be repeated again")
    if spelled in ("*", "+", "?"):
        return Repeat(what, int(spelled == "+"), 1 if spelled == "?" else None)
    numbers = [number.strip() for number in spelled[1:-1].split(",")]
    if any(len(number) > 6 or int(number or 0) > MAX_REPEAT for number in numbers):
        raise _wrong(text, at, f"more than {MAX_REPEAT} repetitions")
    least = int(numbers[0])
    most = least if len(numbers) == 1 else int(numbers[1]) if numbers[1] else None
    if most is not None and most < least:
        raise _wrong(text, at, "fewer at most than at least")
    return Repeat(what, least, most)


def _wrong(text: str, at: int, message: str) -> NoGrammar:
    line = text.count("\n", 0, at) + 1
    return NoGrammar(f"line {line}: {message}, at {text[at : at + SHOWN]!r}")

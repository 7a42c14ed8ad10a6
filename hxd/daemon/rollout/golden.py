"""Golden prompts: what a model is asked before and while a version is tried, and what is right.

Reads an operator's file and judges answers; who asks, and when, is not known here. Pure.

An expectation is met or not, letter by letter. No other model is asked for its opinion: a judge
that drifts is no measure.
"""

from __future__ import annotations

import enum
import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from hxd.daemon.rollout.pattern import MOST_TEXT, Pattern, PatternError
from hxd.errors import nearest

MOST_BYTES = 1 << 20
MOST_PROMPTS = 1000
MOST_MESSAGES = 32
MOST_CONTENT = 1 << 14  # characters, of all messages of a prompt together
MOST_EXPECTED = 2048  # characters: shorter than what is looked at, so that no cut looks right
MOST_CONTAINED = 16
MOST_TOKENS = 1024
USUAL_TOKENS = 64
ROLES = ("system", "user", "assistant")
_T = TypeVar("_T", bound=msgspec.Struct)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class GoldenError(Exception):
    """The file can't be used; the message names the prompt and what is wrong with it."""


class Outcome(enum.StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"  # the model declined, or said nothing
    FAILED = "failed"  # there is no answer


@dataclass(frozen=True)
class Prompt:
    """One question. At most one of `expect`, `pattern` and `contains` is set; without any, the
    answer only has to be sane. A version that gets a `required` one wrong is not wanted, whatever
    else it gets right."""

    id: str
    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int = USUAL_TOKENS
    required: bool = False
    expect: str | None = None
    pattern: Pattern | None = None
    contains: tuple[str, ...] = ()

    def chat(self) -> list[dict[str, str]]:
        """The messages as a chat request has them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def expects(self) -> bool:
        return self.expect is not None or self.pattern is not None or bool(self.contains)

    def _met_by(self, text: str) -> bool:
        if self.expect is not None:
            return text == self.expect
        if self.pattern is not None:
            return self.pattern.found_in(text)
        return bool(self.contains) and all(part in text for part in self.contains)


@dataclass(frozen=True)
class Golden:
    """All prompts of a model. A version that is right about less than `floor` of them (0 to 1) is
    not wanted, however the version before it did."""

    prompts: tuple[Prompt, ...]
    floor: float = 0.0

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(prompt.id for prompt in self.prompts if prompt.required)

    def first(self, count: int) -> Golden:
        """The first prompts, and all required ones."""
        some = self.prompts[:count]
        more = tuple(prompt for prompt in self.prompts[count:] if prompt.required)
        return (
            self
            if len(some) + len(more) == len(self.prompts)
            else replace(self, prompts=some + more)
        )

    def without(self, ids: Collection[str]) -> Golden:
        """Those with other ids."""
        return replace(self, prompts=tuple(p for p in self.prompts if p.id not in ids))


# --- the file


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    id: str | None = None
    text: str | None = None
    messages: list[_Message] | None = None
    expect: str | None = None
    pattern: str | None = None
    contains: list[str] | None = None
    max_tokens: int = USUAL_TOKENS
    required: bool = False


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    floor: float = 0.0


def parse(data: bytes) -> Golden:
    """A file of golden prompts, which is TOML; raises `GoldenError`."""
    if len(data) > MOST_BYTES:
        raise GoldenError(f"{len(data)} bytes; at most {MOST_BYTES} are read")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise GoldenError(f"not valid TOML: {error}") from None
    _known(raw, ("prompt", "limits"), "")
    limits = _converted(raw.get("limits", {}), _Limits, "[limits]")
    if not 0.0 <= limits.floor <= 1.0:
        raise GoldenError(f"[limits] floor: {limits.floor:g} is not a share from 0 to 1")
    entries = raw.get("prompt", [])
    if not isinstance(entries, list) or not entries:
        raise GoldenError("no prompts; each begins with a line [[prompt]]")
    if len(entries) > MOST_PROMPTS:
        raise GoldenError(f"{len(entries)} prompts; at most {MOST_PROMPTS} are allowed")
    prompts: dict[str, Prompt] = {}
    for number, entry in enumerate(entries, start=1):
        prompt = _prompt(entry, number)
        if prompt.id in prompts:
            raise GoldenError(f"prompt {prompt.id}: number {number} has the id of an earlier one")
        prompts[prompt.id] = prompt
    return Golden(tuple(prompts.values()), limits.floor)


def _prompt(raw: object, number: int) -> Prompt:
    given = raw.get("id") if isinstance(raw, dict) else None
    where = f"prompt {given if isinstance(given, str) else number}"
    entry = _converted(raw, _Entry, where)
    if entry.id is not None and not _ID.fullmatch(entry.id):
        raise GoldenError(
            f"prompt {number}: id {entry.id[:80]!r}: use up to 64 of A-Z a-z 0-9 . _ -"
        )
    if (entry.text is None) == (entry.messages is None):
        raise GoldenError(f"{where}: needs either text or messages")
    said = entry.messages or ([] if entry.text is None else [_Message("user", entry.text)])
    messages = tuple((message.role, message.content) for message in said)
    _check_messages(messages, where)
    if not 1 <= entry.max_tokens <= MOST_TOKENS:
        raise GoldenError(f"{where}: max_tokens {entry.max_tokens} is not from 1 to {MOST_TOKENS}")
    wanted = [
        name for name in ("expect", "pattern", "contains") if getattr(entry, name) is not None
    ]
    if len(wanted) > 1:
        raise GoldenError(f"{where}: {' and '.join(wanted)} can't both be set")
    expect = None if entry.expect is None else entry.expect.strip()
    contains = tuple(entry.contains or ())
    if expect == "" or any(not part for part in contains) or entry.contains == []:
        raise GoldenError(f"{where}: {wanted[0]} is empty")
    if len(contains) > MOST_CONTAINED:
        raise GoldenError(f"{where}: contains has {len(contains)} parts; at most {MOST_CONTAINED}")
    if max(map(len, (expect or "", *contains))) > MOST_EXPECTED:
        raise GoldenError(f"{where}: {wanted[0]} is longer than {MOST_EXPECTED} characters")
    try:
        pattern = None if entry.pattern is None else Pattern(entry.pattern)
    except PatternError as error:
        raise GoldenError(f"{where}: {error}") from None
    return Prompt(
        id=entry.id or f"prompt-{number}",
        messages=messages,
        max_tokens=entry.max_tokens,
        required=entry.required,
        expect=expect,
        pattern=pattern,
        contains=contains,
    )


def _check_messages(messages: Sequence[tuple[str, str]], where: str) -> None:
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise GoldenError(f"{where}: {len(messages)} messages; 1 to {MOST_MESSAGES} are allowed")
    for role, _ in messages:
        if role not in ROLES:
            raise GoldenError(f"{where}: role {role[:80]!r} is none of {', '.join(ROLES)}")
    if messages[-1][0] != "user":
        raise GoldenError(f"{where}: the last message is not the user's")
    if not messages[-1][1].strip():
        raise GoldenError(f"{where}: the question is empty")
    if (length := sum(len(content) for _, content in messages)) > MOST_CONTENT:
        raise GoldenError(f"{where}: {length} characters; at most {MOST_CONTENT} are allowed")


def _converted(raw: object, kind: type[_T], where: str) -> _T:
    if isinstance(raw, dict):
        _known(raw, kind.__struct_fields__, f"{where}: ")
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise GoldenError(f"{where}: {error}") from None


def _known(raw: dict[str, Any], names: Iterable[str], where: str) -> None:
    for name in raw:
        if name not in names:
            raise GoldenError(f"{where}unknown key {name[:80]!r}.{nearest(name[:80], names)}")


# --- answers

# A model that declines says so in its first words; found in lower case, with straight quotes.
DECLINES = (
    "as an ai",
    "i am not able to",
    "i am sorry, but",
    "i am unable to",
    "i apologize, but",
    "i can't assist",
    "i can't do that",
    "i can't help",
    "i can't provide",
    "i cannot assist",
    "i cannot do that",
    "i cannot help",
    "i cannot provide",
    "i must decline",
    "i won't",
    "i'm not able to",
    "i'm sorry, but",
    "i'm unable to",
)
_FIRST_WORDS = 120  # characters
# Of no use as text: so many times the same, one after the other.
_STUCK_WORDS = 6
_STUCK_UNITS = 4
_LEAST_STUCK = 8  # characters; "no no" and "..." are answers


def judge(prompt: Prompt, answer: str | None, finish: str | None = None) -> Outcome:
    """What an answer is worth. `answer` is None if there was an error instead; `finish` is the
    API's `finish_reason`.

    An expectation that is met counts first: who quotes a refusal on demand has not refused.
    White space around the answer never counts, and of a long one only the beginning is looked at.
    """
    if answer is None or finish == "error":
        return Outcome.FAILED
    text = answer.strip()[:MOST_TEXT]
    if prompt._met_by(text):
        return Outcome.RIGHT
    if not text or finish == "content_filter" or declines(text):
        return Outcome.REFUSED
    return Outcome.RIGHT if not prompt.expects and sane(text) else Outcome.WRONG


def declines(text: str) -> bool:
    """Whether one of `DECLINES` is among the first words."""
    first = text[:_FIRST_WORDS].lower().replace("\u2019", "'")
    return any(phrase in first for phrase in DECLINES)


def sane(text: str) -> bool:
    """Whether this looks like something that was said: no control characters, nothing that was no
    UTF-8 (but for a last character that the limit of tokens has cut), and not one thing over and
    over."""
    text = text.strip().rstrip("\ufffd")
    if not text or any(_unprintable(char) for char in text):
        return False
    return not _stuck(text)


def _unprintable(char: str) -> bool:
    return char == "\ufffd" or (unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n\r")


def _stuck(text: str) -> bool:
    """Whether a word comes `_STUCK_WORDS` times in a row, or all of the text is one unit
    `_STUCK_UNITS` times or more (of the last, a part is enough)."""
    run, before = 0, ""
    for word in text.split():
        run = run + 1 if word == before else 1
        before = word
        if run == _STUCK_WORDS:
            return True
    return len(text) >= _LEAST_STUCK and _period(text) * (_STUCK_UNITS - 1) < len(text)


def _period(text: str) -> int:
    """The length of the shortest unit whose repetition the text is; its own length if none is.

    The failure function of Knuth, Morris and Pratt ("Fast pattern matching in strings", SIAM
    Journal on Computing 6, 1977): the text less its longest border.
    """
    border = [0] * len(text)
    for at in range(1, len(text)):
        length = border[at - 1]
        while length and text[at] != text[length]:
            length = border[length - 1]
        border[at] = length + (text[at] == text[length])
    return len(text) - border[-1]


_SANITY_TOKENS = 24
# For models that come without golden prompts. They ask for nothing that a model must know, since
# nothing is known about the model; half of them must look like answers.
DEFAULT = Golden(
    tuple(
        Prompt(id=f"sane-{name}", messages=(("user", text),), max_tokens=_SANITY_TOKENS)
        for name, text in (
            ("hello", "Say hello."),
            ("sum", "What is two plus two?"),
            ("colour", "Name a colour."),
            ("day", "Which day comes after Monday?"),
            ("sea", "Write one sentence about the sea."),
            ("sunrise", "Complete this sentence: The sun rises in the"),
            ("french", "Translate into French: Good morning."),
            ("animals", "List three animals."),
        )
    ),
    floor=0.5,
)

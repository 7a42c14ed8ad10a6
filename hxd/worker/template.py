"""Chat templates: from messages to one prompt, in a sandbox.

A template comes from a model file and may be hostile. Protects: Python's internals and the file
system (Jinja's immutable sandbox), memory (products of strings and the whole output are bounded),
time (checked at every piece of output and in every `range`). Does not protect against nested loops
over a very long conversation that give no output, nor against filters that pad to a huge width.
"""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hxd.hookspecs import RequestRefused
from hxd.wire import Message

MAX_SECONDS = 2.0
MAX_OUTPUT = 32 << 20
MAX_REPEATED = 1 << 20
MAX_RANGE = 100_000

# Used where a model brings no template: names of the roles in plain words.
PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class _Clock:
    """When the rendering at hand must have ended."""

    def __init__(self) -> None:
        self.deadline = 0.0

    def start(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError("it takes too long")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Bounds what a few characters of template can blow up; raises `SecurityError`."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_small(left) and _small(right)):
            raise SecurityError("a power of large numbers")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                repeats = isinstance(value, Sized) and isinstance(times, int)
                if repeats and len(value) * times > MAX_REPEATED:
                    raise SecurityError("a product of great length")
        return super().call_binop(context, operator, left, right)


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1000


class _Range:
    """`range` with an eye on the clock."""

    def __init__(self, clock: _Clock, *arguments: int) -> None:
        self._clock = clock
        self._range = range(*arguments)
        if len(self._range) > MAX_RANGE:
            raise SecurityError(f"a range of more than {MAX_RANGE}")

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[int]:
        for i in self._range:
            self._clock.check()
            yield i


def _raise(message: str) -> None:
    """`raise_exception` of the Hugging Face templates: the conversation is at fault."""
    raise RequestRefused(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class ChatTemplate:
    """One model's template. `special_texts`: spellings of its control tokens."""

    def __init__(self, source: str | None, *, bos: str, eos: str, special_texts: Iterable[str]):
        self._clock = _Clock()
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["range"] = partial(_Range, self._clock)
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._template = environment.from_string(source or PLAIN)
        self._bos, self._eos = bos, eos
        self._special = sorted((text for text in special_texts if len(text) > 1), key=len)
        # Cuts a control token's spelling inside a message in two. Unguessable, so that no message
        # can contain it and no cut can be removed.
        self._cut = f"\ue000{secrets.token_hex(8)}\ue000"

    def render(self, messages: Sequence[Message]) -> list[str]:
        """The prompt in pieces that must be tokenized one by one and joined.

        Nearly always one piece; where a message spells out a control token, the spelling is cut
        so that it stays plain text. Raises `RequestRefused` when the template refuses the
        conversation.
        """
        plain = [self._plain(message) for message in messages]
        self._clock.start()
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=plain,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
            ):
                parts.append(part)
                size += len(part)
                self._clock.check()
                if size > MAX_OUTPUT:
                    raise SecurityError("it gives too much text")
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise RequestRefused(
                f"the model's chat template does not take this conversation: {error}"
            ) from None
        return "".join(parts).split(self._cut)

    def _plain(self, message: Message) -> dict[str, Any]:
        rendered = {"role": message.role, "content": self._harmless(message.content)}
        if message.name is not None:
            rendered["name"] = self._harmless(message.name)
        return rendered

    def _harmless(self, said: str) -> str:
        for text in self._special:
            if text in said:
                said = said.replace(text, f"{text[:1]}{self._cut}{text[1:]}")
        return said

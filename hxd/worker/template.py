"""Chat templates: from messages to one prompt, in a sandbox.

A template comes from a model file and may be hostile. Protects: Python's internals and the file
system (Jinja's immutable sandbox), memory (products of strings and the whole output are bounded),
time (checked at every piece of output and in every `range`). Does not protect against nested loops
over a very long conversation that give no output, nor against filters that pad to a huge width.

What the client sends (messages, tools, arguments, results, template values) is plain text to the
tokenizer, whatever it spells. Does not protect against a template that itself puts a control token
together from pieces of what a client sent, by `replace` for example.
"""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property, partial
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hxd.hookspecs import RequestRefused
from hxd.wire import Message, Tools
from hxd.worker.tools import generic
from hxd.worker.tools.conversation import cleaned, conversation
from hxd.worker.tools.family import Family, detect

MAX_SECONDS = 2.0
MAX_OUTPUT = 32 << 20
MAX_REPEATED = 1 << 20
MAX_RANGE = 100_000
MAX_INDENT = 16

# Used where a model brings no template: names of the roles in plain words.
PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


# What a template's own code may end in: it was written for other conversations, or by an enemy.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
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


class _Generation(Extension):
    """`{% generation %}` of the transformers library, which marks what to train on; its body is
    rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    """`raise_exception` of the Hugging Face templates: the conversation is at fault."""
    raise RequestRefused(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` of the Hugging Face templates: no escapes for HTML, unlike Jinja's own."""
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=None if indent is None else max(0, min(int(indent), MAX_INDENT)),
        separators=None if separators is None else (separators[0], separators[1]),
        sort_keys=bool(sort_keys),
    )


class ChatTemplate:
    """One model's template. `special_texts`: spellings of its control tokens. `tool_template`:
    another one for conversations with tools. `family`: how the model calls tools; seen from the
    template if not given."""

    def __init__(
        self,
        source: str | None,
        *,
        bos: str,
        eos: str,
        special_texts: Iterable[str],
        tool_template: str | None = None,
        family: Family | None = None,
    ):
        self._clock = _Clock()
        environment = self._environment()
        self._template = environment.from_string(source or PLAIN)
        self._tool_template = environment.from_string(tool_template) if tool_template else None
        special = set(special_texts)
        self._family = family or detect(tool_template or source, special)
        self._own = {"add_generation_prompt": True, "bos_token": bos, "eos_token": eos}
        self._special = sorted((text for text in special if len(text) > 1), key=len)
        self._starts = tuple({text[:1] for text in self._special})
        # Cuts a control token's spelling inside a message in two. Unguessable, so that no message
        # can contain it and no cut can be removed; digits, which JSON and case leave alone.
        self._cut = f"{secrets.randbelow(10**40):040}"

    def _environment(self) -> Environment:
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["range"] = partial(_Range, self._clock)
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        return environment

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """The prompt in pieces that must be tokenized one by one and joined.

        Nearly always one piece; where a message spells out a control token, the spelling is cut
        so that it stays plain text. `tools` must have been checked; they are shown unless none may
        be called. `values` are further variables for the template. Raises `RequestRefused` when
        the template refuses the conversation, or a value has the name of one of its own variables.
        """
        given = self._values(values or {})
        family, clean = self._family, self._harmless
        if not family.native:
            rendered = generic.conversation(
                family, messages, tools, clean, takes_system=self._takes_system
            )
            variables = {**given, "messages": rendered, "tools": self._no_tools}
            return self._generate(self._template, variables)
        rendered, shown = conversation(family, messages, tools, clean)
        template = self._template
        shown = shown or self._no_tools
        if self._tool_template is not None and (
            shown or any(message.tool_calls or message.role == "tool" for message in messages)
        ):
            # Made for conversations with tools, it may not expect that there are none.
            template, shown = self._tool_template, shown or []
        return self._generate(template, {**given, "messages": rendered, "tools": shown})

    def _generate(self, template: Template, variables: dict[str, Any]) -> list[str]:
        self._clock.start()
        parts: list[str] = []
        size = 0
        try:
            for part in template.generate({**variables, **self._own}):
                parts.append(part)
                size += len(part)
                self._clock.check()
                if size > MAX_OUTPUT:
                    raise SecurityError("it gives too much text")
        except _FAULTS as error:
            raise RequestRefused(
                f"the model's chat template does not take this conversation: {error}"
            ) from None
        return "".join(parts).split(self._cut)

    @cached_property
    def _no_tools(self) -> list[dict[str, Any]] | None:
        """What `tools` must be where there are none: nothing, or an empty list for a template that
        goes through it in any case."""
        return None if self._renders(["user"], None) or not self._renders(["user"], []) else []

    @cached_property
    def _takes_system(self) -> bool:
        """Whether what a system message says reaches the prompt."""
        return self._renders(["system", "user"], self._no_tools)

    def _renders(self, roles: list[str], tools: list[dict[str, Any]] | None) -> bool:
        """Whether a conversation of these roles is rendered, and the first message is in it."""
        contents = [self._cut, *"?" * (len(roles) - 1)]
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        try:
            return len(self._generate(self._template, {"messages": messages, "tools": tools})) > 1
        except RequestRefused:
            return False

    def _values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        for name in ("messages", "tools", *self._own):
            if name in values:
                raise RequestRefused(
                    f"chat_template_kwargs: {name} is not for the client to set",
                    "chat_template_kwargs",
                )
        try:
            found: dict[str, Any] = cleaned(dict(values), self._harmless)
        except ValueError as error:
            raise RequestRefused(f"chat_template_kwargs: {error}", "chat_template_kwargs") from None
        return found

    def _harmless(self, said: str) -> str:
        if not any(start in said for start in self._starts):
            return said
        for text in self._special:
            if text in said:
                said = said.replace(text, f"{text[:1]}{self._cut}{text[1:]}")
        return said

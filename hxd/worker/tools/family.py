"""Families of models by how they call tools, told apart by what stands in the chat template.

A template that takes tools but asks for calls in a form that is not known here (XML arguments,
Python calls, channels) counts as one without: the generic family describes the tools in words.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, replace
from enum import Enum


class Layout(Enum):
    """What stands between `opening` and `closing`."""

    OBJECT = "one call"  # {"name": …, "arguments": {…}}
    ARRAY = "an array of calls"  # [{…}, {…}]
    NAMED = "a name and its arguments"  # name[ARGS]{…}
    WRAPPED = "an object around an array"  # {"tool_calls": [{…}, {…}]}


WRAPPER = "tool_calls"
CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"


@dataclass(frozen=True)
class Family:
    """How a model calls tools.

    `native`: the template itself takes `tools`. `opening`, `closing`: what stands around calls,
    perhaps control tokens; `bare`: a call may also begin the answer without its opening.
    `arguments`: the key of the arguments. `single`: one call per message is all that the template
    takes. `short_ids`: ids are 9 alphanumerics. `call_ids`: a call's id may stand before `[ARGS]`.
    `arguments_as_text`: the template prints the arguments as they stand. `inline`: the template
    prints nothing but the contents of messages, so calls are spelled out there; `tools_in_system`:
    it reads the tools from the system message. `results`: role of results in the template.
    """

    name: str
    native: bool = True
    layout: Layout = Layout.OBJECT
    opening: str = ""
    closing: str = ""
    bare: bool = False
    arguments: str = "arguments"
    single: bool = False
    short_ids: bool = False
    call_ids: bool = False
    arguments_as_text: bool = False
    inline: bool = False
    tools_in_system: bool = False
    results: str = "tool"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts in an answer that `parse.Parser` must get to see. Where one is a control token,
        whose text is empty otherwise, it must be spelled out for the parser."""
        named = (ARGS, CALL_ID) if self.layout is Layout.NAMED else ()
        return tuple(text for text in (self.opening, self.closing, *named) if text)


GENERIC = Family("generic", native=False, layout=Layout.WRAPPED, bare=True)
HERMES = Family("hermes", opening="<tool_call>", closing="</tool_call>")
LLAMA3 = Family("llama3", opening="<|python_tag|>", bare=True, arguments="parameters", single=True)
MISTRAL = Family("mistral", layout=Layout.ARRAY, opening="[TOOL_CALLS]", short_ids=True)
MISTRAL_NAMED = Family("mistral-named", layout=Layout.NAMED, opening="[TOOL_CALLS]", short_ids=True)
PHI = Family(
    "phi",
    layout=Layout.ARRAY,
    opening="<|tool_call|>",
    closing="<|/tool_call|>",
    inline=True,
    tools_in_system=True,
)
GRANITE = Family("granite", layout=Layout.ARRAY, opening="<|tool_call|>", inline=True)

# Templates that use Hermes' tags around something other than {"name": …, "arguments": …}.
_NOT_HERMES = re.compile(r"<function=|<parameter=|<arg_key>|<invoke|<tool_calls>")
_ENCODED = re.compile(r"(arguments|function|tool_call)['\"\]]*\s*\|\s*(tojson|items)")
_PHI_TOOLS = re.compile(r"message(\.|\[['\"])tools\b")
_PHI_RESULTS = "<|tool_response|>"


def detect(chat_template: str | None, special_tokens: Container[str]) -> Family:
    """The family of a model with this template; `GENERIC` where it shows no other."""
    template = chat_template or ""
    found = _native(template, special_tokens)
    if found.native and not found.inline and not _ENCODED.search(template):
        return replace(found, arguments_as_text=True)
    return found


def _native(template: str, special_tokens: Container[str]) -> Family:
    if "tools" not in template:
        return GENERIC
    if MISTRAL.opening in template and "[AVAILABLE_TOOLS]" in template:
        if ARGS in template:
            return replace(MISTRAL_NAMED, call_ids=CALL_ID in template)
        return MISTRAL
    if HERMES.opening in template and HERMES.closing in template:
        # In a Jinja string the quotes around the key may be escaped.
        plain = "arguments" in template and not _NOT_HERMES.search(template)
        return HERMES if plain else GENERIC
    if "ipython" in template and '"parameters": ' in template and "tool_calls" in template:
        return LLAMA3
    if "<|tool|>" in template and _PHI_TOOLS.search(template):
        known = _PHI_RESULTS in special_tokens
        return replace(PHI, results="tool_response") if known else PHI
    if GRANITE.opening in template and "<|start_of_role|>" in template:
        return GRANITE
    return GENERIC

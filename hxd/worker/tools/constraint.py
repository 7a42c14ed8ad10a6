"""Grammars for tool calls, in llguidance's Lark dialect: a call is always JSON for a tool that
exists.

Left to the model, nothing is forced before a call; after one only further calls may follow. White
space inside of the JSON is what `json.dumps` would write or less, so that a model can't lose
itself in newlines. Parameters without a schema are none at all, and parameters that a schema does
not name are left out, even where it would allow more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hxd.wire import Constraint, Tool, Tools
from hxd.worker.tools.family import ARGS, CALL_ID, WRAPPER, Family, Layout
from hxd.worker.tools.schema import DATA

# A small model may not find the end of a list of calls.
MAX_CALLS = 32
_GUIDANCE = {
    # What the engine doesn't know is left to the model: tools come from everywhere.
    "lenient": True,
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
_TERMINALS = r"""
GAP: /[ \n]{1,2}/
TEXT: /[ \t\r\n]*[^ \t\r\n{](.|\n)*/
ID: /[A-Za-z0-9]{9}/
NEXT_ID: /, "id": "[A-Za-z0-9]{9}"/
"""
# Notes for readers, which only make the grammar longer.
_NOTES = frozenset({"$schema", "$comment", "title", "description", "x-guidance"})
# What regular languages can't do, and neither can the engine: looking around, back references.
_IRREGULAR = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<")
_COMPOSED = frozenset(
    {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
)
# Keywords whose keys are the client's own names.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})


def constraint(
    family: Family, tools: Tools, special_tokens: Mapping[str, int]
) -> Constraint | None:
    """What holds an answer to `tools`, which must have been checked; None where none may be
    called. With a trigger, the grammar begins right behind it."""
    functions = _functions(tools)
    if not functions:
        return None
    lark = _Lark(family, special_tokens)
    several = tools.parallel and not tools.named and not family.single
    body = lark.body(functions, several=several)
    if tools.named or tools.choice == "required":
        return Constraint("lark", lark.grammar(body if family.bare else lark.opened(body)))
    if family.bare:
        # Behind a control token, text is told from a call; behind its mere spelling it is not.
        tagged = f" | TEXT? {lark.opened(body)}" if family.opening in special_tokens else ""
        free = "TEXT?" if family.native else lark.free()
        return Constraint("lark", lark.grammar(f"{free} | GAP? {body}{tagged}"))
    return Constraint("lark", lark.grammar(body), trigger=family.opening)


def _functions(tools: Tools) -> list[Tool]:
    if tools.named:
        return [tool for tool in tools.functions if tool.name == tools.choice]
    return [] if tools.choice == "none" else tools.functions


class _Lark:
    """Rules that `body` collects for one grammar."""

    def __init__(self, family: Family, special_tokens: Mapping[str, int]) -> None:
        self._family = family
        self._special = special_tokens
        self._rules: list[str] = []

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules, _TERMINALS])

    def opened(self, body: str) -> str:
        return f"{self._marker(self._family.opening)} {body}"

    def free(self) -> str:
        """What is no call: text, and anything behind a control token. Templates that are not
        native here include those whose answers have such tokens between their parts."""
        ids = ",".join(map(str, sorted(set(self._special.values()))))
        return f"TEXT? (<[{ids}]> <[*]>*)?" if ids else "TEXT?"

    def body(self, functions: list[Tool], *, several: bool) -> str:
        """The name of a rule: what stands behind an opening, its closing included."""
        calls = [self._call(i, tool) for i, tool in enumerate(functions)]
        self._rule("call", " | ".join(calls))
        more = f"{{0,{MAX_CALLS - 1}}}" if several else "{0}"
        closing = self._marker(self._family.closing)
        following = f'("," GAP? call){more}' if several else ""
        match self._family.layout:
            case Layout.OBJECT | Layout.NAMED if self._family.bare:
                self._rule("body", "call")
            case Layout.OBJECT:
                self._rule("one", f"GAP? call GAP? {closing}")
                self._rule("body", "one" + self._again("one", more, several))
            case Layout.NAMED:
                self._rule("body", "call" + self._again("call", more, several))
            case Layout.ARRAY:
                self._rule("body", f'GAP? "[" call {following} "]" {closing}')
            case Layout.WRAPPED:
                opening = _quoted(f'{{"{WRAPPER}": [')
                self._rule("body", f'{opening} call {following} "]}}"')
        return "body"

    def _again(self, rule: str, more: str, several: bool) -> str:
        return f" (GAP? {self.opened(rule)}){more}" if several else ""

    def _call(self, index: int, tool: Tool) -> str:
        name, family = f"call_{index}", self._family
        schema = json.dumps(_arguments(tool.parameters), ensure_ascii=False)
        if family.layout is Layout.NAMED:
            id = f"({self._marker(CALL_ID)} ID)?" if family.call_ids else ""
            self._rule(name, f"{_quoted(tool.name)} {id} {self._marker(ARGS)} %json {schema}")
            return name
        begin = _quoted(f'{{"name": {json.dumps(tool.name)}, "{family.arguments}": ')
        with_id = family.short_ids and family.layout is Layout.ARRAY
        id = "NEXT_ID?" if with_id else ""
        self._rule(name, f'{begin} %json {schema} {id} "}}"')
        return name

    def _marker(self, text: str) -> str:
        if text in self._special:
            return f"<[{self._special[text]}]>"
        return _quoted(text) if text else ""

    def _rule(self, name: str, what: str) -> None:
        self._rules.append(f"{name}: {what}")


def _quoted(text: str) -> str:
    return json.dumps(text)


def _arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call's arguments as the engine is given it."""
    schema = _plain(parameters) if parameters else {"properties": {}}
    schema["type"] = "object"
    if "properties" in schema and not _COMPOSED & schema.keys():
        schema["additionalProperties"] = False
    return {**schema, "x-guidance": _GUIDANCE}


def _plain(schema: Any, *, named: bool = False) -> Any:
    """`schema` without notes and without patterns that no grammar can follow. `named`: its keys
    are names that the client chose, not keywords."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if named:
            found[key] = _plain(value)
        elif key in DATA:
            found[key] = value
        elif key == "pattern" and isinstance(value, str) and _IRREGULAR.search(value):
            continue
        elif key not in _NOTES:
            found[key] = _plain(value, named=key in _NAMED)
    return found

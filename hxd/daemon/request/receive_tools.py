"""Tools and answer formats as a client sends them, checked in shape and turned into frames' parts.

What a schema may look like is the worker's to judge: it has the engine that must hold to it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hxd import wire
from hxd.daemon.request import freeform
from hxd.errors import CallerError

MAX_TOOLS = 128
MAX_NAME = 64
MAX_GRAMMAR = 128 << 10
TEXT, JSON_OBJECT, JSON_SCHEMA = "text", "json_object", "json_schema"


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(msgspec.Struct):
    type: str
    function: Function | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str = ""


class CallBody(msgspec.Struct):
    """A tool call in an assistant's message."""

    function: CalledFunction
    id: str = ""
    type: str = "function"


class NamedFunction(msgspec.Struct):
    name: str


class NamedChoice(msgspec.Struct):
    function: NamedFunction
    type: str = "function"


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None
    name: str | None = None


class ResponseFormat(msgspec.Struct):
    """`schema` beside `json_object` is llama.cpp's own way of sending one."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


def tools(
    given: list[ToolBody] | None, choice: str | NamedChoice | None, parallel: bool | None
) -> wire.Tools | None:
    """What may be called; None when nothing was offered."""
    if not given:
        if isinstance(choice, NamedChoice) or choice not in (None, "none", "auto"):
            raise CallerError("tool_choice: there are no tools to choose from", param="tool_choice")
        return None
    if len(given) > MAX_TOOLS:
        raise CallerError(f"tools: {len(given)} tools; the limit is {MAX_TOOLS}", param="tools")
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(given)]
    named = isinstance(choice, NamedChoice)
    picked = choice.function.name if isinstance(choice, NamedChoice) else choice or "auto"
    if named and picked not in {function.name for function in functions}:
        raise CallerError(
            f"tool_choice.function.name: {picked[:MAX_NAME]!r} is not among the tools",
            param="tool_choice",
        )
    if not named and picked not in ("auto", "none", "required"):
        raise CallerError(
            f"tool_choice: {picked[:MAX_NAME]!r} is not one of auto, none, required, or an object "
            "that names a function",
            param="tool_choice",
        )
    return wire.Tools(functions, picked, named, parallel is not False)


def _function(tool: ToolBody, where: str) -> wire.Tool:
    if tool.type != "function":
        raise CallerError(
            f"{where}.type: {tool.type[:MAX_NAME]!r} is not supported; function is",
            param=f"{where}.type",
        )
    if tool.function is None:
        raise CallerError(f"{where}.function: this field is required", param=f"{where}.function")
    function = tool.function
    if function.parameters is not None:
        freeform.check(function.parameters, f"{where}.function.parameters")
    return wire.Tool(function.name, function.description or "", function.parameters or {})


def calls(given: list[CallBody] | None, where: str) -> list[wire.ToolCall]:
    """The calls of an assistant's message."""
    if given and len(given) > MAX_TOOLS:
        raise CallerError(f"{where}: {len(given)} calls; the limit is {MAX_TOOLS}", param=where)
    return [
        wire.ToolCall(call.id, call.function.name, call.function.arguments) for call in given or ()
    ]


def constraint(
    form: ResponseFormat | None, schema: dict[str, Any] | None, grammar: str | None
) -> wire.Constraint | None:
    """What the answer must look like; at most one of the three fields may say so."""
    asked = [
        name
        for name, given in (
            ("response_format", form is not None and form.type != TEXT),
            ("json_schema", schema is not None),
            ("grammar", bool(grammar)),
        )
        if given
    ]
    if len(asked) > 1:
        raise CallerError(
            f"{asked[0]} and {asked[1]} can't both say what to answer", param=asked[1]
        )
    if grammar:
        if len(grammar) > MAX_GRAMMAR:
            raise CallerError(
                f"grammar: {len(grammar)} characters; the limit is {MAX_GRAMMAR}", param="grammar"
            )
        return wire.Constraint("gbnf", grammar, param="grammar")
    if schema is not None:
        return _schema(schema, "json_schema")
    return None if form is None else _format(form)


def _format(form: ResponseFormat) -> wire.Constraint | None:
    if form.type == TEXT:
        return None
    if form.type == JSON_OBJECT:
        if form.schema is None:
            return wire.Constraint(JSON_OBJECT, param="response_format")
        return _schema(form.schema, "response_format.schema")
    if form.type != JSON_SCHEMA:
        raise CallerError(
            f"response_format.type: {form.type[:MAX_NAME]!r} is not one of text, json_object, "
            "json_schema",
            param="response_format.type",
        )
    if form.json_schema is not None and form.json_schema.schema is not None:
        return _schema(form.json_schema.schema, "response_format.json_schema.schema")
    if form.schema is not None:
        return _schema(form.schema, "response_format.schema")
    raise CallerError(
        "response_format.json_schema.schema: this field is required",
        param="response_format.json_schema",
    )


def _schema(schema: dict[str, Any], param: str) -> wire.Constraint:
    freeform.check(schema, param)
    return wire.Constraint(JSON_SCHEMA, msgspec.json.encode(schema).decode(), param=param)

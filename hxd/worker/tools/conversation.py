"""A conversation with calls, results and tools as the templates of a family want to be given it.

Every text that comes from the client goes through `clean` before anything is put around it, so
that a control token written here stays one and a control token written there does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hxd.wire import Message, ToolCall, Tools
from hxd.worker.tools.family import WRAPPER, Family
from hxd.worker.tools.ids import shortened

Clean = Callable[[str], str]
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
# Deeper arguments of an earlier call are given to the template as text.
MAX_DEPTH = 64


def conversation(
    family: Family, messages: Sequence[Message], tools: Tools | None, clean: Clean
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """`messages` and `tools` for a template that is native to tools; `generic.conversation` is for
    those that aren't. Tools that may not be called are left out."""
    shown = None if tools is None else definitions(tools, clean)
    rendered = []
    for turn in turns(family, messages):
        if family.inline and turn.calls:
            rendered.append(_inline(family, turn, clean))
        else:
            rendered.append(_native(family, turn, clean))
    if shown is not None and family.tools_in_system:
        if not rendered or rendered[0]["role"] != "system":
            rendered.insert(0, {"role": "system", "content": "You are a helpful assistant."})
        functions = [tool["function"] for tool in shown]
        rendered[0]["tools"] = json.dumps(functions, ensure_ascii=False)
    return rendered, shown


def definitions(tools: Tools, clean: Clean) -> list[dict[str, Any]] | None:
    """The tools in OpenAI's shape; None where none may be called."""
    if not tools.functions or (tools.choice == "none" and not tools.named):
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": clean(tool.name),
                "description": clean(tool.description),
                "parameters": cleaned(tool.parameters, clean)
                or {"type": "object", "properties": {}},
            },
        }
        for tool in tools.functions
    ]


@dataclass
class Turn:
    """A message whose calls have ids, and whose result knows the call it answers."""

    message: Message
    calls: list[ToolCall]
    id: str | None = None
    name: str | None = None


def turns(family: Family, messages: Sequence[Message]) -> list[Turn]:
    """The messages in order, each result with the id and the name of its call: the one that it
    names, else the first that has no result yet."""
    short = shortened if family.short_ids else str
    found: list[Turn] = []
    waiting: list[ToolCall] = []
    for message in messages:
        if message.role == "tool":
            found.append(_result(message, waiting, short))
            continue
        calls = [
            ToolCall(short(made.id or f"call_{len(found)}_{i}"), made.name, made.arguments)
            for i, made in enumerate(message.tool_calls)
        ]
        if message.role == "assistant":
            waiting = list(calls)
        found.append(Turn(message, calls))
    return list(_one_by_one(found)) if family.single else found


def _result(message: Message, waiting: list[ToolCall], short: Callable[[str], str]) -> Turn:
    id = short(message.tool_call_id) if message.tool_call_id else None
    for made in waiting:
        if id is None or made.id == id:
            waiting.remove(made)
            return Turn(message, [], made.id, message.name or made.name)
    return Turn(message, [], id or short("unknown"), message.name)


def _one_by_one(turns: list[Turn]) -> Iterator[Turn]:
    """Each call in a message of its own, its result behind it."""
    at = 0
    while at < len(turns):
        turn = turns[at]
        at += 1
        if len(turn.calls) < 2:
            yield turn
            continue
        results = []
        while at < len(turns) and turns[at].message.role == "tool":
            results.append(turns[at])
            at += 1
        content = turn.message.content
        for made in turn.calls:
            yield Turn(Message("assistant", content), [made])
            content = ""
            yield from (result for result in results if result.id == made.id)
            results = [result for result in results if result.id != made.id]
        yield from results


def role(message: Message, clean: Clean) -> str:
    return message.role if message.role in ROLES else clean(message.role)


def call(family: Family, made: ToolCall, clean: Clean) -> dict[str, Any]:
    """`{"name": …, "arguments": …}` with the family's own key."""
    return {"name": clean(made.name), family.arguments: arguments(made.arguments, clean)}


def arguments(text: str, clean: Clean) -> dict[str, Any] | str:
    """The object that `text` spells, or the text where it spells none: an answer that was cut off
    comes back like that."""
    try:
        value = json.loads(text or "{}", parse_constant=_refuse)
        if isinstance(value, dict):
            found: dict[str, Any] = cleaned(value, clean)
            return found
    except (ValueError, RecursionError):
        pass
    return clean(text)


def cleaned(value: Any, clean: Clean, depth: int = MAX_DEPTH) -> Any:
    """`value` with all its texts cleaned, keys too. Raises `ValueError` beyond `depth`."""
    if isinstance(value, str):
        return clean(value)
    if depth == 0 and isinstance(value, dict | list):
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {clean(str(key)): cleaned(item, clean, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, clean, depth - 1) for item in value]
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _native(family: Family, turn: Turn, clean: Clean) -> dict[str, Any]:
    message = turn.message
    is_result = message.role == "tool"
    rendered: dict[str, Any] = {
        "role": family.results if is_result else role(message, clean),
        "content": clean(message.content),
    }
    name = turn.name if is_result else message.name
    if name is not None:
        rendered["name"] = clean(name)
    if turn.id is not None:
        rendered["tool_call_id"] = clean(turn.id)
    if turn.calls:
        rendered["tool_calls"] = [_native_call(family, made, clean) for made in turn.calls]
    return rendered


def _native_call(family: Family, made: ToolCall, clean: Clean) -> dict[str, Any]:
    given = arguments(made.arguments, clean)
    if family.arguments_as_text and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    return {
        "id": clean(made.id),
        "type": "function",
        "function": {"name": clean(made.name), "arguments": given},
    }


def _inline(family: Family, turn: Turn, clean: Clean) -> dict[str, Any]:
    calls = json.dumps([call(family, made, clean) for made in turn.calls], ensure_ascii=False)
    content = clean(turn.message.content)
    return {"role": "assistant", "content": f"{content}{family.opening}{calls}{family.closing}"}


def wrapped(family: Family, calls: Sequence[ToolCall], clean: Clean) -> str:
    """Calls as a model of the generic family is asked to write them."""
    made = [call(family, each, clean) for each in calls]
    return json.dumps({WRAPPER: made}, ensure_ascii=False)

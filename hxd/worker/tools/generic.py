"""Tools for a template that knows nothing of them: told in words, in messages that any can render.

The system message lists the tools and says how to call one; results come as a user's message.
What the client wrote keeps its place, but is no longer told apart from what stands around it: a
result that says "the user wants …" is read as the user's words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hxd.wire import Message, Tools
from hxd.worker.tools.conversation import Clean, definitions, role, turns, wrapped
from hxd.worker.tools.family import WRAPPER, Family

Rendered = list[dict[str, Any]]


def conversation(
    family: Family,
    messages: Sequence[Message],
    tools: Tools | None,
    clean: Clean,
    *,
    takes_system: bool,
) -> Rendered:
    """`messages` without calls and results, and with the tools told. Where the template has no
    place for a system message, its text begins the first message of the user."""
    rendered: Rendered = []
    told = "" if tools is None else _told(tools, clean)
    after_result = False
    for turn in turns(family, messages):
        content = clean(turn.message.content)
        if turn.message.role == "tool":
            named = clean(turn.name or "the function")
            content = f"Result of {named}:\n{content}"
        if turn.calls:
            called = wrapped(family, turn.calls, clean)
            content = f"{content}\n\n{called}" if content else called
        is_user = turn.message.role in ("tool", "user")
        if is_user and after_result:
            # Many templates insist that user and assistant alternate.
            rendered[-1]["content"] += f"\n\n{content}"
        else:
            rendered.append(
                {"role": "user" if is_user else role(turn.message, clean), "content": content}
            )
            if turn.message.name is not None and turn.message.role != "tool":
                rendered[-1]["name"] = clean(turn.message.name)
        after_result = is_user and (after_result or turn.message.role == "tool")
    if told:
        _tell(rendered, told, takes_system=takes_system)
    return rendered


def _tell(rendered: Rendered, told: str, *, takes_system: bool) -> None:
    first = rendered[0] if rendered else None
    if first is not None and first["role"] in ("system", "developer"):
        first["content"] = f"{first['content']}\n\n{told}"
        if not takes_system:
            told = rendered.pop(0)["content"]
    elif takes_system:
        rendered.insert(0, {"role": "system", "content": told})
    if takes_system:
        return
    if rendered and rendered[0]["role"] == "user":
        rendered[0]["content"] = f"{told}\n\n{rendered[0]['content']}"
    else:
        rendered.insert(0, {"role": "user", "content": told})


def _told(tools: Tools, clean: Clean) -> str:
    shown = definitions(tools, clean)
    if shown is None:
        return ""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in shown]
    example = {WRAPPER: [{"name": "FUNCTION", "arguments": {"PARAMETER": "VALUE"}}]}
    if tools.named:
        when = f"Call the function {clean(tools.choice)} now."
    elif tools.choice == "required":
        when = "Call at least one function now."
    else:
        when = "Call a function only where it helps; otherwise answer in plain text."
    several = "" if tools.parallel else " Call one function at a time."
    return (
        "You can call these functions; each comes with the JSON schema of its parameters:\n"
        + "\n".join(lines)
        + "\n\nTo call functions, answer with a JSON object of this form and nothing else:\n"
        + json.dumps(example)
        + f"\nThe next message then brings the results. {when}{several}"
    )

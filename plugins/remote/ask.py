"""From a `wire.Generate` to the JSON of a chat or text completion. Pure.

A field is sent only where it asks for something: many servers refuse fields that they don't know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hxd import wire
from hxd.hookspecs import RequestRefused

from .dialect import Dialect

CHAT = "/chat/completions"
TEXT = "/completions"

# Field, and the value at which it changes nothing.
_NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repeat_penalty": 1.0,
}


def path(request: wire.Generate) -> str:
    return TEXT if request.messages is None else CHAT


def body(request: wire.Generate, model: str, dialect: Dialect) -> dict[str, Any]:
    """Raises `RequestRefused` for what can't be asked of another server."""
    asked: dict[str, Any] = {"model": model}
    if request.messages is None:
        asked |= _text(request)
    else:
        asked |= _chat(request, request.messages)
    asked |= _sampling(request.sampling)
    asked |= _constraint(request.constraint)
    asked["seed"] = request.seed
    if request.max_tokens is not None:
        asked["max_tokens"] = request.max_tokens
    if request.stop:
        asked["stop"] = request.stop
    if request.template:
        asked["chat_template_kwargs"] = request.template
    asked["stream"] = True
    asked["stream_options"] = {"include_usage": True}
    return dialect.spoken(asked)


def _text(request: wire.Generate) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "prompt": request.text if request.tokens is None else request.tokens,
    }
    if request.echo:
        asked["echo"] = True
    if request.suffix is not None:
        asked["suffix"] = request.suffix
    if request.logprobs is not None:
        asked["logprobs"] = request.logprobs
    return asked


def _chat(request: wire.Generate, messages: list[wire.Message]) -> dict[str, Any]:
    asked: dict[str, Any] = {"messages": [_message(message) for message in messages]}
    if request.tools is not None and request.tools.functions:
        asked |= _tools(request.tools)
    if request.logprobs is not None:
        asked["logprobs"] = True
        if request.logprobs:
            asked["top_logprobs"] = request.logprobs
    return asked


def _message(message: wire.Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        said["name"] = message.name
    if message.tool_calls:
        said["content"] = message.content or None
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _tools(tools: wire.Tools) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "tools": [
            {"type": "function", "function": msgspec.to_builtins(function)}
            for function in tools.functions
        ]
    }
    if tools.named:
        asked["tool_choice"] = {"type": "function", "function": {"name": tools.choice}}
    elif tools.choice != "auto":
        asked["tool_choice"] = tools.choice
    if not tools.parallel:
        asked["parallel_tool_calls"] = False
    return asked


def _sampling(sampling: wire.Sampling) -> dict[str, Any]:
    asked: dict[str, Any] = {
        name: value
        for name, neutral in _NEUTRAL.items()
        if (value := getattr(sampling, name)) != neutral
    }
    if "repeat_penalty" in asked:
        # llama.cpp's name and vLLM's; each ignores the other's.
        asked["repetition_penalty"] = asked["repeat_penalty"]
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.ignore_eos:
        asked["ignore_eos"] = True
    return asked


def _constraint(constraint: wire.Constraint | None) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.trigger is not None:
        raise RequestRefused(
            "a constraint that begins in mid-answer can't be asked of another server",
            param="response_format",
        )
    match constraint.kind:
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            schema = {"name": "answer", "strict": True, "schema": _schema(constraint.text)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "gbnf":
            return {"grammar": constraint.text}
    raise RequestRefused(
        f"a grammar of the kind {constraint.kind!r} can't be asked of another server",
        param="response_format",
    )


def _schema(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestRefused(
            f"the JSON schema does not decode: {error}", param="response_format"
        ) from None

"""From a request's bytes to typed fields: what a client may send, and what is wrong when it is not.

Unknown fields are ignored, as OpenAI-compatible servers do; fields that OpenAI knows and hxd does
not support are refused by name, since ignoring them would change the answer in silence.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hxd import wire
from hxd.daemon.request import body as body_text
from hxd.daemon.request import freeform, receive_tools
from hxd.daemon.request.receive_tools import CallBody, NamedChoice, ResponseFormat, ToolBody
from hxd.errors import CallerError

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 4096
MAX_BIASES = 1024
MAX_TOP_K = 1 << 20
MAX_LOGPROBS = 20
MAX_TOKENS = 1 << 24  # beyond any context; smaller values are cut to the context's room
_I64 = 1 << 63


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields that chat and text completions share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    # llama.cpp's own fields:
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None


class ChatRequest(Common, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known to OpenAI, refused unless neutral:
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class CompletionRequest(Common, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)


def parse_chat(body: bytes) -> ChatRequest:
    request = body_text.decode(_chat, body)
    if not request.messages:
        raise CallerError("messages: at least one message is needed", param="messages")
    if len(request.messages) > MAX_MESSAGES:
        raise CallerError(
            f"messages: {len(request.messages)} messages; the limit is {MAX_MESSAGES}",
            param="messages",
        )
    _refuse(
        request,
        ("functions", "function_call", "audio", "prediction", "web_search_options",
         "reasoning_effort", "verbosity"),
    )  # fmt: skip
    if request.top_logprobs and not request.logprobs:
        raise CallerError("top_logprobs: needs logprobs to be true", param="top_logprobs")
    if request.modalities not in (None, ["text"]):
        raise _unsupported("modalities")
    if request.chat_template_kwargs is not None:
        freeform.check(request.chat_template_kwargs, "chat_template_kwargs")
    _check(request)
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    request = body_text.decode(_completion, body)
    if request.echo and request.suffix:
        raise CallerError("echo and suffix can't be combined", param="echo")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise _unsupported("best_of")
    _check(request)
    return request


def _unsupported(name: str) -> CallerError:
    return CallerError(
        f"{name}: this server does not support it yet", param=name, code="unsupported_parameter"
    )


# Values that ask for nothing: clients send them unasked.
_NEUTRAL: tuple[Any, ...] = (None, False, [], "none", "auto", "medium")


def _refuse(request: Common, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(request, name) not in _NEUTRAL:
            raise _unsupported(name)


def _check(request: Common) -> None:
    def between(name: str, low: float, high: float) -> None:
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise CallerError(f"{name}: {value} is not between {low} and {high}", param=name)

    if isinstance(request, ChatRequest):
        between("max_tokens", 1, MAX_TOKENS)
        between("max_completion_tokens", 1, MAX_TOKENS)
        between("top_logprobs", 0, MAX_LOGPROBS)
    elif isinstance(request, CompletionRequest):
        # Nothing but the prompt's own logprobs: how evaluations score a text.
        between("max_tokens", 0 if request.echo else 1, MAX_TOKENS)
        between("logprobs", 0, MAX_LOGPROBS)
    between("temperature", 0, 2)
    between("top_p", 0, 1)
    between("top_k", -1, MAX_TOP_K)
    between("min_p", 0, 1)
    between("presence_penalty", -2, 2)
    between("frequency_penalty", -2, 2)
    between("repeat_penalty", 0.01, 100)
    between("seed", -_I64, _I64 - 1)
    between("n", 1, MAX_CHOICES)
    _check_stops(request)


def _check_stops(request: Common) -> None:
    stops = stop_strings(request)
    if len(stops) > MAX_STOPS:
        raise CallerError(f"stop: {len(stops)} strings; the limit is {MAX_STOPS}", param="stop")
    if any(not 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise CallerError(
            f"stop: each string must have 1 to {MAX_STOP_LENGTH} characters", param="stop"
        )


def stop_strings(request: Common) -> list[str]:
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def sampling(request: Common) -> wire.Sampling:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return wire.Sampling(
        temperature=given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),
        min_p=given(request.min_p, 0.0),
        presence_penalty=given(request.presence_penalty, 0.0),
        frequency_penalty=given(request.frequency_penalty, 0.0),
        repeat_penalty=given(request.repeat_penalty, 1.0),
        logit_bias=_biases(request),
        ignore_eos=bool(request.ignore_eos),
    )


def _biases(request: Common) -> dict[int, float]:
    biases = request.logit_bias or {}
    if len(biases) > MAX_BIASES:
        raise CallerError(
            f"logit_bias: {len(biases)} tokens; the limit is {MAX_BIASES}", param="logit_bias"
        )
    read = {}
    for token, bias in biases.items():
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise CallerError(f"logit_bias: {token!r} is not a token id", param="logit_bias")
        if not -100 <= bias <= 100:
            raise CallerError(
                f"logit_bias.{token}: {bias} is not between -100 and 100", param="logit_bias"
            )
        read[int(token)] = bias
    return read


def logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """How many alternatives to report per token; None for no logprobs at all."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def constraint(request: Common) -> wire.Constraint | None:
    return receive_tools.constraint(request.response_format, request.json_schema, request.grammar)


def tools(request: ChatRequest) -> wire.Tools | None:
    found = receive_tools.tools(request.tools, request.tool_choice, request.parallel_tool_calls)
    if found is not None and found.choice != "none" and constraint(request) is not None:
        raise CallerError(
            "response_format: can't be combined with tools; send one of them",
            param="response_format",
        )
    return found


def plain_messages(request: ChatRequest) -> list[wire.Message]:
    """The messages with their text parts joined."""
    messages = []
    for i, message in enumerate(request.messages):
        if message.role not in ("system", "developer", "user", "assistant", "tool", "function"):
            raise CallerError(
                f"messages[{i}].role: {message.role!r} is not one of system, developer, user, "
                "assistant, tool",
                param=f"messages[{i}].role",
            )
        if message.role == "function":
            raise _unsupported(f"messages[{i}].role")
        role = "system" if message.role == "developer" else message.role
        calls = receive_tools.calls(message.tool_calls, f"messages[{i}].tool_calls")
        if calls and role != "assistant":
            raise CallerError(
                f"messages[{i}].tool_calls: only an assistant's message has them",
                param=f"messages[{i}].tool_calls",
            )
        messages.append(
            wire.Message(role, _text(message, i), message.name, calls, message.tool_call_id)
        )
    return messages


def _text(message: ChatMessage, i: int) -> str:
    content = message.content
    where = f"messages[{i}].content"
    if content is None:
        if message.role == "assistant":
            return ""
        raise CallerError(f"{where}: this field is required", param=where)
    if isinstance(content, str):
        return content
    texts = []
    for j, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            raise CallerError(
                f"{where}[{j}].type: {part.type!r} is not supported; text is",
                param=f"{where}[{j}].type",
                code="unsupported_parameter",
            )
        if part.text is None:
            raise CallerError(f"{where}[{j}].text: this field is required", param=where)
        texts.append(part.text)
    return "\n".join(texts)


def prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a text completion: one string, a list of them, token ids, or lists of ids."""
    given = request.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise CallerError("prompt: must not be empty", param="prompt")
    if all(type(item) is int for item in given):
        _no_suffix(request)
        return [_ids(given, "prompt")]
    read: list[str | list[int]] = []
    for i, item in enumerate(given):
        if isinstance(item, str):
            read.append(item)
        elif isinstance(item, list) and item and all(type(token) is int for token in item):
            _no_suffix(request)
            read.append(_ids(item, f"prompt[{i}]"))
        else:
            raise CallerError(
                f"prompt[{i}]: expected a string or a list of token ids", param="prompt"
            )
    if len(read) * (request.n or 1) > MAX_CHOICES:
        raise CallerError(
            f"prompt: {len(read)} prompts with n = {request.n or 1}; the limit is "
            f"{MAX_CHOICES} answers in one request",
            param="prompt",
        )
    return read


def _no_suffix(request: CompletionRequest) -> None:
    if request.suffix:
        raise CallerError("suffix: needs prompts of text, not of tokens", param="suffix")


def _ids(tokens: list[Any], where: str) -> list[int]:
    for i, token in enumerate(tokens):
        if not 0 <= token < 1 << 31:
            raise CallerError(f"{where}[{i}]: {token} is not a token id", param="prompt")
    return tokens

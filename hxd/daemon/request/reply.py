"""What a client reads: OpenAI's objects, whole or as server-sent events. Knows no workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hxd import __version__, wire
from hxd.daemon.request.call import Piece
from hxd.errors import HxdError

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"hxd-{__version__}"
_encode = msgspec.json.Encoder().encode


def json_bytes(value: Any) -> bytes:
    return _encode(value)


def event(value: Any) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def error_event(error: HxdError) -> bytes:
    return event(error.body())


@dataclass
class Usage:
    """Exact token counts over all choices; a prompt counts once, however many choices it has.
    Completion tokens are those that the model generated, the one that ends the answer included."""

    choices_per_prompt: int
    prompt: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    completion: int = 0

    def add(self, piece: Piece) -> None:
        prompt = piece.index // self.choices_per_prompt
        self.prompt[prompt] = piece.prompt_tokens
        # Of several choices the first reads the prompt; what the others share with it is no hit.
        self.cached[prompt] = min(self.cached.get(prompt, 1 << 62), piece.cached_tokens)
        self.completion += piece.completion_tokens

    @property
    def prompt_total(self) -> int:
        return sum(self.prompt.values())

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_total,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt_total + self.completion,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


class Choice:
    """One answer as it grows. Calls are put together from their parts."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish = ""
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[wire.CallDelta]] = {}
        self._logprobs: list[wire.Logprob] = []

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)
        for call in piece.calls:
            self._calls.setdefault(call.index, []).append(call)
        self._logprobs += piece.logprobs
        if piece.finish is not None:
            self.finish = piece.finish

    def message(self) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [self._call(parts) for parts in self._calls.values()]
        return message

    def _call(self, parts: Sequence[wire.CallDelta]) -> dict[str, Any]:
        name = "".join(part.name or "" for part in parts)
        arguments = "".join(part.arguments for part in parts)
        return {
            "id": parts[0].id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def body(self, *, chat: bool) -> dict[str, Any]:
        content: dict[str, Any]
        content = {"message": self.message()} if chat else {"text": "".join(self._texts)}
        logprobs = Logprobs(chat=chat).render(self._logprobs)
        return {
            "index": self.index,
            **content,
            "logprobs": logprobs,
            "finish_reason": self.finish,
        }


class Logprobs:
    """One choice's logprobs in the words of its endpoint; text completions count characters."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._offset = 0

    def render(self, logprobs: Sequence[wire.Logprob]) -> dict[str, Any] | None:
        if not logprobs:
            return None
        if self._chat:
            return {"content": [_chat_logprob(one) for one in logprobs], "refusal": None}
        offsets = []
        for one in logprobs:
            offsets.append(self._offset)
            self._offset += len(_spelled(one.piece))
        return {
            "tokens": [_spelled(one.piece) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [
                {_spelled(piece): value for _, piece, value in one.top} if one.top else None
                for one in logprobs
            ],
            "text_offset": offsets,
        }


def _chat_logprob(one: wire.Logprob) -> dict[str, Any]:
    return {
        **_named(one.token, one.piece, one.logprob),
        "top_logprobs": [_named(*top) for top in one.top],
    }


def _named(token: int, piece: bytes, logprob: float | None) -> dict[str, Any]:
    return {"id": token, "token": _spelled(piece), "bytes": list(piece), "logprob": logprob}


def _spelled(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


@dataclass(frozen=True)
class Shape:
    """How one endpoint words its answers; `chat` or text completions."""

    chat: bool
    id: str
    created: int
    model: str

    def whole(self, choices: Sequence[Choice], usage: Usage, hxd: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            **self._head(kind),
            "choices": [choice.body(chat=self.chat) for choice in choices],
            "usage": usage.body(),
            "hxd": hxd,
        }

    def delta(self, piece: Piece) -> dict[str, Any]:
        """What a chat chunk adds."""
        delta: dict[str, Any] = {}
        if piece.text or not (piece.calls or piece.reasoning):
            delta["content"] = piece.text
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.calls:
            delta["tool_calls"] = [_call_delta(call) for call in piece.calls]
        return delta

    def usage(self, usage: Usage) -> bytes:
        return event({**self._head(self._kind), "choices": [], "usage": usage.body()})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def chunk(
        self,
        index: int,
        content: dict[str, Any] | str,
        *,
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {
            "index": index,
            ("delta" if self.chat else "text"): content,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return event({**self._head(self._kind), "choices": [choice], **more})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


def _call_delta(call: wire.CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


class Chunks:
    """The events of one streamed answer. `hxd` is said with each finish reason."""

    def __init__(
        self, shape: Shape, usage: Usage, *, with_usage: bool, hxd: dict[str, Any]
    ) -> None:
        self._shape = shape
        self._usage = usage
        self._with_usage = with_usage
        # OpenAI's chunks have `"usage": null` until the last one, when usage was asked for.
        self._more: dict[str, Any] = {"usage": None} if with_usage else {}
        self._hxd = hxd
        self._logprobs: dict[int, Logprobs] = {}

    def of(self, batch: Sequence[Piece]) -> bytes:
        return b"".join(self._piece(piece) for piece in batch)

    def end(self) -> bytes:
        return (self._shape.usage(self._usage) if self._with_usage else b"") + DONE

    def _piece(self, piece: Piece) -> bytes:
        shape, data = self._shape, b""
        if piece.index not in self._logprobs:
            self._logprobs[piece.index] = Logprobs(chat=shape.chat)
            if shape.chat:
                role = {"role": "assistant", "content": ""}
                data += shape.chunk(piece.index, role, **self._more)
        logprobs = self._logprobs[piece.index].render(piece.logprobs)
        if piece.finish is not None:
            self._usage.add(piece)
            content: dict[str, Any] | str = {} if shape.chat else piece.text
            more = {**self._more, "hxd": self._hxd}
            return data + shape.chunk(piece.index, content, finish=piece.finish, **more)
        content = shape.delta(piece) if shape.chat else piece.text
        return data + shape.chunk(piece.index, content, logprobs=logprobs, **self._more)

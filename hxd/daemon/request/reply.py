"""What a client reads: OpenAI's objects, whole or as server-sent events. Knows no workers."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
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
        text = "".join(self._texts)
        content: dict[str, Any] = {"message": self.message()} if chat else {"text": text}
        return {
            "index": self.index,
            **content,
            "logprobs": Logprobs(chat=chat).render(self._logprobs, text),
            "finish_reason": self.finish,
        }


class Logprobs:
    """One choice's logprobs in the words of its endpoint."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._offsets = Offsets()

    def render(self, logprobs: Sequence[wire.Logprob], text: str) -> dict[str, Any] | None:
        """`text` is what the choice gained with them."""
        if self._chat:
            content = [_chat_logprob(one) for one in logprobs]
            return {"content": content, "refusal": None} if content else None
        self._offsets.feed(text)
        if not logprobs:
            return None
        return {
            "tokens": [_distinct(one.piece) for one in logprobs],
            "token_logprobs": [_finite(one.logprob) for one in logprobs],
            "top_logprobs": [_alternatives(one) for one in logprobs],
            "text_offset": [self._offsets.of(one.piece) for one in logprobs],
        }


class Offsets:
    """Where in a text each of its tokens begins, in characters.

    A token whose bytes are not what the text goes on with has no part in it: a control token. Only
    a blank before the first word may be missing, which some tokenizers put there by themselves.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._told = 0  # characters that tokens have been found for
        self._rest = ""
        self._at = 0  # where in the rest the next token is looked for
        self._fed: list[str] = []

    def feed(self, text: str) -> None:
        self._fed.append(text)

    def of(self, piece: bytes) -> int:
        """The offset of the next token, whose bytes are `piece`."""
        if self._fed:
            self._rest = "".join([self._rest[self._at :], *self._fed])
            self._at = 0
            self._fed.clear()
        begins = self._told
        said = self._decoder.decode(piece)
        for spelled in (said, said.removeprefix(" ")):
            if self._rest.startswith(spelled, self._at):
                self._at += len(spelled)
                self._told += len(spelled)
                return begins
        self._decoder.reset()
        return begins


# What OpenAI says for a probability of nothing; JSON has no infinity.
_LEAST = -9999.0


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


def _alternatives(one: wire.Logprob) -> dict[str, float] | None:
    """By their text; of two with the same, the likelier."""
    found: dict[str, float] = {}
    for _, piece, logprob in one.top:
        found.setdefault(_distinct(piece), max(logprob, _LEAST))
    return found or None


def _distinct(piece: bytes) -> str:
    """The text of a token; parts of characters as OpenAI's text completions spell them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _chat_logprob(one: wire.Logprob) -> dict[str, Any]:
    return {
        **_named(one.token, one.piece, one.logprob),
        "top_logprobs": [_named(*top) for top in one.top],
    }


def _named(token: int, piece: bytes, logprob: float | None) -> dict[str, Any]:
    spelled = piece.decode("utf-8", "replace")
    return {"id": token, "token": spelled, "bytes": list(piece), "logprob": _finite(logprob)}


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
            delta["tool_calls"] = [_call_delta(call) for call in _merged(piece.calls)]
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


def _merged(calls: Sequence[wire.CallDelta]) -> list[wire.CallDelta]:
    """One part per call: not every client joins several of one chunk."""
    found: dict[int, wire.CallDelta] = {}
    for call in calls:
        first = found.setdefault(call.index, wire.CallDelta(call.index, call.id, call.name, ""))
        first.arguments += call.arguments
    return list(found.values())


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
    """The events of one streamed answer. What `disclose` gives is said with each finish reason."""

    def __init__(
        self,
        shape: Shape,
        usage: Usage,
        *,
        with_usage: bool,
        disclose: Callable[[], dict[str, Any]],
    ) -> None:
        self._shape = shape
        self._usage = usage
        self._with_usage = with_usage
        # OpenAI's chunks have `"usage": null` until the last one, when usage was asked for.
        self._more: dict[str, Any] = {"usage": None} if with_usage else {}
        self._disclose = disclose
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
        logprobs = self._logprobs[piece.index].render(piece.logprobs, piece.text)
        if piece.finish is not None:
            self._usage.add(piece)
            content: dict[str, Any] | str = {} if shape.chat else piece.text
            more = {**self._more, "hxd": self._disclose()}
            return data + shape.chunk(piece.index, content, finish=piece.finish, **more)
        content = shape.delta(piece) if shape.chat else piece.text
        return data + shape.chunk(piece.index, content, logprobs=logprobs, **self._more)

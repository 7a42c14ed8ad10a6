"""What a client reads: OpenAI's objects, whole or as server-sent events. Knows no workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hxd import __version__
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
    completion: int = 0

    def add(self, piece: Piece) -> None:
        self.prompt[piece.index // self.choices_per_prompt] = piece.prompt_tokens
        self.completion += piece.completion_tokens

    @property
    def prompt_total(self) -> int:
        return sum(self.prompt.values())

    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_total,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt_total + self.completion,
        }


@dataclass(frozen=True)
class Shape:
    """How one endpoint words its answers; `chat` or text completions."""

    chat: bool
    id: str
    created: int
    model: str

    def whole(
        self, texts: Sequence[str], finishes: Sequence[str], usage: Usage, hxd: dict[str, Any]
    ) -> dict[str, Any]:
        choices = []
        for index, (text, finish) in enumerate(zip(texts, finishes, strict=True)):
            content: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self.chat
                else {"text": text}
            )
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage.body(), "hxd": hxd}

    def opening(self, index: int, *, with_usage: bool) -> bytes:
        """The chunk that names the role; text completions have none."""
        if not self.chat:
            return b""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, with_usage, None)

    def pieces(self, piece: Piece, *, with_usage: bool, hxd: dict[str, Any] | None = None) -> bytes:
        """Chunks for one piece: its text, then its finish reason."""
        chunks = b""
        if self.chat:
            if piece.text:
                delta = {"content": piece.text}
                chunks += self._chunk(piece.index, delta, None, with_usage, None)
            if piece.finish:
                chunks += self._chunk(piece.index, {}, piece.finish, with_usage, hxd)
        elif piece.text or piece.finish:
            chunks += self._chunk(piece.index, piece.text, piece.finish, with_usage, hxd)
        return chunks

    def usage(self, usage: Usage) -> bytes:
        return event({**self._head(self._kind), "choices": [], "usage": usage.body()})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(
        self,
        index: int,
        content: dict[str, str] | str,
        finish: str | None,
        with_usage: bool,
        hxd: dict[str, Any] | None,
    ) -> bytes:
        choice = {
            "index": index,
            ("delta" if self.chat else "text"): content,
            "logprobs": None,
            "finish_reason": finish,
        }
        chunk = {**self._head(self._kind), "choices": [choice]}
        if with_usage:
            chunk["usage"] = None
        if hxd is not None:
            chunk["hxd"] = hxd
        return event(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

"""The frames between the daemon and a worker: 4-byte big-endian length, then one msgpack body.

Nothing here knows what the frames mean. A length over the limit is refused from the four bytes
alone, before anything is allocated for it; a body that does not decode raises `WireError`, and
whoever holds the link closes it. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec

PROTOCOL = 1
TO_WORKER_LIMIT = 16 << 20  # a 4 MiB body of short messages grows when it is framed
TO_DAEMON_LIMIT = 1 << 20  # ATTACKS 7: what a hostile worker can make the daemon hold
_LENGTH = struct.Struct(">I")
F = TypeVar("F")


class WireError(Exception):
    """The other side broke the protocol. The link can't be trusted any more."""


class Message(msgspec.Struct, tag="message"):
    """One chat message; `content` is plain text by now."""

    role: str
    content: str
    name: str | None = None


class Sampling(msgspec.Struct, omit_defaults=True):
    """How the next token is drawn. `temperature` 0 is greedy; 0 or 1 switches the others off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False


class Frame(msgspec.Struct, tag_field="t", tag=str.lower, forbid_unknown_fields=True):
    """Base of all frames. `id` names a request; the daemon chooses it, once per sequence."""


# daemon → worker


class Load(Frame):
    """Load one variant. `path` is None for backends that need no file."""

    model: str
    path: str | None
    context: int
    slots: int
    threads: int
    options: dict[str, Any]


class Generate(Frame):
    """Start one sequence from exactly one of `messages`, `text` and `tokens`.

    `resume` holds the ids of tokens that another worker has already generated for the same
    request: they count as generated (penalties, stop strings, `max_tokens`, sampling position) and
    are not sent again.
    """

    id: int
    seed: int
    messages: list[Message] | None = None
    text: str | None = None
    tokens: list[int] | None = None
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: list[str] = []
    resume: list[int] = []


class Embed(Frame):
    id: int
    texts: list[str]


class Cancel(Frame):
    id: int


class Ping(Frame):
    n: int


class Quantize(Frame):
    """Write `variant` of the GGUF at `source` to `target`; answered by Progress, and
    exit 0 at its end."""

    source: str
    target: str
    variant: str
    threads: int


class Unload(Frame):
    """Finish nothing, free the model and exit 0."""


# worker → daemon


class Hello(Frame):
    """First frame of a worker that has confined itself and imported its plugin."""

    protocol: int
    pid: int
    plugin: str
    version: str


class Loaded(Frame):
    """The model can generate. `context` is tokens per sequence; `vocab` a digest of the vocabulary:
    equal digests mean that token ids can be carried from one worker to the other."""

    context: int
    slots: int
    vocab: str
    details: dict[str, Any] = {}


class Delta(msgspec.Struct, array_like=True):
    """What one step added to one sequence. `text` may be empty while bytes or a possible stop
    string are held back; it is always a whole number of characters."""

    id: int
    tokens: list[int]
    text: str


class Step(Frame):
    """All the sequences that one decode step advanced."""

    deltas: list[Delta]


class Done(Frame):
    """The end of a sequence; `finish` is `stop`, `length` or `cancelled`."""

    id: int
    finish: str
    prompt_tokens: int
    completion_tokens: int


class Failed(Frame):
    """A request failed (`id`), or loading did (`id` None). `fault` is a value of `errors.Fault`."""

    id: int | None
    fault: str
    message: str
    code: str | None = None
    param: str | None = None


class Progress(Frame):
    share: float
    note: str = ""


class Pong(Frame):
    """Answer to a ping; `steps` counts decode steps since the start, `running` sequences now."""

    n: int
    steps: int
    running: int
    waiting: int


ToWorker = Load | Generate | Embed | Cancel | Ping | Quantize | Unload
ToDaemon = Hello | Loaded | Step | Done | Failed | Progress | Pong

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
to_daemon: msgspec.msgpack.Decoder[ToDaemon] = msgspec.msgpack.Decoder(ToDaemon)


def encode(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def decode(decoder: msgspec.msgpack.Decoder[F], body: bytes | memoryview) -> F:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"a frame of {len(body)} bytes does not decode: {error}") from None


class Splitter:
    """Cuts a byte stream into frame bodies. Holds at most one frame of `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Whole bodies completed by `data`; raises `WireError` on a length over the limit."""
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._limit:
                raise WireError(f"a frame announces {length} bytes; the limit is {self._limit}")
            end = start + 4 + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + 4 : end]))
            start = end
        if start:
            del buffer[:start]
        return bodies

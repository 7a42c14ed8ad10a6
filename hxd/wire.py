"""The frames between the daemon and a worker: 4-byte big-endian length, then one msgpack body.

Nothing here knows what the frames mean. A length over the limit is refused from the four bytes
alone, before anything is allocated for it; a body that does not decode raises `WireError`, and
whoever holds the link closes it. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec

PROTOCOL = 3
TO_WORKER_LIMIT = 16 << 20  # a 4 MiB body of short messages grows when it is framed
TO_DAEMON_LIMIT = 1 << 20  # ATTACKS 7: what a hostile worker can make the daemon hold
# Code of a `Failed` that the worker does not survive.
WORKER_DIED = "worker_died"
_LENGTH = struct.Struct(">I")
F = TypeVar("F")


class WireError(Exception):
    """The other side broke the protocol. The link can't be trusted any more."""


class ToolCall(msgspec.Struct):
    """A call that an assistant message of the conversation made; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, tag="message", omit_defaults=True):
    """One chat message; `content` is plain text by now."""

    role: str
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None


class Tool(msgspec.Struct, omit_defaults=True):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Tools(msgspec.Struct, omit_defaults=True):
    """What may be called in the answer. `choice` is `auto`, `none`, `required` or, with `named`,
    the one function that must be called. `parallel`: more than one call in an answer."""

    functions: list[Tool]
    choice: str = "auto"
    named: bool = False
    parallel: bool = True


class Constraint(msgspec.Struct, omit_defaults=True):
    """What the text of the answer must look like. `kind`: `json_object`, `json_schema`, `gbnf`
    (llama.cpp's grammars) or `lark` (llguidance's). With `trigger`, everything is allowed until
    that text has been generated, and the constraint holds from there on. `param`: where in the
    request it came from, for messages."""

    kind: str
    text: str = ""
    trigger: str | None = None
    param: str = "response_format"


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
    are not sent again. `logprobs`: None for none, else how many alternatives to report per token.
    `echo`: the answer begins with the prompt. `suffix`: text that follows the answer (infill).
    `cache` names who may share cached prompts: equal names do. `template` holds values for the
    chat template.
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
    tools: Tools | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    cache: str = ""
    template: dict[str, Any] = {}


class Embed(Frame):
    """One vector per input, text or token ids; answered by `Vectors`, then `Done`."""

    id: int
    inputs: list[str | list[int]]


class Rank(Frame):
    """How well each document answers the query; answered by `Vectors` of dimension 1."""

    id: int
    query: str
    documents: list[str]


class Tokenize(Frame):
    """Answered by `Tokens`, then `Done`."""

    id: int
    text: str
    add_special: bool = False
    parse_special: bool = True


class Detokenize(Frame):
    """Answered by one `Step` with the text, then `Done`."""

    id: int
    tokens: list[int]


class Cancel(Frame):
    id: int


class Ping(Frame):
    """`gauges`: the pong tells the backend's numbers too."""

    n: int
    gauges: bool = False


class Quantize(Frame):
    """Write `variant` of the GGUF at `source` to `target`; answered by Progress, and
    exit 0 at its end."""

    source: str
    target: str
    variant: str
    threads: int


class Convert(Frame):
    """Make GGUF of the model in the folder `source` and write it to `target`; answered by Progress,
    then `Converted`. `weights`: `f32`, `f16` or `bf16`; None: as close to the source as can be."""

    source: str
    target: str
    name: str
    weights: str | None = None


class Share(Frame):
    """So many workers compute on this box now, this one included: take a part of its cores."""

    among: int


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
    capabilities: list[str] = []


class Logprob(msgspec.Struct, array_like=True):
    """One token of an answer: its id, bytes, natural logarithm of its probability (None for a
    prompt's first token), and the most likely alternatives, best first."""

    token: int
    piece: bytes
    logprob: float | None
    top: list[tuple[int, bytes, float]] = []


class CallDelta(msgspec.Struct, array_like=True):
    """What was added to the tool call at `index`; `id` and `name` come with its first part."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Delta(msgspec.Struct, array_like=True):
    """What one step added to one sequence. `text` may be empty while bytes or a possible stop
    string are held back; it is always a whole number of characters. `logprobs` are those of
    `tokens`; of all that the sequence has had, the last `held` are not to be shown yet, since their
    text is held back. `reasoning` is text that the model thinks before it answers, where the source
    tells the two apart."""

    id: int
    tokens: list[int]
    text: str
    calls: list[CallDelta] = []
    logprobs: list[Logprob] = []
    reasoning: str = ""
    held: int = 0


class Done(Frame):
    """The end of a request; `finish` is `stop`, `length`, `tool_calls`, `content_filter` or
    `cancelled`. `cached_tokens`: how many of the prompt's were found in the prefix cache."""

    id: int
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Step(Frame, omit_defaults=True):
    """All the sequences that one decode step advanced, and which of them it ended. A sequence's
    last tokens and its end come in one frame: a worker that dies between the two would leave a
    finished sequence that looks unfinished."""

    deltas: list[Delta]
    ended: list[Done] = []


class Vectors(Frame):
    """Results for the inputs from `start` on: float32, little-endian, `dimension` each."""

    id: int
    start: int
    dimension: int
    data: bytes


class Tokens(Frame):
    """Token ids of a text, and the bytes of each."""

    id: int
    tokens: list[int]
    pieces: list[bytes]


class Failed(Frame):
    """A request failed (`id`), or what the worker is for did (`id` None; `code` may be the name of
    an errno then). `fault` is a value of `errors.Fault`."""

    id: int | None
    fault: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None


class Progress(Frame):
    share: float
    note: str = ""


class Converted(Frame):
    """The file is written. `notes`: where it will differ from its source, for people."""

    notes: list[str]


class Pong(Frame):
    """Answer to a ping; `steps` counts decode steps since the start, `running` sequences now.
    `gauges` are numbers of the backend's own, by the names in `hookspecs.Backend.gauges`. `paces`:
    since the last pong, by `pace_key`, how many steps advanced every sequence, and the seconds that
    these took."""

    n: int
    steps: int
    running: int
    waiting: int
    gauges: dict[str, float] = {}
    paces: dict[int, tuple[int, float]] = {}


Request = Generate | Embed | Rank | Tokenize | Detokenize
Answer = Delta | Vectors | Tokens | Done | Failed
ToWorker = Load | Request | Cancel | Ping | Quantize | Convert | Share | Unload
ToDaemon = Hello | Loaded | Step | Vectors | Tokens | Done | Failed | Progress | Converted | Pong
Tidings = Hello | Loaded | Failed | Progress | Converted  # of no request

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


def pace_key(sequences: int, among: int) -> int:
    """What steps can be compared by: their sequences, and how many workers share the cores."""
    return min(sequences, 32) + 32 * (min(among, 8) - 1)


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

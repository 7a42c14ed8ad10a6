"""The plugin contract: the one file that a plugin author reads.

A plugin is a folder with a `plugin.toml` and Python modules. It runs inside a worker process that
holds exactly one plugin and one loaded model; the daemon never imports it. Write two hooks and one
object:

- `hxd_describe` says what the plugin can do. Called once in each worker, before anything else.
- `hxd_prepare`, if you like, imports the libraries that loading needs, ahead of it.
- `hxd_backend` makes the backend. Called once in each worker, before the model is loaded. A plugin
  that does nothing but convert models has `hxd_convert` in its place.
- The object it returns does the work, and is one of three:
  - `Backend` generates text, token by token, many sequences at a time. Its methods are called
    from one thread, the engine thread, as are the hooks, `hxd_prepare` among them, and `share`, if
    there is one, between two steps. The exceptions are `tokenize`, `token_bytes` and `compile`,
    which two others may call at the same time, never two of them `compile`; and `gauges`.
  - `Embedder` turns texts into vectors or scores; the same threads.
  - `Relay` hands whole requests on to another server; all its methods run in one asyncio loop.
  Which one is seen from the methods: `step`, `embed` or `relay`.

The worker does everything else: it renders the chat template, tokenizes through your `tokenize`,
joins bytes to whole characters, finds stop strings, counts, ends a sequence at `max_tokens` or at
the end of its context, and talks to the daemon. What you print goes to the daemon's log at level
debug, and its last lines into the report of a worker's death.

What an exception does: from a hook or `load`, the worker reports the message and exits, and the
daemon restarts it with growing pauses. From `tokenize`, `compile` or `add`, `RequestRefused` ends
that one request with status 400; anything else fails it in this worker and counts against its
breaker, and the request is tried again on another replica where there is one; with none that can,
its client gets a 502. From `step`, the worker is replaced, since nobody knows what state the model
is in; what ran there goes on in other workers after the tokens that it had reached, each request
alone at first, since one of them may be the cause, and one that ends two workers is refused. From
`gauges`, the numbers are left out. What `share` raises ends the worker too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import pluggy

from hxd import wire
from hxd.wire import Constraint, Logprob, Sampling

NAMESPACE = "hxd"
API = 1

# What a loaded model can do: generate text; report logprobs; hold a constraint (JSON, grammars,
# forced tool calls); make vectors; score documents against a query.
CAPABILITIES = frozenset({"generate", "logprobs", "constrain", "embed", "rank"})

hookspec = pluggy.HookspecMarker(NAMESPACE)
# pluggy ships its markers as untyped call results; the cast keeps plugin code typed.
hookimpl = cast("Callable[[Callable[..., Any]], Any]", pluggy.HookimplMarker(NAMESPACE))


class RequestRefused(Exception):
    """Raise it from `tokenize` or `add` when the request is at fault: the client gets a 400 that
    names the parameter `param`."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class NotConvertible(Exception):
    """Raise it from `hxd_convert` when nothing can be made of the source: the operator reads the
    message, which says what was found."""


class RelayFailed(Exception):
    """Raise it from `Relay.relay` when the request could not be answered. `fault` is a value of
    `hxd.errors.Fault`, `retry_after` in seconds."""

    def __init__(
        self,
        message: str,
        fault: str = "backend",
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.fault, self.code, self.retry_after = fault, code, retry_after


@dataclass(frozen=True)
class Description:
    """What a plugin can do. `formats`: file formats it loads (`gguf`, `ggml`), or `none` when it
    needs no file. `capabilities`: `generate`, `embed`, and `quantize` or `convert` with the hook
    of that name."""

    formats: frozenset[str]
    capabilities: frozenset[str] = frozenset({"generate"})


# Gauges that a backend may report, with their help texts; `/metrics` shows them as `hxd_NAME`.
GAUGES = {
    "prefix_cache_cells": "KV cells that hold prompts for later requests.",
    "prefix_cache_entries": "Prompts in the prefix cache.",
    "prefix_cache_hit_tokens": "Prompt tokens found in the prefix cache since the worker's start.",
    "prefix_cache_miss_tokens": "Prompt tokens that had to be read since the worker's start.",
    "prefix_cache_evictions": "Prompts dropped from the prefix cache since the worker's start.",
    "kv_cells": "KV cells of the worker.",
    "kv_cells_used": "KV cells in use, cached prompts included.",
    "sequences_paused": "Sequences paused since the worker's start because KV cells ran out.",
    "speculated_tokens": "Tokens proposed by speculation since the worker's start.",
    "speculated_tokens_accepted": "Proposed tokens that the model agreed to.",
    "prefill_chunk": "Prompt tokens that one decode step may carry at present.",
    "step_seconds": "Duration of a decode step, smoothed.",
    "remote_up": "Whether the remote server answered when it was last asked, 1 or 0.",
    "remote_active": "Requests that the remote server is answering.",
    "remote_retries": "Requests sent again since the worker's start.",
    "remote_failures": "Requests that the remote server failed since the worker's start.",
}


@dataclass(frozen=True)
class LoadRequest:
    """What to load. `context` is tokens per sequence, `slots` sequences that decode together,
    `threads` CPU threads, `options` the operator's `[models.NAME.options]` table, unchecked."""

    model: str
    path: Path | None
    context: int
    slots: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded.

    `context`: tokens per sequence that will really be held. `vocab`: any string that is equal for
    equal vocabularies. `chat_template`: Jinja source, or None when the model has none.
    `tool_template`: another one for conversations with tools, where the model brings two.
    `special_tokens`: the spelling of every control token and its id, so that a user who types one
    gets plain text. `bos`, `eos`: their spelling, for the template. `infill`: ids of the tokens
    that stand before the prefix, before the suffix and before the middle. `details`: shown to
    operators. `capabilities`: what of `CAPABILITIES` this model can do; requests for the rest get
    a 400.
    """

    context: int
    vocab: str
    chat_template: str | None = None
    tool_template: str | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    bos: str = ""
    eos: str = ""
    infill: tuple[int, int, int] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset({"generate"})


@dataclass(frozen=True)
class Sequence:
    """One sequence to generate. `id` is unique among those running. `prompt` is never empty.

    `produced` are tokens that another worker has already generated for this request: continue
    after them and count them for penalties. The token that follows n generated ones is drawn with
    `(seed, n)` and nothing else, so that two workers draw the same one.

    `limit`: no more than so many tokens will be wanted, `produced` included. `constraint` is what
    `compile` made of the request's constraint; a new object for each sequence. `logprobs`: report
    each token's probability and so many alternatives; with `prompt_logprobs` those of the prompt
    too. `cache`: prompts may be shared only among equal names.
    """

    id: int
    prompt: list[int]
    seed: int
    sampling: Sampling
    produced: list[int] = field(default_factory=list)
    limit: int = 1 << 30
    constraint: Any = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    cache: str = ""


@dataclass(frozen=True)
class Advance:
    """What one step gave one sequence: new tokens in order, and whether the model ended it. The
    ending token itself, if it has no text, is the last of `tokens`. A sequence still reading its
    prompt is not mentioned, unless it reports `prompt_logprobs`, one per token of the prompt.

    `logprobs`: one per token of `tokens`, where they were asked for. `cached`: with the first
    tokens, how many of the prompt's were not read again because a cache held them. `error`: why
    the sequence can't go on, for the client to read; it is over then.
    """

    id: int
    tokens: list[int]
    ended: bool = False
    error: str | None = None
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    cached: int = 0


class Backend(Protocol):
    """A loaded model. Keep no state per sequence after `remove`."""

    def load(self, request: LoadRequest) -> ModelInfo:
        """Load the model; may take minutes. Called once, before any other method."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `add_special`: put the model's own start token before it.
        `parse_special`: read the spelling of a control token as that token. A long text comes in
        growing parts first, to find out early that it can't fit."""
        ...

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token adds to the text; for control tokens b"", or their spelling with
        `special`."""
        ...

    def compile(self, constraint: Constraint) -> Any:
        """What `Sequence.constraint` will hold; only called with the capability `constrain`.
        Raises `RequestRefused` for one that is wrong or too large, and must be bounded in time."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers for operators' dashboards, such as the cache's size; called every second or so
        from another thread, and must not wait. May be empty. Names that are shown:
        `hookspecs.GAUGES`."""
        ...

    def add(self, sequence: Sequence) -> None:
        """Start a sequence. At most `slots` run at a time."""
        ...

    def remove(self, id: int) -> None:
        """Forget a sequence: it is finished or cancelled. Called once for every `add`."""
        ...

    def step(self) -> list[Advance]:
        """Advance the running sequences by one decode step, and return in well under a second:
        cancels and new sequences wait for it. Called again and again while any sequence runs."""
        ...

    def close(self) -> None:
        """Free the model. The process ends afterwards."""
        ...


class Sharing(Protocol):
    """What a `Backend` or an `Embedder` may have besides, if its threads are its own to choose."""

    def share(self, among: int) -> None:
        """So many workers compute on this box from now on, this one included: use that part of its
        cores. Called from the engine thread between two steps. Workers that all take every core
        are slowed down many times over."""
        ...


class Embedder(Protocol):
    """A loaded model that gives vectors (capability `embed`) or scores (`rank`)."""

    def load(self, request: LoadRequest) -> ModelInfo: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def token_bytes(self, token: int, *, special: bool = False) -> bytes: ...

    def pair(self, query: str, document: str) -> list[int]:
        """Tokens of a query and a document as the model wants to read them together."""
        ...

    @property
    def batch(self) -> int:
        """Most tokens that one `embed` takes, over all its inputs."""
        ...

    def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """For each input, of 1 to `context` tokens, one vector as little-endian float32: a unit
        vector, or the score alone where the model ranks."""
        ...

    def gauges(self) -> dict[str, float]: ...

    def close(self) -> None: ...


class Relay(Protocol):
    """Another server that answers whole requests; nothing is tokenized here."""

    async def open(self, request: LoadRequest) -> ModelInfo:
        """Called once, first. Need not reach the server: it may come up later."""
        ...

    async def relay(self, request: wire.Request, emit: Callable[[wire.Frame], None]) -> wire.Done:
        """Answer one request: `emit` frames as they come (`Step`, `Vectors`, `Tokens`, with the
        request's id) and return the last one; `await emit.drain()` between the parts of a long
        answer waits while the daemon is behind. Cancelled when the client leaves. Raises
        `RequestRefused` when the client is at fault, `RelayFailed` when the server is. The request
        with id 0, which warms a worker up, is answered by the worker and never gets here."""
        ...

    def gauges(self) -> dict[str, float]: ...

    async def close(self) -> None: ...


class Hooks:
    """The hooks. A worker calls each once and loads one plugin, so the first result counts."""

    @hookspec(firstresult=True)
    def hxd_describe(self) -> Description | None:
        """What this plugin can do. Must be quick and load no model library."""

    @hookspec
    def hxd_prepare(self) -> None:
        """Optional: import what loading will need. Called in each worker after `hxd_describe` and
        before `hxd_backend`, which a worker in reserve may wait long for; with it, a worker that is
        to take a dead one's place has the libraries loaded. What it raises ends the worker."""

    @hookspec(firstresult=True)
    def hxd_backend(
        self, options: dict[str, Any], path: Path | None
    ) -> Backend | Embedder | Relay | None:
        """Make the backend; import model libraries here, not at the top of the module. `path` is
        the file that `load` will get, for a plugin whose backend depends on what is in it."""

    @hookspec(firstresult=True)
    def hxd_quantize(
        self,
        source: Path,
        target: Path,
        variant: str,
        threads: int,
        progress: Callable[[float, str], None],
    ) -> bool | None:
        """Write `source` as `variant` to `target`; needed when `quantize` is a capability. Called
        in a worker of its own that holds no model. Call `progress(share, note)` when you can."""

    @hookspec(firstresult=True)
    def hxd_convert(
        self,
        source: Path,
        target: Path,
        name: str,
        weights: str | None,
        progress: Callable[[float, str], None],
    ) -> list[str] | None:
        """Write the model in the folder `source` as GGUF to `target`; needed when `convert` is a
        capability. `name` is what the model is called in the store; `weights` is `f32`, `f16` or
        `bf16`, and None leaves the choice to the plugin. Called in a worker of its own that holds
        no model, and that may be killed at any time. Returns where the file will differ from its
        source, a sentence each; the same source always gives the same bytes. Raises
        `NotConvertible`."""

"""The plugin contract: the one file that a plugin author reads.

A plugin is a folder with a `plugin.toml` and Python modules. It runs inside a worker process that
holds exactly one plugin and one loaded model; the daemon never imports it. Write two hooks and one
object:

- `hxd_describe` says what the plugin can do. Called once in each worker, before anything else.
- `hxd_backend` makes the backend. Called once in each worker, before the model is loaded.
- The `Backend` they return does the work. Its methods are called from one thread, the engine
  thread, except `tokenize` and `token_bytes`, which a second thread may call at the same time.

The worker does everything else: it renders the chat template, tokenizes through your `tokenize`,
joins bytes to whole characters, finds stop strings, counts, ends a sequence at `max_tokens` or at
the end of its context, and talks to the daemon. What you print goes to the daemon's log at level
debug, and its last lines into the report of a worker's death.

What an exception does: from a hook or `load`, the worker reports the message and exits, and the
daemon restarts it with growing pauses; from `tokenize` or `add`, that one request fails, with
status 400 if it is a `RequestRefused` and 502 otherwise; from `step`, every running request fails
and the worker is replaced, since nobody knows what state the model is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import pluggy

from hxd.wire import Sampling

NAMESPACE = "hxd"
API = 1

hookspec = pluggy.HookspecMarker(NAMESPACE)
# pluggy ships its markers as untyped call results; the cast keeps plugin code typed.
hookimpl = cast("Callable[[Callable[..., Any]], Any]", pluggy.HookimplMarker(NAMESPACE))


class RequestRefused(Exception):
    """Raise it from `tokenize` or `add` when the request is at fault: the client gets a 400 that
    names the parameter `param`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Description:
    """What a plugin can do. `formats`: file formats it loads (`gguf`, `ggml`), or `none` when it
    needs no file. `capabilities`: `generate`, and `quantize` with the hook of that name."""

    formats: frozenset[str]
    capabilities: frozenset[str] = frozenset({"generate"})


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
    `special_texts`: the spelling of every control token, so that a user who types one gets plain
    text. `bos`, `eos`: their spelling, for the template. `details`: shown to operators.
    """

    context: int
    vocab: str
    chat_template: str | None = None
    special_texts: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sequence:
    """One sequence to generate. `id` is unique among those running. `prompt` is never empty.

    `produced` are tokens that another worker has already generated for this request: continue
    after them and count them for penalties. The token that follows n generated ones is drawn with
    `(seed, n)` and nothing else, so that two workers draw the same one.
    """

    id: int
    prompt: list[int]
    seed: int
    sampling: Sampling
    produced: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Advance:
    """What one step gave one sequence: new tokens in order, and whether the model ended it. The
    ending token itself, if it has no text, is the last of `tokens`. A sequence still reading its
    prompt is not mentioned."""

    id: int
    tokens: list[int]
    ended: bool = False


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

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text; b"" for control tokens."""
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


class Hooks:
    """The hooks. A worker calls each once and loads one plugin, so the first result counts."""

    @hookspec(firstresult=True)
    def hxd_describe(self) -> Description | None:
        """What this plugin can do. Must be quick and load no model library."""

    @hookspec(firstresult=True)
    def hxd_backend(self, options: dict[str, Any]) -> Backend | None:
        """Make the backend; import model libraries here, not at the top of the module."""

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

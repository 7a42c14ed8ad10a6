"""Every setting, declared once: default, unit, help. `docs/config.md` and `etc/hxd.toml` are
generated from these declarations by `scripts/config-docs`, and a test compares them."""

# ruff: noqa: RUF009  (the calls make dataclass fields, which is what the rule wants)

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hxd.config import kinds
from hxd.config.kinds import Address

LARGEST_BODY = 16 << 20


def _setting(default: Any, kind: kinds.Kind, help: str, *, show: str | None = None) -> Any:
    """`show` is the default as the docs write it, where that differs from its TOML."""
    metadata = {"kind": kind, "help": help, "show": show}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Listen:
    """Where clients connect."""

    http: Address = _setting(
        Address("127.0.0.1", 8420),
        kinds.address,
        "Address and port of the HTTP API; port 0 picks one.",
    )
    names: tuple[str, ...] = _setting(
        (),
        kinds.texts,
        "Host names by which clients call this box, besides addresses, `localhost` and its own "
        "name. Others are refused, since a web page could have made them up (DNS rebinding).",
    )


@dataclass(frozen=True)
class AuthSettings:
    """Who may call. Keys are made with `hxctl key create`."""

    required: bool = _setting(
        True,
        kinds.boolean,
        "Whether every route needs a key. `false` is refused unless every listener is on loopback.",
    )


def _folder(variable: str, root: str, user_variable: str, user_default: str) -> Callable[[], Path]:
    """systemd's own variable first; else `root` for root and the XDG folder for a user."""

    def choose() -> Path:
        if given := os.environ.get(variable):
            return Path(given.split(":")[0])
        if os.geteuid() == 0:
            return Path(root)
        base = os.environ.get(user_variable) or Path.home() / user_default
        return Path(base) / "hxd"

    return choose


def _place(choose: Callable[[], Path], help: str, show: str) -> Any:
    def read(value: Any) -> Path:
        return Path(kinds.text(value)).expanduser()

    return field(default_factory=choose, metadata={"kind": read, "help": help, "show": show})


@dataclass(frozen=True)
class Paths:
    """Where hxd keeps its things. The defaults are systemd's STATE_DIRECTORY, RUNTIME_DIRECTORY,
    LOGS_DIRECTORY and CACHE_DIRECTORY; without systemd the ones shown for root, and the XDG folders
    for a user. Relative paths start at the folder of the config file."""

    state: Path = _place(
        _folder("STATE_DIRECTORY", "/var/lib/hxd", "XDG_STATE_HOME", ".local/state"),
        "Keys and everything that must outlive a restart.",
        "/var/lib/hxd",
    )
    runtime: Path = _place(
        _folder("RUNTIME_DIRECTORY", "/run/hxd", "XDG_RUNTIME_DIR", ".local/run"),
        "The admin socket and the lock.",
        "/run/hxd",
    )
    logs: Path = _place(
        _folder("LOGS_DIRECTORY", "/var/log/hxd", "XDG_STATE_HOME", ".local/state"),
        "`events.jsonl`: what has happened to versions, plugins and the configuration.",
        "/var/log/hxd",
    )
    cache: Path = _place(
        _folder("CACHE_DIRECTORY", "/var/cache/hxd", "XDG_CACHE_HOME", ".cache"),
        "What can be made again, such as quantized variants.",
        "/var/cache/hxd",
    )


@dataclass(frozen=True)
class Limits:
    """Bounds on what one client can ask of the daemon."""

    body: int = _setting(
        4 << 20, kinds.size(1 << 10, LARGEST_BODY), "Largest request body.", show="4MiB"
    )
    body_time: float = _setting(
        15.0,
        kinds.seconds(0.1, 3600),
        "Time in which a request body must have arrived.",
        show="15s",
    )
    header_time: float = _setting(
        10.0,
        kinds.seconds(0.1, 3600),
        "Time in which a request's headers must be there.",
        show="10s",
    )
    keepalive: float = _setting(
        75.0, kinds.seconds(1, 3600), "How long an idle connection stays open.", show="75s"
    )
    write_stall: float = _setting(
        10.0,
        kinds.seconds(0.1, 3600),
        "A client that takes no byte of its answer for so long is cut off.",
        show="10s",
    )
    drain: float = _setting(
        30.0,
        kinds.seconds(0, 3600),
        "How long running requests may take to finish after SIGTERM.",
        show="30s",
    )


@dataclass(frozen=True)
class Memory:
    """How much of the box hxd may fill."""

    budget: int | None = _setting(
        None,
        kinds.budget,
        "Largest sum of the models' estimates: a size, or `auto` for the cgroup's limit or 85 % "
        "of the RAM, whichever is less.",
        show="auto",
    )


@dataclass(frozen=True)
class Plugins:
    """Where backends come from, besides those that hxd brings along."""

    folders: tuple[str, ...] = _setting(
        (), kinds.texts, "Folders that hold plugin folders; a later one wins over a built-in name."
    )


@dataclass(frozen=True)
class Pull:
    """How `hxctl model pull`, and the doctor with `--pull`, reach other servers."""

    proxy: str = _setting(
        "auto",
        kinds.proxy,
        "HTTP proxy, `http://HOST:PORT`, with `USER:PASSWORD@` before the host if it asks; "
        "`auto` takes it from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY in the daemon's "
        "environment; `none` asks servers directly. Loopback is never asked through one.",
    )
    no_proxy: tuple[str, ...] = _setting(
        (),
        kinds.hosts,
        "Hosts to ask directly all the same: names, with all below them, addresses and networks; "
        "beside those in NO_PROXY where `proxy` is `auto`.",
    )


@dataclass(frozen=True)
class Log:
    """What the daemon writes to standard error."""

    level: str = _setting(
        "info", kinds.one_of("debug", "info", "warning", "error"), "Least severe line to write."
    )


@dataclass(frozen=True)
class ModelSettings:
    """One served model; NAME is what clients send."""

    source: str | None = _setting(
        None,
        kinds.text,
        "A model file; a reference to the store, `NAME[:VARIANT][@VERSION-OR-LABEL]`, with "
        "`store:` before it where a file has that name; or `builtin:demo`, which is `hxd-demo` in "
        "the store. A name alone follows the label `stable`. Needed unless the plugin works "
        "without a file.",
        show="none",
    )
    plugin: str = _setting(
        "auto",
        kinds.text,
        "Backend plugin, NAME or NAME@VERSION; `auto` goes by the format of the file.",
    )
    replicas: int = _setting(1, kinds.integer(1, 64), "Worker processes for this model.")
    policy: str = _setting(
        "auto",
        kinds.one_of(
            "auto", "pack", "round_robin", "weighted", "least_busy", "health_weighted", "fastest"
        ),
        "Which replica takes the next sequence: `pack` fills one before it uses the next, which "
        "stays a warm standby; the others spread. `auto` is `pack` for model files, whose replicas "
        "share the box's cores and memory, and `least_busy` for plugins that load none.",
    )
    weights: tuple[float, ...] = _setting(
        (),
        kinds.weights,
        "Shares of the traffic for the policy `weighted`, one per replica; 1 for those not named.",
    )
    slots: int = _setting(4, kinds.integer(1, 256), "Sequences that decode together in one worker.")
    context: int = _setting(
        2048, kinds.integer(16, 1 << 24), "Tokens per sequence, prompt and answer together."
    )
    variants: tuple[str, ...] = _setting(
        (),
        kinds.texts,
        "Quantizations to use, best first, such as `q8_0` or `q4_k_m`; made from the source when "
        "it is another one. The first is served. None: the source as it is.",
    )
    threads: int = _setting(
        0, kinds.integer(0, 1024), "CPU threads per worker; 0 chooses by the machine and the model."
    )
    queue: int = _setting(
        128, kinds.integer(0, 1 << 16), "Sequences that may wait for a slot; more are answered 429."
    )
    queue_time: float = _setting(
        60.0,
        kinds.seconds(0.1, 86400),
        "How long a request may wait for a slot before it is answered 503.",
        show="60s",
    )
    prefix_cache: str = _setting(
        "shared",
        kinds.one_of("shared", "per_key"),
        "Who may share cached prompts: everyone, or each key only with itself. Sharing saves most; "
        "but how fast an answer begins tells whether somebody has sent the same beginning before.",
    )
    load_time: float = _setting(
        300.0, kinds.seconds(0.1, 86400), "How long a worker may take to load the model.", show="5m"
    )
    stall_time: float = _setting(
        30.0,
        kinds.seconds(0.1, 86400),
        "A worker with running sequences that finishes no decode step for so long is replaced.",
        show="30s",
    )
    memory_limit: int | None = _setting(
        None,
        kinds.budget,
        "Most private memory of one worker (its weights, being mapped, do not count): a size, or "
        '"auto" for no limit.',
        show="auto",
    )
    reserve: bool = _setting(
        True,
        kinds.boolean,
        "Whether, once a worker has died, another one waits for the next death with its libraries "
        "loaded. It makes replacing a small model's worker several times faster, and costs some "
        "50 MB for as long as workers die at least once an hour.",
    )
    environment: tuple[str, ...] = _setting(
        (),
        kinds.texts,
        "Names of environment variables of the daemon that this model's workers may see, such as "
        "the one with the key of a remote server. Workers see little of it otherwise.",
    )
    grace: float = _setting(
        300.0,
        kinds.seconds(0, 86400),
        "How long the workers of the version before stay after a swap, so that a rollback is "
        "instant and a version that fails can take itself back.",
        show="5m",
    )
    required: bool = _setting(
        True, kinds.boolean, "Whether `/readyz` says no while this model can't answer."
    )
    options: dict[str, Any] = _setting(
        {}, kinds.table, "Settings of the plugin's own; see its documentation.", show="{}"
    )


@dataclass(frozen=True)
class RouteSettings:
    """A name that stands for a chain of models; clients send NAME, and read in `x-hxd-model` who
    has answered."""

    chain: tuple[str, ...] = _setting(
        (),
        kinds.texts,
        "Models or other routes, best first. The first one with a replica that can answer does; a "
        "stream that lost its model goes on with the next one if that has the same vocabulary.",
    )


@dataclass(frozen=True)
class Config:
    """A whole, valid configuration. `origin` is the file that `--config` named, and `places` are
    the files where keys stand, by their paths."""

    origin: Path
    listen: Listen = field(default_factory=Listen)
    auth: AuthSettings = field(default_factory=AuthSettings)
    paths: Paths = field(default_factory=Paths)
    limits: Limits = field(default_factory=Limits)
    memory: Memory = field(default_factory=Memory)
    plugins: Plugins = field(default_factory=Plugins)
    pull: Pull = field(default_factory=Pull)
    log: Log = field(default_factory=Log)
    models: dict[str, ModelSettings] = field(default_factory=dict)
    routes: dict[str, RouteSettings] = field(default_factory=dict)
    places: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)

    def at(self, key: str) -> str:
        """`FILE: key.path`, with the file that says most of the path."""
        parts = key.split(".")
        while parts:
            if file := self.places.get(".".join(parts)):
                return f"{file}: {key}"
            parts.pop()
        return f"{self.origin}: {key}"


SECTIONS: dict[str, type[Any]] = {
    "listen": Listen,
    "auth": AuthSettings,
    "paths": Paths,
    "limits": Limits,
    "memory": Memory,
    "plugins": Plugins,
    "pull": Pull,
    "log": Log,
}

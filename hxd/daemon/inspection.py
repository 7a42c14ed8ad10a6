"""What a configuration comes to on this box, found without starting anything; and the folders that
one daemon has for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hxd.config import Config, durable
from hxd.daemon.lock import ADMIN_SOCKET, alone
from hxd.daemon.rollout.record import Record
from hxd.daemon.store.keys import KeyFileError, KeyStore
from hxd.daemon.store.sources import Source, SourceError
from hxd.daemon.store.stores import Stores
from hxd.daemon.supervise import variants
from hxd.daemon.supervise.memory import automatic_budget
from hxd.errors import ConfigError, HxdError


@contextlib.contextmanager
def claim(config: Config) -> Iterator[Stores]:
    """The folders, made, locked and cleared of what a crash left behind; the stores in them.
    Blocks. Raises `ConfigError`."""
    paths = config.paths
    for key in ("state", "runtime", "logs", "cache"):
        folder: Path = getattr(paths, key)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                [f"{config.origin}: paths.{key}: can't make {folder}: {error.strerror}"]
            ) from None
    stores = Stores.of(paths.state)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(paths.runtime, config.origin))
        (paths.runtime / ADMIN_SOCKET).unlink(missing_ok=True)
        variants.clean(paths.cache)
        try:
            stack.enter_context(stores.held())
        except HxdError as error:
            raise ConfigError([f"{config.origin}: paths.state: {error}"]) from None
        with contextlib.suppress(OSError):
            # Only now: who has the stores is the only one to write there.
            durable.sweep(paths.state)
        yield stores


@dataclass(frozen=True)
class Inspection:
    """What the configuration comes to: models that can be served, and why others can't. `instead`
    says of a model why it is not served as it should be, but by another version."""

    sources: Mapping[str, Source]
    refused: Mapping[str, SourceError]
    keys: KeyStore
    stores: Stores
    record: Record
    instead: Mapping[str, SourceError] = field(default_factory=dict)

    def findings(self, config: Config) -> list[str]:
        return [
            f"{config.at(f'models.{name}.{error.key}')}: {error}"
            for name, error in {**self.refused, **self.instead}.items()
        ]


def inspect(config: Config, stores: Stores | None = None) -> Inspection:
    """Blocks. Raises `ConfigError` for what no model can be blamed for."""
    stores = stores or Stores.of(config.paths.state)
    record = Record(config.paths.state)
    record.load()
    found: dict[str, Source] = {}
    refused: dict[str, SourceError] = {}
    instead: dict[str, SourceError] = {}
    resolver = stores.resolver(config)
    for name, settings in config.models.items():
        deployed = record.of(name, settings)
        try:
            found[name], wrong = resolver.first(name, (deployed.choice, *reversed(deployed.former)))
        except SourceError as error:
            refused[name] = error
            continue
        if wrong is not None:
            instead[name] = wrong
    budget = config.memory.budget or automatic_budget()
    _fit(found, refused, budget)
    keys = KeyStore(config.paths.state)
    try:
        keys.load()
    except KeyFileError as error:
        raise ConfigError([str(error)]) from None
    return Inspection(found, refused, keys, stores, record, instead)


def _fit(found: dict[str, Source], refused: dict[str, SourceError], budget: int) -> None:
    """Refuses, last first, the models that do not fit together; weights are mapped once, so
    replicas of one model share them, and counting each whole errs on the safe side."""
    total = 0
    for name, source in list(found.items()):
        need = source.estimate * source.settings.replicas
        if total + need > budget:
            del found[name]
            refused[name] = SourceError(
                "source",
                f"about {need / 1e6:.0f} MB are needed for {source.settings.replicas} replicas, "
                f"and {max(0, budget - total) / 1e6:.0f} MB of the memory budget are left; use "
                "fewer slots, a smaller context or variant, or raise memory.budget",
            )
        else:
            total += need

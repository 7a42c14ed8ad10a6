"""The stores of one daemon, below its state folder: models, and plugins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hxd.config import Config
from hxd.daemon.store import demo, disk
from hxd.daemon.store.library import Library
from hxd.daemon.store.plugin_store import PluginStore
from hxd.daemon.store.plugins import Plugins
from hxd.daemon.store.sources import Resolver, Source

FOLDER = "store"


@dataclass(frozen=True)
class Stores:
    """Everything here blocks."""

    models: Library
    plugins: PluginStore

    @classmethod
    def of(cls, state: Path) -> Stores:
        return cls(Library(state / FOLDER), PluginStore(state / FOLDER / "plugins"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """As the only process that writes, with what a crash left behind cleaned up. Raises
        `StoreError`."""
        with self.models.lock():
            self.models.prepare()
            self.plugins.prepare()
            yield

    def resolver(self, config: Config) -> Resolver:
        return Resolver(config, self.catalog(config), self.models)

    def catalog(self, config: Config) -> Plugins:
        return self.plugins.catalog(folders(config))

    def golden(self, source: Source) -> bytes | None:
        """The golden prompts of a release: the store's, else those that came with the demo."""
        if source.held is None:
            return None
        found = self.models.golden(source.held.name)
        return demo.golden() if found is None and source.held.name == demo.NAME else found


def folders(config: Config) -> list[Path]:
    """Where the operator says that plugins lie."""
    return [config.origin.parent / disk.expanded(folder) for folder in config.plugins.folders]

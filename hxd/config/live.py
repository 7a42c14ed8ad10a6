"""The configuration that holds now. It is replaced as a whole, on the event loop; who needs a
setting reads it here when it is needed, and keeps no copy."""

from __future__ import annotations

from hxd.config.settings import Config, Limits


class Live:
    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def limits(self) -> Limits:
        return self.config.limits

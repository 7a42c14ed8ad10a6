"""Which model a client means, and the list of those there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hxd.daemon.request.admit import Gate
from hxd.daemon.store.sources import Source, SourceError
from hxd.errors import ModelNotFound, Unavailable

RETRY_AFTER = 60.0  # an operator has to act first
STABLE = "stable"


@dataclass(frozen=True)
class Served:
    source: Source
    gate: Gate

    def headers(self) -> dict[str, str]:
        return {
            "x-hxd-model": self.source.name,
            "x-hxd-version": str(self.source.version),
            "x-hxd-variant": self.source.variant,
        }


@dataclass(frozen=True)
class Catalog:
    """The served models; `refused` says of others why they can't be. `created` is when the daemon
    started, in Unix seconds."""

    served: Mapping[str, Served]
    refused: Mapping[str, SourceError]
    created: int

    def find(self, reference: str) -> Served:
        """The model for `name[:variant][@version-or-label]`.

        Raises `ModelNotFound`, or `Unavailable` for one that is configured but can't be served.
        """
        if found := self.served.get(reference):
            return found
        rest, _, version = reference.partition("@")
        name, _, variant = rest.partition(":")
        found = self.served.get(name)
        if (
            found is not None
            and variant in ("", found.source.variant)
            and version in ("", STABLE, str(found.source.version))
        ):
            return found
        if name in self.refused:
            raise Unavailable(
                f"the model {name!r} can't be served: {self.refused[name]}",
                code="model_unavailable",
                retry_after=RETRY_AFTER,
            )
        # A name from outside may be long, and goes into a log line.
        raise ModelNotFound(reference[:200], self.served)

    def list(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.entry(s) for s in self.served.values()]}

    def entry(self, served: Served) -> dict[str, Any]:
        source = served.source
        return {
            "id": source.name,
            "object": "model",
            "created": self.created,
            "owned_by": "hxd",
            "hxd": {
                "version": source.version,
                "variant": source.variant,
                "plugin": source.plugin.manifest.name,
                "context": source.context,
            },
        }

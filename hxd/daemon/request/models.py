"""Which model a client means, and the list of those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hxd.config import RouteSettings
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
    """The served models; `refused` says of others why they can't be. `routes` are chains of models,
    best first; `fell_back` is told of each model that is to answer in place of a better one.
    `created` is when the daemon started, in Unix seconds."""

    served: Mapping[str, Served]
    refused: Mapping[str, SourceError]
    created: int
    routes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fell_back: Callable[[str], None] = lambda model: None

    def chain(self, reference: str) -> list[Served]:
        """The models that may answer for a model or a route, at least one. Those that can answer
        now come first, then those that are on their way. Raises as `find`."""
        if reference not in self.routes:
            return [self.find(reference)]
        links = [self.served[name] for name in self.routes[reference] if name in self.served]
        if not links:
            return [self.find(self.routes[reference][0])]
        chain = sorted(links, key=lambda served: (not served.gate.able(), served.gate.hopeless))
        if chain[0].source.name != self.routes[reference][0]:
            self.fell_back(chain[0].source.name)
        return chain

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
        raise ModelNotFound(reference[:200], [*self.served, *self.routes])

    def list(self) -> dict[str, Any]:
        data = [self.entry(served) for served in self.served.values()]
        return {"object": "list", "data": data + [self.route(name) for name in self.routes]}

    def route(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "hxd",
            "hxd": {"chain": list(self.routes[name])},
        }

    def named(self, name: str) -> dict[str, Any]:
        """The entry of one model or route; raises as `find`."""
        return self.route(name) if name in self.routes else self.entry(self.find(name))

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


def flatten(routes: Mapping[str, RouteSettings]) -> dict[str, list[str]]:
    """Each route's models in order, routes within routes resolved; they have no cycles."""

    def models(name: str) -> Iterator[str]:
        if name in routes:
            for link in routes[name].chain:
                yield from models(link)
        else:
            yield name

    return {name: list(dict.fromkeys(models(name))) for name in routes}

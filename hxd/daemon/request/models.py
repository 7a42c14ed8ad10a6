"""Which model a client means, and the list of those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hxd.config import RouteSettings
from hxd.daemon.request.deployment import NOBODY, Asker, Deployment, Served
from hxd.daemon.store.sources import SourceError
from hxd.errors import ModelNotFound, Unavailable

RETRY_AFTER = 60.0  # an operator has to act first
STABLE = "stable"
CANARY = "canary"


@dataclass(frozen=True)
class Catalog:
    """The served models; `refused` says of others why they can't be. `routes` are chains of models,
    best first; `fell_back` is told of each model that is to answer in place of a better one.
    `created` is when the daemon started, in Unix seconds. `labels` gives the store's labels of a
    served model."""

    served: Mapping[str, Deployment]
    refused: Mapping[str, SourceError]
    created: int
    routes: dict[str, list[str]] = field(default_factory=dict)
    fell_back: Callable[[str], None] = lambda model: None
    labels: Callable[[str], Mapping[str, int]] = lambda model: {}

    def chain(self, reference: str, asker: Asker = NOBODY) -> list[Served]:
        """The releases that may answer for a model or a route, at least one. Of a route, the models
        that can answer now come first, then those that are on their way. Raises as `find`."""
        if reference not in self.routes:
            if deployment := self.served.get(reference):
                return deployment.chain(asker)
            return [self.find(reference)]
        links = [self.served[name] for name in self.routes[reference] if name in self.served]
        if not links:
            return [self.find(self.routes[reference][0])]
        models = sorted(links, key=_readiness)
        if models[0].name != self.routes[reference][0]:
            self.fell_back(models[0].name)
        return [served for model in models for served in model.chain(asker)]

    def find(self, reference: str) -> Served:
        """The model for `name[:variant][@version-or-label]`.

        Raises `ModelNotFound`, or `Unavailable` for one that is configured but can't be served.
        """
        rest, _, version = reference.partition("@")
        name, _, variant = rest.partition(":")
        deployment = self.served.get(name)
        if deployment is not None:
            for served in deployment.releases():
                if variant in ("", served.source.variant) and self._is(served, version):
                    return served
            raise self._not_served(reference[:200], deployment)
        if name in self.refused:
            raise Unavailable(
                f"the model {name!r} can't be served: {self.refused[name]}",
                code="model_unavailable",
                retry_after=RETRY_AFTER,
            )
        # A name from outside may be long, and goes into a log line.
        raise ModelNotFound(reference[:200], [*self.served, *self.routes])

    def _is(self, served: Served, version: str) -> bool:
        """Whether `version`, a number or a label or nothing, means this release."""
        deployment = served.deployment
        if deployment is None:
            return True
        if version in ("", STABLE):
            # Another variant of it may be there too; the one in service comes first.
            return served.source.version == deployment.current.source.version
        if version == CANARY:
            return deployment.trial is not None and deployment.trial.served is served
        if version.isdecimal():
            return version == str(served.source.version)
        return self.labels(deployment.name).get(version) == served.source.version

    def _not_served(self, asked: str, deployment: Deployment) -> ModelNotFound:
        return ModelNotFound(
            asked,
            [served.source.reference for served in deployment.releases()]
            + [name for name in (*self.served, *self.routes) if name != deployment.name],
        )

    def list(self) -> dict[str, Any]:
        data = [self.entry(deployment.current) for deployment in self.served.values()]
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


def _readiness(deployment: Deployment) -> tuple[bool, bool]:
    gate = deployment.current.gate
    return not gate.able(), gate.hopeless


def flatten(routes: Mapping[str, RouteSettings]) -> dict[str, list[str]]:
    """Each route's models in order, routes within routes resolved; they have no cycles."""

    def models(name: str) -> Iterator[str]:
        if name in routes:
            for link in routes[name].chain:
                yield from models(link)
        else:
            yield name

    return {name: list(dict.fromkeys(models(name))) for name in routes}

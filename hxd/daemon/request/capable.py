"""Which models can do what, as their replicas said when they loaded, and which one a client means
that names none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hxd.daemon.request.deployment import NOBODY, Asker, Served
from hxd.daemon.request.models import Catalog
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor
from hxd.errors import CallerError

# A capability of `hookspecs.CAPABILITIES`, in words.
VERBS = {
    "generate": "generate text",
    "embed": "make embeddings",
    "rank": "rank documents",
}


@dataclass(frozen=True)
class Abilities:
    catalog: Catalog
    supervisor: Supervisor

    def of(self, served: Served) -> frozenset[str] | None:
        """None while no replica has loaded yet."""
        replicas = self.supervisor.replicas.get(served.source.key, [])
        said = [r.loaded.capabilities for r in replicas if r.loaded is not None]
        return frozenset().union(*said) if said else None

    def find(
        self, reference: str | None, capability: str | None, asker: Asker = NOBODY
    ) -> list[Served]:
        """The releases that may answer for the model or route that `reference` names, best first,
        or for the only model that could be meant. Raises `CallerError` when none can do it, or as
        `Catalog.find`."""
        if reference is None:
            return self.catalog.chain(self._only(capability).source.name, asker)
        chain = self.catalog.chain(reference, asker)
        if capability is not None:
            able = [served for served in chain if self._may_do(served, capability)]
            if not able:
                raise self._unable(chain[0], capability)
            return able
        return chain

    def _may_do(self, served: Served, capability: str) -> bool:
        """Unless the model is known to lack it."""
        known = self.of(served)
        return known is None or capability in known

    def confirm(self, served: Served, capability: str, replica: Replica) -> None:
        """The same of a replica that is ready, and so has said what it can do."""
        if replica.loaded is not None and capability not in replica.loaded.capabilities:
            raise self._unable(served, capability)

    def _only(self, capability: str | None) -> Served:
        able = [deployment.current for deployment in self.catalog.served.values()]
        if capability is not None:
            able = [one for one in able if self._may(one, capability)]
        if not able and capability is not None:
            raise CallerError(f"no model served here can {VERBS[capability]}", param="model")
        if len(able) != 1:
            raise CallerError(
                f"model: this field is required; {_names(able)} could be meant", param="model"
            )
        return able[0]

    def _may(self, served: Served, capability: str) -> bool:
        known = self.of(served)
        return served.source.embeds if known is None else capability in known

    def _unable(self, served: Served, capability: str) -> CallerError:
        able = [
            deployment.current
            for deployment in self.catalog.served.values()
            if capability in (self.of(deployment.current) or ())
        ]
        verb = VERBS[capability]
        others = f"{_names(able)} can" if able else "no model served here can"
        return CallerError(
            f"the model {served.source.name!r} can't {verb}; {others}",
            param="model",
            code="unsupported_by_model",
        )


def _names(models: Iterable[Served]) -> str:
    return ", ".join(sorted(one.source.name for one in models)) or "none"

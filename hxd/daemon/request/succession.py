"""Which release answers a sequence, and which one can take over what it has begun."""

from __future__ import annotations

from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.request.deployment import Served
from hxd.daemon.supervise.supervisor import Supervisor


class Succession:
    """`served` is the release that is asked now. `chain` holds those that may answer, best first,
    and is shared with the request's other sequences: its first is the one that they ask. With
    `strict` no release may answer that is not in it.

    `bound` is the vocabulary in which the client has begun to read; None while the answer may still
    begin anew.
    """

    def __init__(
        self, chain: list[Served], supervisor: Supervisor, metrics: Metrics, *, strict: bool
    ) -> None:
        self.served = chain[0]
        self._chain = chain
        self._supervisor = supervisor
        self._metrics = metrics
        self._strict = strict
        self._spent: set[str] = set()

    @property
    def refuge(self) -> Served | None:
        return None if self._strict else self.served.refuge

    @property
    def successor(self) -> Served | None:
        return None if self._strict else self.served.successor

    def advance(self, bound: str | None) -> bool:
        """Whether another release can be asked; from here on it is."""
        after = self._after(bound) or self._way_back(bound)
        if after is not None:
            self._enter(after)
        return after is not None

    def retreat(self) -> bool:
        """The same with the refuge and nothing else, of a request that has nothing of an answer."""
        refuge = self.refuge
        if refuge is None or refuge.source.key in self._spent:
            return False
        self._enter(refuge)
        return True

    def _enter(self, after: Served) -> None:
        chain = self._chain
        self._spent.add(self.served.source.key)
        if after not in chain:
            # Those behind the one that it replaces may still be needed.
            chain[: int(chain[0] is self.served)] = [after]
        elif chain[0] is not after:
            del chain[: chain.index(after)]
            if after.source.name != self.served.source.name:
                self._metrics.fell_back(after.source.name)
        self.served = after

    def relieve(self, bound: str | None) -> bool:
        """The same, if the other one can answer at once."""
        after = self._after(bound)
        if after is None or not after.gate.able():
            return False
        self._enter(after)
        return True

    def movable(self, bound: str | None) -> bool:
        """Whether there is a place at the successor now."""
        after = self.successor
        return after is not None and after.gate.able() and self._fits(after, bound)

    def parted(self, bound: str | None) -> bool:
        """Whether there is a successor that can't go on for the client."""
        after = self.successor
        return after is not None and not self._fits(after, bound)

    def others(self, replica: str | None) -> bool:
        """Whether the release has a worker beside that one."""
        ready = self._supervisor.ready(self.served.source.key)
        return any(one.id != replica and not one.suspect for one in ready)

    def vocabularies(self, replica: str) -> set[str]:
        """Those of the workers beside that one."""
        ready = self._supervisor.ready(self.served.source.key)
        return {one.loaded.vocab for one in ready if one.id != replica and one.loaded is not None}

    def _after(self, bound: str | None) -> Served | None:
        """One of the same model that can answer now, before other models; another strand of the
        request may have gone on to it already. A release that is in service no more hands over to
        the one that is."""
        spent = {*self._spent, self.served.source.key}
        for one in (self.refuge, *self._chain, self.successor):
            if one is not None and one.source.key not in spent and self._fits(one, bound):
                return one
        return None

    def _way_back(self, bound: str | None) -> Served | None:
        """What is in service instead of a release that is gone, though it was left for that one."""
        after = self.successor
        if after is None or not self.served.gate.hopeless or after.gate.hopeless:
            return None
        return after if self._fits(after, bound) else None

    def _fits(self, served: Served, bound: str | None) -> bool:
        if bound is None:
            return True
        replicas = self._supervisor.replicas.get(served.source.key, ())
        vocabs = {one.loaded.vocab for one in replicas if one.loaded is not None}
        if not vocabs and served.source.name == self.served.source.name:
            # A version that is still to load, and whose vocabulary is most likely the same.
            return True
        return vocabs == {bound}

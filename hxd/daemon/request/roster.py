"""The replicas of one release in the eyes of who hands out work: breaker, health, weight, turn.

Owns the breakers and what requests have taught about replicas; whether a replica exists and lives
is the supervisor's. Everything that may send to a worker asks here: the gates, and the prober.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hxd.clock import Clock
from hxd.daemon.request.breaker import Breaker, Cause, Probe
from hxd.daemon.request.breaker import State as BreakerState
from hxd.daemon.request.choose import Candidate, make
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.ewma import Ewma
from hxd.daemon.supervise.health import Health, Signs, assess, ramp, weight
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor

ASSESSED_EVERY = 0.25  # seconds; a choice must not cost an assessment of every replica
LATENCY_HALF_LIFE = 10.0  # seconds, of what `fastest` goes by
LATENCY_FORGOTTEN = 10.0  # seconds without an answer from the replica


@dataclass
class Standing:
    """One replica in the eyes of its model's requests. `share` is the operator's weight."""

    share: float = 1.0
    breaker: Breaker = field(default_factory=Breaker)
    latency: Ewma = field(default_factory=lambda: Ewma(LATENCY_HALF_LIFE))
    timed_at: float = float("-inf")
    health: Health = field(default_factory=lambda: assess(Signs()))
    assessed_at: float = float("-inf")


@dataclass
class Grant:
    """Leave to send one request to `replica`. Say how it went once, with `succeeded` or `failed`;
    a request that says nothing about the replica (a fault of the caller, a cancel) says neither,
    and `settle` ends it."""

    replica: Replica
    _standing: Standing
    _generation: int
    _probe: Probe | None
    _clock: Clock
    _settled: bool = False

    def succeeded(self, seconds_per_token: float | None = None) -> None:
        if self._settled:
            return
        self._settled, now = True, self._clock.now()
        if seconds_per_token is not None:
            self._standing.latency.update(seconds_per_token, now)
            self._standing.timed_at = now
        if self._probe is not None:
            self._probe.succeeded(now)
        else:
            self._standing.breaker.succeeded(self._generation, now)

    def failed(self) -> None:
        if self._settled:
            return
        self._settled, now = True, self._clock.now()
        if self._probe is not None:
            self._probe.failed(now)
        else:
            self._standing.breaker.failed(self._generation, now)

    def settle(self) -> None:
        self._settled = True
        if self._probe is not None:
            self._probe.given_back()


class Roster:
    """Of one release; `at_once` is how many requests one replica works on at a time."""

    def __init__(
        self, source: Source, supervisor: Supervisor, clock: Clock, rng: random.Random
    ) -> None:
        self.model = source.name
        self.key = source.key
        self.at_once = source.at_once
        self._supervisor = supervisor
        self._clock = clock
        self._random = rng
        self._standings: dict[str, Standing] = {}
        self.policy_name = ""
        self.arrange(source)

    def arrange(self, source: Source) -> None:
        """Policy and weights as the settings say now."""
        if self.policy_name != (name := policy_for(source)):
            self.policy_name, self._policy = name, make(name, self._random)
        self._shares = source.settings.weights
        for replica in self._supervisor.replicas.get(self.key, ()):
            if replica.id in self._standings:
                self._standings[replica.id].share = self._share(replica)

    def _share(self, replica: Replica) -> float:
        place = replica.place
        return self._shares[place] if place < len(self._shares) else 1.0

    def standing(self, replica: Replica) -> Standing:
        found = self._standings.get(replica.id)
        if found is None:
            found = self._standings[replica.id] = Standing(self._share(replica))
        return found

    def changed(self, replica: Replica, old: State, new: State) -> None:
        """A transition of one of the model's replicas; the supervisor's listener calls it."""
        if old is State.READY and new is State.FAILED:
            self.standing(replica).breaker.died(self._clock.now())
        if new is State.STOPPED and replica not in self._supervisor.replicas.get(self.key, ()):
            self._standings.pop(replica.id, None)

    def demanded(self) -> None:
        """The model has received one request."""
        now = self._clock.now()
        for replica in self._supervisor.ready(self.key):
            self.standing(replica).breaker.demanded(now)

    def health(self, replica: Replica) -> Health:
        now = self._clock.now()
        standing = self.standing(replica)
        if now - standing.assessed_at >= ASSESSED_EVERY:
            failures, total = standing.breaker.errors(now)
            signs = (
                Signs(failures=failures, requests=total, slots=self.at_once)
                if replica.vitals is None
                else replica.vitals.signs(failures, total, self.at_once)
            )
            standing.health, standing.assessed_at = assess(signs), now
        return standing.health

    def weight(self, replica: Replica) -> float:
        """Share of its usual traffic that the replica should get: its health's, and less while it
        has only just come back."""
        score = weight(self.health(replica).score)
        if replica.restarts:
            score *= ramp(self._clock.now() - replica.since)
        return score

    def breaker_state(self, replica: Replica) -> BreakerState:
        return self.standing(replica).breaker.state(self._clock.now())

    def able(self) -> bool:
        """Whether some replica may take requests as usual."""
        return any(self._usual(replica) for replica in self._supervisor.ready(self.key))

    def limping(self) -> bool:
        """Whether only replicas are left that keep failing requests."""
        ready = self._supervisor.ready(self.key)
        return bool(ready) and not self.able()

    def choose(
        self,
        running: Mapping[str, int],
        at_once: int,
        *,
        barred: Collection[str] = (),
        avoid: str | None = None,
    ) -> Grant | None:
        """The replica for the next request; None when all that may have one have no room.

        `running` is how many the asker has on each. `barred` ones are not taken at all, `avoid`
        only when no other is ready. Weights and isolation steer, and do not make a request wait: a
        replica whose process died and is new takes what the others have no room for. One that
        fails requests takes none, unless it is all that is left; then one at a time, since even a
        bad answer may be a good one, and a last replica that is shut off never recovers.
        """
        now = self._clock.now()
        ready = [r for r in self._supervisor.ready(self.key) if r.id not in barred]
        if avoid is not None:
            ready = [r for r in ready if r.id != avoid] or ready
        open_to = [r for r in ready if running.get(r.id, 0) < at_once]
        if not open_to:
            return None
        states = {r.id: self.standing(r).breaker.state(now) for r in ready}
        for replica in open_to:
            if states[replica.id] is BreakerState.HALF_OPEN and (
                probe := self.standing(replica).breaker.probe(now)
            ):
                return self._grant(replica, probe)
        closed = [r for r in open_to if states[r.id] is BreakerState.CLOSED]
        if found := self._pick(closed, running, at_once):
            return self._grant(found)
        reborn = [r for r in open_to if self._reborn(r)]
        if found := self._pick(reborn, running, at_once):
            return self._grant(found)
        if any(self._usual(replica) for replica in ready):
            return None
        if any(running.get(r.id, 0) for r in ready):
            return None
        found = self._pick(open_to, running, at_once)
        return self._grant(found) if found else None

    def probe(self, replica: Replica) -> Grant | None:
        """Leave for a synthetic request to a half-open replica."""
        probe = self.standing(replica).breaker.probe(self._clock.now(), synthetic=True)
        return self._grant(replica, probe) if probe is not None else None

    def _grant(self, replica: Replica, probe: Probe | None = None) -> Grant:
        standing = self.standing(replica)
        return Grant(replica, standing, standing.breaker.generation, probe, self._clock)

    def _usual(self, replica: Replica) -> bool:
        return self.breaker_state(replica) is BreakerState.CLOSED or self._reborn(replica)

    def _reborn(self, replica: Replica) -> bool:
        """Isolated only because its process died; the one that serves now has shown a token."""
        standing = self.standing(replica)
        return standing.breaker.cause is Cause.DEATH

    def _pick(
        self, replicas: Sequence[Replica], running: Mapping[str, int], at_once: int
    ) -> Replica | None:
        if len(replicas) < 2:
            return replicas[0] if replicas else None
        chosen = self._policy.choose(
            [
                Candidate(
                    id=replica.id,
                    busy=running.get(replica.id, 0),
                    room=at_once - running.get(replica.id, 0),
                    weight=self.weight(replica),
                    score=self.health(replica).score,
                    share=self.standing(replica).share,
                    latency=self._latency(replica),
                )
                for replica in replicas
            ]
        )
        return next((r for r in replicas if chosen is not None and r.id == chosen.id), None)

    def _latency(self, replica: Replica) -> float | None:
        """Seconds per token, or None once that is long ago: a replica that was slow must be tried
        again now and then."""
        standing = self.standing(replica)
        old = self._clock.now() - standing.timed_at > LATENCY_FORGOTTEN
        return None if old else standing.latency.value


def policy_for(source: Source) -> str:
    """The policy by name. Replicas that share one device are packed; those of a plugin without a
    file hand on to hosts of their own."""
    asked = source.settings.policy
    if asked != "auto":
        return asked
    return "pack" if source.file is not None else "least_busy"

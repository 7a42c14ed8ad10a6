"""The state of the box, read from its parts for whoever shows it: health routes, hxctl, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hxd import __version__, conditions
from hxd.clock import Clock
from hxd.conditions import Alarms, Condition
from hxd.config.live import Live
from hxd.daemon.admin.metrics import ModelReading, ReleaseReading, ReplicaReading
from hxd.daemon.request.breaker import Breaker, Cause
from hxd.daemon.request.breaker import State as BreakerState
from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.request.models import flatten
from hxd.daemon.request.poison import Poison
from hxd.daemon.request.releases import Releases
from hxd.daemon.request.roster import Roster
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.rollout import Rollout, describe
from hxd.daemon.store.sources import SourceError
from hxd.daemon.supervise.health import Health, Signs, assess
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor


@dataclass
class Status:
    """`refused`: models that can't be served as configured. `instead`: why models are served by
    another version than they should be. `plugins`: why plugins in use would be refused now;
    `files`: what was changed of releases that are loaded, by their keys.
    `unrecorded`: why what is in service is not on the disk.
    `change`: the change of the configuration that runs, or the last one.
    `draining` is set by the run loop."""

    live: Live
    supervisor: Supervisor
    served: Mapping[str, Deployment]
    releases: Releases
    refused: dict[str, SourceError]
    instead: dict[str, SourceError]
    poison: Poison
    clock: Clock
    started: float
    draining: bool = False
    rollouts: Callable[[], list[Rollout]] = list
    kept_for: Callable[[str], float | None] = lambda model: None
    kept_is_before: Callable[[str], bool] = lambda model: False
    unrecorded: Callable[[], str | None] = lambda: None
    change: Callable[[], dict[str, Any] | None] = lambda: None
    plugins: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    _alarms: Alarms = field(default_factory=Alarms)

    def missing(self) -> list[str]:
        """What keeps the box from being ready, in words; empty when it is."""
        reasons = ["the daemon is shutting down"] if self.draining else []
        for name, settings in self.live.config.models.items():
            if not settings.required:
                continue
            if name in self.refused:
                reasons.append(f"model {name}: {self.refused[name].key}: {self.refused[name]}")
            elif not self.ready(name):
                reasons.append(f"model {name}: {self._why(name)}")
        return reasons

    def ready(self, name: str) -> list[Replica]:
        """Ready replicas of the release of a model that is in service."""
        deployment = self.served.get(name)
        return [] if deployment is None else self.supervisor.ready(deployment.current.source.key)

    def _why(self, name: str) -> str:
        key = self.served[name].current.source.key if name in self.served else name
        if problems := self.supervisor.problems(key):
            return "; ".join(problems)
        replicas = self.supervisor.replicas.get(key, [])
        states = [f"{r.id} {r.state.value}" + (f" ({r.note})" if r.note else "") for r in replicas]
        return ", ".join(states)

    def conditions(self) -> list[Condition]:
        """What is wrong now, one alarm for each root cause."""
        now = self.clock.wall()
        raised = list(self._raised(now))
        return conditions.visible(self._alarms.dated(raised, now), now)

    def _raised(self, now: float) -> Iterator[Condition]:
        if self.draining:
            yield Condition("daemon-draining", "", "running requests finish", now)
        for name, error in self.refused.items():
            yield Condition("model-refused", name, f"{error.key}: {error}", self.started)
        for name, deployment in self.served.items():
            served = deployment.current
            replicas = self.supervisor.replicas.get(served.source.key, [])
            if not self.ready(name):
                yield Condition("model-unavailable", name, self._why(name), now)
            elif served.gate.roster.limping():
                yield Condition("model-limping", name, self._why_limping(served), now)
            elif served.source.settings.replicas > 1 and len(self.ready(name)) == 1:
                yield Condition("model-single", name, self._why(name), now)
            if replicas and all(self._loops(replica) for replica in replicas):
                yield Condition("replica-crash-loop", name, self._why(name), now)
            for one in deployment.releases():
                for replica in self.supervisor.replicas.get(one.source.key, ()):
                    yield from self._raised_by(replica, one.gate.roster, now)
        for name, error in self.instead.items():
            if name in self.served:
                source = self.served[name].current.source
                detail = f"version {source.version} serves; {error}"
                yield Condition("model-on-other-version", name, detail, self.started)
        for rollout in self.rollouts():
            if rollout.reason and not rollout.aborted and not rollout.ask.compare:
                bad = describe(rollout.former) if rollout.phase is Phase.DONE else rollout.target
                detail = f"{bad}: {rollout.reason}"
                yield Condition("version-taken-back", rollout.model, detail, now)
        if (unrecorded := self.unrecorded()) is not None:
            yield Condition("choice-not-recorded", "", f"deployments.json: {unrecorded}", now)
        for key, why in self.files.items():
            yield Condition("model-file-changed", key.partition("#")[0], why, now)
        for reference, why in self.plugins.items():
            yield Condition("plugin-changed", reference, why, now)
        if blocked := len(self.poison):
            yield Condition("requests-blocked", "", f"{blocked} by their fingerprints", now)
        for route, chain in flatten(self.live.config.routes).items():
            able = [name for name in chain if name in self.served]
            able = [name for name in able if self.served[name].current.gate.able()]
            if able and able[0] != chain[0]:
                yield Condition("route-on-fallback", route, f"{able[0]}, not {chain[0]}", now)

    def _raised_by(self, replica: Replica, roster: Roster, now: float) -> Iterator[Condition]:
        """What is wrong with one replica."""

        def about(code: str, detail: str) -> Condition:
            return Condition(code, replica.id, detail, now, within=replica.source.name)

        monotonic = self.clock.now()
        if self._loops(replica):
            last = replica.problem or "it is up for the moment"
            yield about("replica-crash-loop", f"{replica.restart.deaths} deaths in a row; {last}")
        if replica.state is State.FAILED:
            yield about("replica-failed", replica.problem or "no reason was given")
        if not replica.takes:
            return
        if replica.suspect:
            yield about("replica-suspect", "its requests go to others if they can")
        if replica.vitals is not None and replica.vitals.drift is not None:
            yield about("replica-drifting", replica.vitals.drift)
        breaker = roster.standing(replica).breaker
        state = breaker.state(monotonic)
        if state is not BreakerState.CLOSED and breaker.cause is not Cause.DEATH:
            failures, total = breaker.errors(monotonic)
            seconds = (
                f"for {breaker.opens_in(monotonic):.0f} s" if state is BreakerState.OPEN else ""
            )
            yield about(
                "breaker-open",
                f"{state.value} {seconds}; {failures} of {total} requests failed in a minute",
            )
        health = roster.health(replica)
        if health.score < 0.9:
            yield about("replica-unhealthy", f"score {health.score:.2f} ({_parts(health)})")

    def _loops(self, replica: Replica) -> bool:
        ready_since = replica.since if replica.state is State.READY else None
        return replica.restart.crash_loop(self.clock.now(), ready_since)

    def _why_limping(self, served: Served) -> str:
        monotonic = self.clock.now()
        rates = []
        for replica in self.supervisor.ready(served.source.key):
            breaker = served.gate.roster.standing(replica).breaker
            failures, total = breaker.errors(monotonic)
            rates.append(f"{replica.id} failed {failures} of {total}")
        return f"one request at a time; {', '.join(rates)}"

    def health(self) -> dict[str, Any]:
        missing = self.missing()
        return {
            "status": "ok" if not missing else "unavailable",
            "live": True,
            "ready": not missing,
            "problems": missing,
            "conditions": [condition.body() for condition in self.conditions()],
            "models": self.models(),
            "version": __version__,
            "uptime_seconds": round(self.clock.wall() - self.started, 1),
        }

    def models(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name, settings in self.live.config.models.items():
            deployment = self.served.get(name)
            if deployment is None:
                rows.append(
                    {"model": name, "state": "refused", "problem": str(self.refused.get(name))}
                )
                continue
            served = deployment.current
            ready = len(self.ready(name))
            rows.append(
                {
                    "model": name,
                    "state": "ready" if ready else "unavailable",
                    "version": served.source.version,
                    "variant": served.source.variant,
                    "plugin": served.source.plugin.manifest.name,
                    "replicas": settings.replicas,
                    "ready": ready,
                    "policy": served.gate.roster.policy_name,
                    "slots": settings.slots,
                    "running": served.gate.running,
                    "waiting": served.gate.waiting,
                    "queue": settings.queue,
                    "health": {
                        replica.id: self._score(replica)
                        for replica in self.supervisor.replicas.get(served.source.key, ())
                    },
                    "releases": [self._release(one) for one in deployment.releases()],
                    "former_kept_seconds": self._kept(name),
                    "rollback_is_instant": self.kept_is_before(name),
                }
            )
        return rows

    def replicas(self) -> list[dict[str, Any]]:
        now = self.clock.now()
        return [
            {
                "replica": replica.id,
                "model": replica.source.name,
                "version": replica.source.version,
                "variant": replica.source.variant,
                "state": replica.state.value,
                "since_seconds": round(now - replica.since, 1),
                "pid": replica.worker.pid
                if replica.worker and replica.state.value not in ("failed", "stopped")
                else None,
                "running": self._running_on(replica),
                "restarts": replica.restarts,
                "breaker": self._breaker(replica),
                "health": self._health(replica),
                "problem": replica.problem,
                "note": replica.note,
                "details": replica.loaded.details if replica.loaded else {},
                "capabilities": replica.loaded.capabilities if replica.loaded else [],
                "gauges": replica.gauges,
            }
            for replica in self.supervisor.all()
        ]

    def _kept(self, name: str) -> float | None:
        left = self.kept_for(name)
        return None if left is None else round(left, 1)

    def _running_on(self, replica: Replica) -> int:
        served = self.releases.of(replica)
        return served.gate.running_on(replica) if served is not None else 0

    def _release(self, served: Served) -> dict[str, Any]:
        """One of what a model has workers for, and its share of the new requests."""
        source, deployment = served.source, served.deployment
        trial = deployment.trial if deployment is not None else None
        on_trial = trial is not None and trial.served is served
        share = 0.0
        if trial is not None and on_trial:
            share = trial.share
        elif deployment is not None and served is deployment.current:
            share = 1.0 - (trial.share if trial is not None else 0.0)
        return {
            "release": source.key,
            "version": source.version,
            "variant": source.variant,
            "plugin": f"{source.plugin.manifest.name}@{source.plugin.manifest.version}",
            "share": round(share, 4),
            "replicas": len(self.supervisor.replicas.get(source.key, ())),
            "ready": len(self.supervisor.ready(source.key)),
            "running": served.gate.running,
            "waiting": served.gate.waiting,
            "role": self._role(served),
        }

    def _role(self, served: Served) -> str:
        deployment = served.deployment
        if deployment is None or served is deployment.current:
            return "serves"
        if deployment.trial is not None and deployment.trial.served is served:
            return "trial"
        coming = any(rollout.candidate is served for rollout in self.rollouts() if rollout.running)
        return "warm" if served is deployment.warm else "loads" if coming else "drains"

    def breakers(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        """State and cause of each replica's breaker."""
        for replica in self.supervisor.all():
            shown = self._breaker(replica)
            yield replica.id, (shown["state"], shown["cause"])

    def _score(self, replica: Replica) -> float:
        """0 for one that can't take a request."""
        roster = self._roster(replica)
        return round(roster.health(replica).score, 3) if replica.takes and roster else 0.0

    def _roster(self, replica: Replica) -> Roster | None:
        """None once its release has no part in the model any more."""
        served = self.releases.of(replica)
        return served.gate.roster if served is not None else None

    def _breaker(self, replica: Replica) -> dict[str, Any]:
        now = self.clock.now()
        roster = self._roster(replica)
        breaker = roster.standing(replica).breaker if roster is not None else Breaker()
        state = breaker.state(now)
        failures, requests = breaker.errors(now)
        return {
            "state": state.value,
            "cause": breaker.cause.value if breaker.cause else None,
            "trips": breaker.trips,
            "opens_in_seconds": round(breaker.opens_in(now), 1),
            "failures": failures,
            "requests": requests,
        }

    def _health(self, replica: Replica) -> dict[str, Any]:
        roster = self._roster(replica)
        health = roster.health(replica) if roster is not None else assess(Signs())
        shown: dict[str, Any] = {name: round(part, 3) for name, part in asdict(health).items()}
        shown["weight"] = round(roster.weight(replica), 3) if roster is not None else 0.0
        if replica.vitals is not None:
            vitals = replica.vitals
            shown["slowdown"] = vitals.creep.slowdown and round(vitals.creep.slowdown, 2)
            shown["private_bytes"] = vitals.private
            shown["growth_bytes_per_second"] = round(vitals.leak.rate)
            shown["drift"] = vitals.drift
        return shown

    def readings(self) -> Iterator[ModelReading]:
        for name, deployment in self.served.items():
            releases = list(deployment.releases())
            replicas = [
                replica
                for served in releases
                for replica in self.supervisor.replicas.get(served.source.key, ())
            ]
            slots = sum(
                served.source.at_once * len(self.supervisor.ready(served.source.key))
                for served in releases
            )
            running = sum(served.gate.running for served in releases)
            states = Counter(replica.state.value for replica in replicas)
            yield ModelReading(
                model=name,
                running=running,
                waiting=sum(served.gate.waiting for served in releases),
                slots=slots,
                queue=deployment.current.source.settings.queue,
                replicas=[
                    self._reading(replica, roster)
                    for replica in replicas
                    if (roster := self._roster(replica)) is not None
                ],
                retrying=sum(served.gate.budget.taken for served in releases),
                states={state.value: states[state.value] for state in State},
                releases=[
                    ReleaseReading(
                        version=row["version"],
                        variant=row["variant"],
                        plugin=row["plugin"],
                        role=row["role"],
                        share=row["share"],
                        running=row["running"],
                    )
                    for row in map(self._release, releases)
                ],
                used_context=_cache_use(replicas, running / slots if slots else 0.0),
                gauges={replica.id: replica.gauges for replica in replicas if replica.takes},
            )

    def _reading(self, replica: Replica, roster: Roster) -> ReplicaReading:
        return ReplicaReading(
            replica=replica.id,
            state=replica.state.value,
            breaker=_LEVEL[roster.breaker_state(replica)],
            trips=roster.standing(replica).breaker.trips,
            health=roster.health(replica).score,
            weight=roster.weight(replica),
            private=replica.vitals.private if replica.vitals is not None else None,
        )


_LEVEL = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def _parts(health: Health) -> str:
    parts = {name: part for name, part in asdict(health).items() if name != "score"}
    return ", ".join(f"{name} {part:.2f}" for name, part in parts.items() if part < 1)


def _cache_use(replicas: Iterable[Replica], slots: float) -> float:
    """Share of the KV cells in use where backends count them, else of the `slots`."""
    cells = sum(replica.gauges.get("kv_cells", 0) for replica in replicas)
    used = sum(replica.gauges.get("kv_cells_used", 0) for replica in replicas)
    return used / cells if cells else slots

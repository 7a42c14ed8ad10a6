"""The state of the box, read from its parts for whoever shows it: health routes, hxctl, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hxd import __version__, conditions
from hxd.clock import Clock
from hxd.conditions import Condition
from hxd.config import Config
from hxd.daemon.admin.metrics import ModelReading
from hxd.daemon.request.models import Served
from hxd.daemon.store.sources import SourceError
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.supervisor import Supervisor


@dataclass
class Status:
    """`refused`: models that can't be served as configured. `draining` is set by the run loop."""

    config: Config
    supervisor: Supervisor
    served: Mapping[str, Served]
    refused: Mapping[str, SourceError]
    clock: Clock
    started: float
    draining: bool = False

    def missing(self) -> list[str]:
        """What keeps the box from being ready, in words; empty when it is."""
        reasons = ["the daemon is shutting down"] if self.draining else []
        for name, settings in self.config.models.items():
            if not settings.required:
                continue
            if name in self.refused:
                reasons.append(f"model {name}: {self.refused[name].key}: {self.refused[name]}")
            elif not self.supervisor.ready(name):
                reasons.append(f"model {name}: {self._why(name)}")
        return reasons

    def _why(self, name: str) -> str:
        if problems := self.supervisor.problems(name):
            return "; ".join(problems)
        replicas = self.supervisor.replicas.get(name, [])
        states = [f"{r.id} {r.state.value}" + (f" ({r.note})" if r.note else "") for r in replicas]
        return ", ".join(states)

    def conditions(self) -> list[Condition]:
        now = self.clock.wall()
        raised = []
        if self.draining:
            raised.append(Condition("daemon-draining", "", "running requests finish", now))
        for name, error in self.refused.items():
            raised.append(Condition("model-refused", name, f"{error.key}: {error}", self.started))
        for name, replicas in self.supervisor.replicas.items():
            if not self.supervisor.ready(name):
                since = now - self.clock.now() + max(r.unready_since for r in replicas)
                raised.append(Condition("model-unavailable", name, self._why(name), since))
            for replica in replicas:
                if replica.state is State.FAILED:
                    since = now - self.clock.now() + replica.unready_since
                    detail = f"{replica.id}: {replica.problem}"
                    raised.append(Condition("replica-failed", name, detail, since))
        return conditions.visible(raised, now)

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
        for name, settings in self.config.models.items():
            served = self.served.get(name)
            if served is None:
                rows.append(
                    {"model": name, "state": "refused", "problem": str(self.refused.get(name))}
                )
                continue
            ready = len(self.supervisor.ready(name))
            rows.append(
                {
                    "model": name,
                    "state": "ready" if ready else "unavailable",
                    "version": served.source.version,
                    "variant": served.source.variant,
                    "plugin": served.source.plugin.manifest.name,
                    "replicas": settings.replicas,
                    "ready": ready,
                    "slots": settings.slots,
                    "running": served.gate.running,
                    "waiting": served.gate.waiting,
                    "queue": settings.queue,
                }
            )
        return rows

    def replicas(self) -> list[dict[str, Any]]:
        now = self.clock.now()
        return [
            {
                "replica": replica.id,
                "model": name,
                "state": replica.state.value,
                "since_seconds": round(now - replica.since, 1),
                "pid": replica.worker.pid
                if replica.worker and replica.state.value not in ("failed", "stopped")
                else None,
                "running": self.served[name].gate.running_on(replica),
                "restarts": replica.restarts,
                "problem": replica.problem,
                "note": replica.note,
                "details": replica.loaded.details if replica.loaded else {},
                "capabilities": replica.loaded.capabilities if replica.loaded else [],
                "gauges": replica.gauges,
            }
            for name, replicas in self.supervisor.replicas.items()
            for replica in replicas
        ]

    def readings(self) -> Iterator[ModelReading]:
        for name, served in self.served.items():
            settings = served.source.settings
            replicas = self.supervisor.replicas[name]
            slots = served.source.at_once * len(self.supervisor.ready(name))
            states = Counter(replica.state.value for replica in replicas)
            yield ModelReading(
                model=name,
                running=served.gate.running,
                waiting=served.gate.waiting,
                slots=slots,
                queue=settings.queue,
                restarts=sum(replica.restarts for replica in replicas),
                states={state.value: states[state.value] for state in State},
                used_context=_cache_use(replicas, served.gate.running / slots if slots else 0.0),
                gauges={replica.id: replica.gauges for replica in replicas if replica.takes},
            )


def _cache_use(replicas: Iterable[Replica], slots: float) -> float:
    """Share of the KV cells in use where backends count them, else of the `slots`."""
    cells = sum(replica.gauges.get("kv_cells", 0) for replica in replicas)
    used = sum(replica.gauges.get("kv_cells_used", 0) for replica in replicas)
    return used / cells if cells else slots

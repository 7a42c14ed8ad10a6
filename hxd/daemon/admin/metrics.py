"""What Prometheus reads. Latencies and counts are kept as they happen; states are read when asked.

The `vllm:` names say the same as their `hxd_` neighbours, so that existing dashboards work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hxd.hookspecs import GAUGES

_LATENCY = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_STATE = ("replica", "state")
_RELEASE = ("version", "variant", "plugin", "role")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class ReplicaReading:
    """One replica's; `breaker` 0 is closed, 1 half-open, 2 open; `private` in bytes."""

    replica: str
    state: str
    breaker: int
    trips: int
    health: float
    weight: float
    private: int | None


@dataclass(frozen=True)
class ReleaseReading:
    """One version of a model that has workers; `share` of the new requests, 0 to 1."""

    version: int
    variant: str
    plugin: str
    role: str
    share: float
    running: int


@dataclass(frozen=True)
class ModelReading:
    """One model's numbers at the time of a scrape; `states` counts replicas by state, `gauges` are
    what each replica's backend says of itself."""

    model: str
    running: int
    waiting: int
    slots: int
    queue: int
    states: dict[str, int]
    used_context: float
    gauges: dict[str, dict[str, float]]
    replicas: list[ReplicaReading]
    retrying: int
    releases: list[ReleaseReading]


@dataclass(frozen=True)
class Meter:
    """Counts for one model: seconds to the first text and between two pieces, and tokens."""

    first_token: Callable[[float], None]
    gap: Callable[[float], None]
    generated: Callable[[float], None]
    prompted: Callable[[float], None]


class Metrics:
    """`reading` gives the models' numbers at the time of a scrape."""

    def __init__(self, reading: Callable[[], Iterable[ModelReading]]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "hxd_requests",
            "Requests answered, by endpoint, model and HTTP status; 499 is a client that left.",
            ["endpoint", "model", "status"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "hxd_tokens",
            "Tokens read (prompt) and generated (completion).",
            ["model", "kind"],
            registry=self.registry,
        )
        self._first = self._histogram(
            "hxd_time_to_first_token_seconds",
            "From a request's place in the queue to its first text.",
        )
        self._gap = self._histogram(
            "hxd_inter_token_latency_seconds", "Between two pieces of text of one sequence."
        )
        self._whole = self._histogram(
            "hxd_request_seconds", "From a request's arrival to the end of its answer."
        )
        self._failovers = Counter(
            "hxd_failovers",
            "Sequences that went on with another worker: retry before the first token, resume "
            "inside an answer, fallback to another model; by what happened to the former worker.",
            ["model", "kind", "cause"],
            registry=self.registry,
        )
        self._pause = self._histogram(
            "hxd_failover_seconds", "From the loss of a worker to the next token."
        )
        self._restarts = Counter(
            "hxd_restarts",
            "Workers started again after their death.",
            ["model"],
            registry=self.registry,
        )
        self._renewals = Counter(
            "hxd_renewals",
            "Workers that were replaced before they failed, because they drifted.",
            ["model"],
            registry=self.registry,
        )
        self._poisoned = Counter(
            "hxd_poisoned_requests",
            "Requests given up because two workers broke down while they served them.",
            ["model"],
            registry=self.registry,
        )
        self._events = Counter(
            "hxd_events",
            "Steps of rollouts, of changes to the configuration, and of work on the stores.",
            ["kind", "step"],
            registry=self.registry,
        )
        self._meters: dict[str, Meter] = {}
        self.registry.register(_States(reading))
        self.registry.register(
            _Renamed(
                {
                    "vllm:time_to_first_token_seconds": self._first,
                    "vllm:inter_token_latency_seconds": self._gap,
                    "vllm:e2e_request_latency_seconds": self._whole,
                }
            )
        )

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, ["model"], buckets=_LATENCY, registry=self.registry)

    def of(self, model: str) -> Meter:
        """The meter of one served model."""
        meter = self._meters.get(model)
        if meter is None:
            meter = self._meters[model] = Meter(
                first_token=self._first.labels(model).observe,
                gap=self._gap.labels(model).observe,
                generated=self._tokens.labels(model, "completion").inc,
                prompted=self._tokens.labels(model, "prompt").inc,
            )
        return meter

    def show(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A gauge of the whole box, read at each scrape."""
        Gauge(name, help, registry=self.registry).set_function(read)

    def tally(self, name: str, help: str, *labels: str) -> Callable[..., None]:
        """A counter of the whole box; what is returned counts one, by the labels' values."""
        counter = Counter(name, help, labels, registry=self.registry)
        return lambda *values: counter.labels(*values).inc()

    def failover(self, model: str, kind: str, cause: str, seconds: float | None = None) -> None:
        """`seconds` from the loss to the next token, where one came."""
        self._failovers.labels(model, kind, cause).inc()
        if seconds is not None:
            self._pause.labels(model).observe(seconds)

    def fell_back(self, model: str) -> None:
        """`model` answers in place of one before it in a chain."""
        self.failover(model, "fallback", "unavailable")

    def event(self, kind: str, step: str) -> None:
        """A step of what changes the box."""
        self._events.labels(kind, step).inc()

    def restarted(self, model: str) -> None:
        self._restarts.labels(model).inc()

    def renewed(self, model: str) -> None:
        self._renewals.labels(model).inc()

    def poisoned(self, model: str) -> None:
        self._poisoned.labels(model).inc()

    def serves(self, model: str) -> None:
        """Counters of a model are there, at 0, before anything has happened to it."""
        for counter in (self._restarts, self._renewals, self._poisoned):
            counter.labels(model)
        for kind, cause in (("retry", "killed"), ("resume", "killed"), ("fallback", "unavailable")):
            self._failovers.labels(model, kind, cause)
        self._pause.labels(model)

    def answered(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, model, str(status)).inc()
        if status == 200 and model:
            self._whole.labels(model).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Renamed(Collector):
    def __init__(self, histograms: dict[str, Histogram]) -> None:
        self._histograms = histograms

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, histogram in self._histograms.items():
            for family in histogram.collect():
                renamed = Metric(name, family.documentation, family.type)
                for sample in family.samples:
                    suffix = sample.name.removeprefix(family.name)
                    renamed.samples.append(sample._replace(name=name + suffix))
                yield renamed


class _States(Collector):
    def __init__(self, reading: Callable[[], Iterable[ModelReading]]) -> None:
        self._reading = reading

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        def gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, help, labels=["model", *labels])

        running = gauge("hxd_requests_running", "Sequences that hold a slot.")
        waiting = gauge("hxd_requests_waiting", "Sequences in the queue.")
        queue = gauge("hxd_queue_capacity", "Places in the queue.")
        slots = gauge("hxd_slots", "Slots of the replicas that are ready.")
        states = gauge("hxd_workers", "Workers by state.", "state")
        in_state = gauge("hxd_replica_state", "1 for the state that a replica is in.", *_STATE)
        breaker = gauge(
            "hxd_breaker_state", "Breaker of a replica: 0 closed, 1 half-open, 2 open.", "replica"
        )
        trips = gauge(
            "hxd_breaker_trips", "Trips of a replica's breaker in a row, less forgiven.", "replica"
        )
        health = gauge("hxd_health_score", "Health of a replica, 0 to 1.", "replica")
        weight = gauge("hxd_replica_weight", "Share of its usual traffic, 0 to 1.", "replica")
        private = gauge("hxd_worker_private_bytes", "Private memory of a worker.", "replica")
        retrying = gauge("hxd_retries_running", "Requests that are being tried again.")
        share = gauge(
            "hxd_release_share",
            "Share of a model's new requests that a version gets, 0 to 1; role says why.",
            *_RELEASE,
        )
        on_release = gauge(
            "hxd_release_requests_running", "Sequences that hold a slot of a version.", *_RELEASE
        )
        vllm_running = gauge("vllm:num_requests_running", "As hxd_requests_running.")
        vllm_waiting = gauge("vllm:num_requests_waiting", "As hxd_requests_waiting.")
        vllm_cache = gauge("vllm:kv_cache_usage_perc", "Share of the KV cells in use, 0 to 1.")
        gauges = {name: gauge(f"hxd_{name}", help, "replica") for name, help in GAUGES.items()}
        for now in self._reading():
            running.add_metric([now.model], now.running)
            waiting.add_metric([now.model], now.waiting)
            queue.add_metric([now.model], now.queue)
            slots.add_metric([now.model], now.slots)
            retrying.add_metric([now.model], now.retrying)
            for one in now.replicas:
                in_state.add_metric([now.model, one.replica, one.state], 1)
                breaker.add_metric([now.model, one.replica], one.breaker)
                trips.add_metric([now.model, one.replica], one.trips)
                health.add_metric([now.model, one.replica], one.health)
                weight.add_metric([now.model, one.replica], one.weight)
                if one.private is not None:
                    private.add_metric([now.model, one.replica], one.private)
            for release in now.releases:
                what = str(release.version), release.variant, release.plugin, release.role
                share.add_metric([now.model, *what], release.share)
                on_release.add_metric([now.model, *what], release.running)
            vllm_running.add_metric([now.model], now.running)
            vllm_waiting.add_metric([now.model], now.waiting)
            vllm_cache.add_metric([now.model], now.used_context)
            for state, count in now.states.items():
                states.add_metric([now.model, state], count)
            for replica, said in now.gauges.items():
                for name, value in said.items():
                    gauges[name].add_metric([now.model, replica], value)
        yield from (running, waiting, queue, slots, states, in_state)
        yield from (breaker, trips, health, weight, private, retrying, share, on_release)
        yield from gauges.values()
        yield from (vllm_running, vllm_waiting, vllm_cache)

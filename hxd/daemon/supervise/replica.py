"""What the supervisor knows of one worker. Written by the supervisor's task alone; anyone may read
to show it, and `Supervisor.ready` is what a request asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from hxd import wire
from hxd.daemon.store.sources import Source
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.process import WorkerProcess
from hxd.daemon.supervise.restart import Restart
from hxd.daemon.supervise.vitals import Vitals


@dataclass
class Replica:
    """`place` is its number among the model's replicas, which an heir takes over. `generation`
    counts starts: what a former process still says is recognised by it. `problem` is what is wrong
    now, in words; `unready_since` is when it was last ready, or the start. `gauges` are what the
    backend last said of itself, `vitals` what is measured of it while it serves; the sentinel
    writes both. `proven`: the last life got as far as being ready; `blameless`: it was ended from
    outside. `suspect`: its heartbeat is late. `heir` is being brought up to take its place,
    `heir_to` is whose place it takes; `renewed_at` is when that was last tried. `reserved`: it is
    to start, now or when there is room for it. `surplus`: once ended it is gone. `barred`: it may
    not start, and trying again is of no use until somebody mends what it loads. Times are monotonic
    seconds."""

    id: str
    source: Source
    place: int = 0
    state: State = State.STOPPED
    since: float = 0.0
    unready_since: float = 0.0
    generation: int = 0
    problem: str | None = None
    note: str = ""
    loaded: wire.Loaded | None = None
    worker: WorkerProcess | None = None
    restart: Restart = field(default_factory=Restart)
    restart_at: float | None = None
    restarts: int = 0
    gauges: dict[str, float] = field(default_factory=dict)
    vitals: Vitals | None = None
    proven: bool = False
    blameless: bool = False
    suspect: bool = False
    heir: Replica | None = None
    heir_to: Replica | None = None
    renewed_at: float | None = None
    reserved: bool = False
    surplus: bool = False
    barred: bool = False

    @property
    def takes(self) -> bool:
        """Whether it can be given a request at all; a suspect only when there is nobody else."""
        return self.state is State.READY and self.worker is not None and not self.worker.link.closed

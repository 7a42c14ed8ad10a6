"""Looks after every worker a few dozen times a second: is it dying, stopped, silent, stuck?

The end of a socket is no sign to wait for: the kernel frees a process's memory before it closes its
descriptors, 75 ms at 1 GiB and over a second at 16. The flags in `/proc/PID/stat` say it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hxd import wire
from hxd.clock import Clock
from hxd.daemon.supervise import pulse
from hxd.daemon.supervise.cores import Cores
from hxd.daemon.supervise.lifecycle import Event
from hxd.daemon.supervise.link import Loss
from hxd.daemon.supervise.news import Doubt, Message, News, Renew
from hxd.daemon.supervise.process import WorkerProcess
from hxd.daemon.supervise.procfs import available, oom_kills
from hxd.daemon.supervise.pulse import Sign
from hxd.daemon.supervise.replica import Replica
from hxd.daemon.supervise.vitals import Vitals
from hxd.hookspecs import GAUGES

TICK = 0.02
# One tick counts for no more than so many: what the daemon slept through is nobody's silence.
LIVED = 2.5
WAITS = 0.25  # between looks at whether threads wait for cores; some 20 us a thread
MEASURE = 1.0  # between readings of gauges, paces and memory

Post = Callable[[News], None]


@dataclass
class Patient:
    """One worker under watch; `vitals` None until it serves."""

    replica: Replica
    generation: int
    worker: WorkerProcess
    vitals: Vitals | None = None
    ping_at: float = 0.0
    measure_at: float = 0.0
    wait_at: float = 0.0


class Sentinel:
    """`run` never ends by itself; workers come with `admit` and go with their links."""

    def __init__(self, post: Post, clock: Clock, cores: Cores) -> None:
        self._cores = cores
        self._post = post
        self._clock = clock
        self._patients: list[Patient] = []
        self._lived = 0.0
        self._ooms = oom_kills()
        self._count_at = 0.0

    def admit(self, replica: Replica, generation: int, worker: WorkerProcess) -> None:
        self._patients.append(Patient(replica, generation, worker))

    def serves(self, replica: Replica) -> None:
        """From now on its heartbeat and its steps are watched too."""
        for patient in self._patients:
            if patient.replica is replica and patient.worker is replica.worker:
                patient.vitals = Vitals(replica.source.settings.stall_time)
                replica.vitals = patient.vitals

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed something for want of memory just now. It does not tell
        whom; workers are first in its line."""
        return oom_kills() > self._ooms

    async def run(self) -> None:
        last = self._clock.now()
        while True:
            await self._clock.sleep(TICK)
            now = self._clock.now()
            self._lived += min(now - last, LIVED * TICK)
            last = now
            self._patients = [p for p in self._patients if not p.worker.link.closed]
            signs = [(patient, self._look(patient)) for patient in self._patients]
            doubted = sum(sign is Sign.SUSPECT for _, sign in signs)
            for patient, sign in signs:
                # When most are late, it is the box that is slow, and nowhere is better.
                self._act(patient, sign, alone=2 * doubted <= len(signs))
            if now >= self._count_at:
                self._ooms, self._count_at = oom_kills(), now + MEASURE

    def _look(self, patient: Patient) -> Sign:
        look = patient.worker.proc.look()
        if look is None or look.exiting:
            patient.worker.link.bury()
            return Sign.FINE
        if patient.vitals is None:
            return Sign.FINE
        beat = patient.vitals.pulse
        beat.stopped(self._lived, look.stopped)
        if not beat.waits and self._lived >= patient.ping_at:
            self._ping(patient)
        if patient.worker.link.calls and self._lived >= patient.wait_at:
            patient.wait_at = self._lived + WAITS
            starved = patient.vitals.waits(self._clock.now(), patient.worker.proc.waited())
            self._cores.measured(patient.replica, starved=starved)
        patient.vitals.still = beat.stillness(self._lived)
        return beat.sign(self._lived)

    def _ping(self, patient: Patient) -> None:
        vitals = patient.vitals
        assert vitals is not None
        measure = self._lived >= patient.measure_at

        def answered(pong: wire.Pong) -> None:
            vitals.pulse.answered(self._lived, pong.steps, pong.running + pong.waiting)
            vitals.queued = pong.waiting
            if measure:
                self._measured(patient, vitals, pong)

        patient.ping_at = self._lived + pulse.HEARTBEAT
        if measure:
            patient.measure_at = self._lived + MEASURE
        vitals.pulse.asked(self._lived)
        patient.worker.link.ping(answered, gauges=measure)

    def _measured(self, patient: Patient, vitals: Vitals, pong: wire.Pong) -> None:
        patient.replica.gauges = known_gauges(pong.gauges)
        proc = patient.worker.proc
        private = proc.private()
        vitals.measured(self._clock.now(), pong.paces, private)
        limit = patient.replica.source.settings.memory_limit
        vitals.judge(min(limit or math.inf, (private or 0) + available()))
        if vitals.drift is not None:
            renew = Renew(patient.replica, patient.generation, vitals.drift, vitals.urgent)
            self._post(renew)

    def _act(self, patient: Patient, sign: Sign, *, alone: bool) -> None:
        replica, link = patient.replica, patient.worker.link
        if link.closed:
            return
        match sign:
            case Sign.FINE:
                if replica.suspect:
                    self._post(Doubt(replica, patient.generation, suspect=False))
            case Sign.SUSPECT:
                if not replica.suspect and alone:
                    self._post(Doubt(replica, patient.generation, suspect=True))
                if alone:
                    link.urge(f"no heartbeat for {pulse.HEARTBEAT_DEADLINE:g} s")
            case _:
                why = self._epitaph(patient, sign)
                hung = sign is Sign.HUNG
                link.close(why, loss=Loss.CRASHED if hung else Loss.STALLED)
                self._post(Message(replica, patient.generation, Event.DIED, why, outside=not hung))

    def _epitaph(self, patient: Patient, sign: Sign) -> str:
        assert patient.vitals is not None
        if sign is Sign.STOPPED:
            return f"stopped by a signal for {pulse.STOPPED:g} s"
        if sign is Sign.SILENT:
            return f"no heartbeat for {pulse.SILENCE:g} s"
        return f"hangs: no decode step for {patient.vitals.pulse.limit:g} s with sequences to serve"


def known_gauges(said: dict[str, float]) -> dict[str, float]:
    """Those that have a name; a worker may say anything."""
    return {name: value for name, value in said.items() if name in GAUGES}

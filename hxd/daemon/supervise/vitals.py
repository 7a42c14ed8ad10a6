"""What is measured of one worker while it serves, each against its own past. Pure.

A new process is a new patient: everything begins again with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from hxd.daemon.supervise.drift import Leak, SlowCreep
from hxd.daemon.supervise.health import Signs
from hxd.daemon.supervise.pulse import Pulse
from hxd.daemon.supervise.trend import Trend

# A mean over fewer steps says more of the scheduler than of the worker.
STEPS_TO_COUNT = 3
# A worker whose memory is full sooner is replaced without waiting for a surer sign; bringing up
# another one takes a part of that.
SOON = 30.0
# Of the time, that one of its threads may wait for a core until its steps say nothing of the
# worker, and fewer of them would do more. One process that never rests costs a thread half of its
# time; less than that is the daemon and its clients, beside which all threads are still the best.
STARVED = 0.35


class Vitals:
    """`private` is the worker's private memory in bytes, None before it was seen; `drift` is why
    the worker should be replaced before it fails, while it should; `urgent` if it dies otherwise.
    The sentinel writes."""

    def __init__(self, stall_time: float) -> None:
        self.pulse = Pulse(stall_time)
        self.creep = SlowCreep()
        self.leak = Leak()
        self.trend = Trend()
        self.private: int | None = None
        self.drift: str | None = None
        self.urgent = False
        self.starved = False
        self.queued = 0
        self._waited: tuple[Mapping[str, float], float] | None = None
        self.still = 0.0

    def measured(
        self,
        now: float,
        paces: Mapping[int, tuple[int, float]],
        private: int | None,
    ) -> None:
        """`paces` as in `wire.Pong`; a worker may say anything."""
        for key, (steps, seconds) in paces.items():
            if steps >= STEPS_TO_COUNT and key > 0 and not self.starved:
                self.creep.feed(seconds / steps, key, now)
        self.starved = False
        if private is not None:
            self.private = private
            self.leak.feed(private, now)
            self.trend.feed(private, now)

    def waits(self, now: float, waited: Mapping[str, float] | None) -> bool:
        """Whether one of its threads is short of cores: `waited` is for how many seconds each has
        had to wait for one so far. Meanwhile it is the box that is slow, and a new worker would be
        no faster."""
        starved = False
        if waited is not None and self._waited is not None:
            before, then = self._waited
            most = max((waits - before.get(id, waits) for id, waits in waited.items()), default=0.0)
            starved = most > STARVED * (now - then)
        self._waited = None if waited is None else (waited, now)
        self.starved = self.starved or starved
        return starved

    def judge(self, most: float) -> None:
        """Sets `drift` and `urgent`. `most`: bytes of private memory that it can have at all."""
        left = self.trend.full_in(most)
        self.urgent = left is not None and left < SOON
        self.drift = (
            f"its memory grows, and is full in {left:.0f} s" if self.urgent else self._slow()
        )

    def _slow(self) -> str | None:
        """What has no hurry."""
        if self.leak.alarm:
            grown, rate = self.leak.growth / 1e6, self.leak.rate / 1e6
            return f"its private memory has grown by {grown:.0f} MB, now by {rate:.2f} MB/s"
        if self.creep.alarm:
            return f"its steps take {self.creep.slowdown or 0:.1f} times as long as they used to"
        return None

    def signs(self, failures: int, requests: int, slots: int) -> Signs:
        return Signs(
            failures=failures,
            requests=requests,
            slowdown=self.creep.slowdown,
            queued=self.queued,
            slots=slots,
            memory_growth=self.leak.level,
            still=min(1.0, self.still),
        )

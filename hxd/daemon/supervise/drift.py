"""Whether a worker is on its way to fail: its step time and its memory against its own baseline.

Knows one worker, from numbers that others measure; a new process begins with new detectors. Both
learn a baseline first and then add up by how much the worker departs from it. Pure.
"""

from __future__ import annotations

import math
import statistics

from hxd.daemon.supervise.ewma import Ewma

# --- steps, in natural logarithms: 0.69 is twice as slow

# Samples of a batch size before it is judged. The median of 20 is off by 6 % when they scatter by
# 20 %, and a few cold ones at the start don't move it.
LEARNED_STEPS = 20
# Batch sizes with a baseline of their own; larger ones share one.
LARGEST_BATCH = 256
# What a baseline follows a sample by. A creep lags the baseline by its pace over this weight, so
# whatever doubles within a day and a half comes out over `STEP_SLACK`, and what is slower is the
# ageing of the box. Without any following, 20 unlucky samples would count for ever.
BASELINE_WEIGHT = 1e-5
# Ignored: up to 1.5 times the baseline. Longer contexts make steps dearer, and are not known here.
STEP_SLACK = 0.4
# One sample counts no more than 4.5 times as slow would, so that one pause of the box is no alarm.
STEP_MOST = 1.5
# Alarm after some 28 samples at twice the baseline and 9 at four times. The mean time to a false
# one grows with exp(2 * slack * limit / variance): with steps that scatter by 30 % it is far beyond
# the life of a worker, even over a baseline that was learned three standard errors too low.
STEP_LIMIT = 8.0
# Seconds after which the shown slowdown has gone half way to a new one.
SLOWDOWN_HALF_LIFE = 10.0
# 55 times as slow or as fast; what is farther away says no more, and could overflow.
_FARTHEST = 4.0

# --- memory, in bytes and seconds

# A worker settles after its load: buffers that are made by the first requests.
LEARNED_SIZES = 30
# Growth is that of the least memory in each stretch of so many seconds. What is taken and given
# back within it, as for one request, is not growth.
WINDOW = 10.0
# Ignored: 450 MiB an hour. A heap that fragments does a part of that for hours; whatever stays
# below takes most of a day to fill 8 GiB, and who watches the level of memory is there first.
LEAK_SLACK = 128 * 2**10
# No second counts for more, so that the alarm takes lasting growth: a cache that fills within a
# minute and stops is no leak, however large it is.
LEAK_MOST = 2**20
# Alarm after 80 s of growth at `LEAK_MOST` or more, and 90 s at 1 MB/s.
LEAK_LIMIT = 64 * 2**20
# ... if the growth is also worth a restart: both of these.
LEAST_GROWTH = 64 * 2**20
LEAST_SHARE = 0.2
# The rate is for foretelling, and one that lags foretells too late.
RATE_HALF_LIFE = 10.0
_MOST_BYTES = 2**63


class Cusum:
    """One-sided cumulative sum (Page, "Continuous inspection schemes", Biometrika 41, 1954): adds
    up what departs upwards, forgets what returns, and alarms at `limit`.

    The sum stops at twice the limit, so that an alarm ends once its cause has been gone for as long
    as the slack needs to take the limit away, and not after as long as it lasted.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.sum = 0.0

    def add(self, excess: float) -> None:
        """`excess` is the deviation less the slack."""
        self.sum = min(2.0 * self.limit, max(0.0, self.sum + excess))

    @property
    def level(self) -> float:
        """0 to 1, which is the alarm."""
        return min(1.0, self.sum / self.limit)


class SlowCreep:
    """Decode steps that grow slower than they were with as many sequences.

    A baseline per batch size is the median of the first samples, and from then on an EWMA with a
    very small weight (Roberts, "Control chart tests based on geometric moving averages",
    Technometrics 1, 1959). The deviation ln(step) - ln(baseline) goes into a `Cusum`. While that
    alarms, no baseline follows: a worker that stays slow does not become its own usual.

    Not seen: a worker that was slow from its start, and the part of a slowdown that came before a
    batch size was first used.
    """

    def __init__(self) -> None:
        self._usual: dict[int, _Usual] = {}
        # The deviation of each batch size that was fed at this moment; None while it is learned.
        self._moment: dict[int, float | None] = {}
        self._at = -math.inf
        self._cusum = Cusum(STEP_LIMIT)
        self._smoothed = Ewma(SLOWDOWN_HALF_LIFE)

    def feed(self, step_seconds: float, batch: int, now: float) -> None:
        """Mean time of pure decode steps with `batch` sequences; once a second or so.

        Several batch sizes may be fed with the same `now`. Their median deviation counts as one
        sample, when the next moment comes: how many sizes a second has seen says nothing. What is
        not a positive finite number, earlier than before, or the same size again, is ignored.
        """
        if not (0 < step_seconds < math.inf and batch >= 1 and self._at <= now < math.inf):
            return
        if now > self._at:
            self._judge()
            self._at = now
        size = int(min(batch, LARGEST_BATCH + 1))
        if size not in self._moment:
            usual = self._usual.setdefault(size, _Usual())
            self._moment[size] = usual.deviation(math.log(step_seconds), follow=not self.alarm)

    def _judge(self) -> None:
        known = [deviation for deviation in self._moment.values() if deviation is not None]
        self._moment.clear()
        if known:
            deviation = statistics.median(known)
            self._cusum.add(min(deviation, STEP_MOST) - STEP_SLACK)
            self._smoothed.update(deviation, self._at)

    @property
    def slowdown(self) -> float | None:
        """Step time over its baseline, smoothed: 1.0 is usual. None before one was learned."""
        smoothed = self._smoothed.value
        return None if smoothed is None else math.exp(smoothed)

    @property
    def level(self) -> float:
        """0 to 1, which is the alarm."""
        return self._cusum.level

    @property
    def alarm(self) -> bool:
        return self.level >= 1.0


class _Usual:
    """The logarithm of what a step with one number of sequences usually takes."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._level: float | None = None

    def deviation(self, step: float, *, follow: bool) -> float | None:
        if self._level is None:
            self._first.append(step)
            if len(self._first) == LEARNED_STEPS:
                self._level = statistics.median(self._first)
                self._first.clear()
            return None
        deviation = max(-_FARTHEST, min(step - self._level, _FARTHEST))
        if follow:
            self._level += BASELINE_WEIGHT * deviation
        return deviation


class Leak:
    """Private memory that grows without an end in sight.

    The baseline is the most that was seen in the first samples. From then on a `Cusum` adds up the
    growth of each stretch of `WINDOW` seconds, less the slack. The alarm needs two things: that
    sum at its limit, which is growth that lasts, and enough growth over the baseline to be worth a
    restart. So a cache that fills up within a minute and stops raises nothing, nor does memory that
    returns to its level once a minute; one that takes minutes to fill looks like a leak, and only
    ends to look so when it stops. What is given back is subtracted in full.

    Not seen: what grows more slowly than the slack, and a rise in large leaps with minutes between.
    """

    def __init__(self) -> None:
        self._at = -math.inf
        self._bytes = 0
        self._learned = 0
        self._baseline = 0
        self._opened = 0.0  # when this stretch began
        self._least = 0  # in this stretch
        self._floor = 0  # the least of the stretch before
        self._cusum = Cusum(LEAK_LIMIT)
        self._rate = Ewma(RATE_HALF_LIFE)

    def feed(self, private_bytes: int, now: float) -> None:
        """Once a second. What is not a positive size, or not later than before, is ignored."""
        if not (0 < private_bytes < _MOST_BYTES and self._at < now < math.inf):
            return
        self._at, self._bytes = now, private_bytes
        if self._learned < LEARNED_SIZES:
            self._learned += 1
            self._baseline = self._floor = max(self._baseline, private_bytes)
            self._opened, self._least = now, _MOST_BYTES
            return
        self._least = min(self._least, private_bytes)
        if now - self._opened >= WINDOW:
            self._judge(now)

    def _judge(self, now: float) -> None:
        lasted, grown = now - self._opened, self._least - self._floor
        # A gap between samples is not that much time of lasting growth.
        counted = min(lasted, 2.0 * WINDOW)
        self._cusum.add(min(grown, LEAK_MOST * counted) - LEAK_SLACK * counted)
        self._rate.update(grown / lasted, now)
        self._floor = self._least
        self._opened, self._least = now, _MOST_BYTES

    @property
    def growth(self) -> int:
        """Bytes over the baseline, of the least in the last whole stretch; 0 when below it."""
        return max(0, self._floor - self._baseline)

    @property
    def rate(self) -> float:
        """Bytes per second, smoothed; negative while memory is given back."""
        return self._rate.value or 0.0

    @property
    def level(self) -> float:
        """0 to 1, which is the alarm: how far the condition is met that is farther away."""
        worth = max(LEAST_GROWTH, LEAST_SHARE * self._baseline)
        return min(self._cusum.level, self.growth / worth)

    @property
    def alarm(self) -> bool:
        return self.level >= 1.0

    def full_in(self, limit: int) -> float | None:
        """Seconds until private memory reaches `limit` bytes at this rate. None for a rate below
        the slack, by which nothing can be foretold. Known before the alarm, which wants patience:
        at 100 MB/s there may be less time than that."""
        if self.rate <= LEAK_SLACK:
            return None
        return max(0.0, (limit - self._bytes) / self.rate)

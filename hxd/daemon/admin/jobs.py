"""Long work inside the daemon: an import, a pull, a backup. Whoever starts one gets a job to look
at, and may go away.

A job ends in a result or in an error, as a request does. Knows nothing of what is done in it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from hxd.clock import Clock
from hxd.daemon.events import Events
from hxd.daemon.store.faults import Cancelled
from hxd.daemon.store.pull import Rate
from hxd.daemon.store.work import Work
from hxd.errors import CallerError, HxdError, Unavailable

log = logging.getLogger("hxd.jobs")

# Each may read a disk at full speed, and load a model beside those that serve.
AT_ONCE = 4
KEPT = 100
RETRY_AFTER = 5.0  # seconds

Run = Callable[[Work], Awaitable[Any]]


class State(enum.StrEnum):
    """From `RUNNING` to one of the others, and no further."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job:
    """`step`, `done` and `total` as `Work` is told them, from any thread; `result` is JSON-able,
    `error` the inside of an error's body with its status. Times are in Unix seconds."""

    def __init__(self, kind: str, subject: str, clock: Clock) -> None:
        self.id = secrets.token_hex(4)
        self.kind = kind
        self.subject = str(subject)  # msgspec takes no subclasses
        self.state = State.RUNNING
        self.began = clock.wall()
        self.ended: float | None = None
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.work = Work(self._told)
        # One assignment, since threads write it thousands of times a second and the loop reads it
        # when somebody asks.
        self._seen = ("", 0, 0)
        self._rate = Rate()
        self._rated = ""
        self._clock = clock

    def _told(self, step: str, done: int, total: int) -> None:
        self._seen = step, done, total

    def body(self) -> dict[str, Any]:
        """Speed in bytes per second and `eta` in seconds; both are known from the second look."""
        step, done, total = self._seen
        if step != self._rated:
            self._rate, self._rated = Rate(), step
        speed = left = None
        if self.state is State.RUNNING:
            self._rate.saw(self._clock.now(), done)
            speed, left = self._rate.speed, self._rate.left(total)
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "state": self.state.value,
            "step": step,
            "done": done,
            "total": total,
            "speed": None if speed is None else round(speed),
            "eta": None if left is None else round(left, 1),
            "began": self.began,
            "ended": self.ended,
            "result": self.result,
            "error": self.error,
        }


class Jobs:
    """`finished` is told the kind and the outcome of each. The jobs belong to the event loop."""

    def __init__(
        self,
        clock: Clock,
        events: Events,
        finished: Callable[[str, str], None] = lambda kind, outcome: None,
    ) -> None:
        self._clock = clock
        self._events = events
        self._finished = finished
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        self.counts: Counter[tuple[str, str]] = Counter()

    @property
    def running(self) -> int:
        return len(self._tasks)

    def all(self) -> list[Job]:
        """Oldest first."""
        return list(self._jobs.values())

    def named(self, id: str) -> Job:
        """Raises `CallerError`."""
        if id not in self._jobs:
            raise CallerError(
                f"no job {id[:80]!r}; hxctl jobs shows the last {KEPT} since the daemon's start",
                status=404,
                code="no_such_job",
            )
        return self._jobs[id]

    def start(self, kind: str, subject: str, run: Run) -> Job:
        """Raises `CallerError` while the same work is being done, or too much other."""
        if self._closed:
            raise Unavailable(
                "the daemon is shutting down", code="draining", retry_after=RETRY_AFTER
            )
        busy = [self._jobs[id] for id in self._tasks]
        for other in busy:
            if (other.kind, other.subject) == (kind, subject):
                raise CallerError(
                    f"{kind} of {subject or 'the store'} is running already: job {other.id}",
                    status=409,
                    code="job_running",
                    retry_after=RETRY_AFTER,
                )
        if len(busy) >= AT_ONCE:
            raise CallerError(
                f"{len(busy)} jobs are running, and no more than {AT_ONCE} may; hxctl jobs shows "
                "them",
                status=409,
                code="too_many_jobs",
                retry_after=RETRY_AFTER,
            )
        job = Job(kind, subject, self._clock)
        self._jobs[job.id] = job
        self._forget()
        self._events.record("job", job.subject or "store", "began", id=job.id, job=kind)
        self._tasks[job.id] = asyncio.create_task(self._live(job, run), name=f"job-{kind}")
        return job

    def cancel(self, id: str) -> Job:
        """Asks it to stop; it does within a second or so. One that has ended stays as it is."""
        job = self.named(id)
        job.work.stop()
        if (task := self._tasks.get(id)) is not None and not task.cancelling():
            task.cancel()
        return job

    async def aclose(self) -> None:
        """All are stopped, and have stopped; no more begin."""
        self._closed = True
        tasks = list(self._tasks.values())
        for id in list(self._tasks):
            self.cancel(id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, job: Job, run: Run) -> None:
        try:
            job.result = await run(job.work)
            self._end(job, State.DONE)
        except (asyncio.CancelledError, Cancelled):
            # Only `cancel` cancels the task, and it awaits nobody else: to end here is to obey.
            job.error = _error(Cancelled("cancelled"))
            self._end(job, State.CANCELLED)
        except HxdError as error:
            job.error = _error(error)
            self._end(job, State.FAILED)
        except Exception as error:  # the boundary of a job, as of a request
            log.exception("job=%s kind=%s failed inside hxd", job.id, job.kind)
            job.error = _error(HxdError(f"something broke inside hxd: {error}"))
            self._end(job, State.FAILED)
        finally:
            self._tasks.pop(job.id, None)

    def _end(self, job: Job, state: State) -> None:
        job.state = state
        job.ended = self._clock.wall()
        outcome = state.value
        self.counts[job.kind, outcome] += 1
        self._finished(job.kind, outcome)
        why = {} if job.error is None else {"reason": job.error["message"]}
        self._events.record("job", job.subject or "store", outcome, id=job.id, job=job.kind, **why)

    def _forget(self) -> None:
        over = [id for id in self._jobs if id not in self._tasks]
        for id in over[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[id]


def _error(error: HxdError) -> dict[str, Any]:
    return {**error.body()["error"], "status": error.status}

"""One rollout on its way: where it is, how it came there, and what was found."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hxd.daemon.request.deployment import Served
from hxd.daemon.rollout.golden import Outcome as Judged
from hxd.daemon.rollout.phases import OVER, Phase, Step, after
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.sample import Sample, compare
from hxd.daemon.rollout.targets import named
from hxd.errors import CallerError

MOST_STEPS = 50


class Refused(Exception):
    """The rollout can't go on, and takes itself back; the message is the reason."""


@dataclass(eq=False)
class Rollout:
    """`candidate` is the release that is to come, `former` the one that was in service when it
    began. `reason` says why it was taken back, `aborted` why it is to be. `deaths` is how often the
    candidate's workers had died before. `yielded`: the former was ended to make room; `committed`:
    only another rollout leads back. Times are Unix seconds."""

    ask: Ask
    former: Served
    began: float
    target: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    phase: Phase = Phase.PREPARING
    mode: str = ""
    reason: str | None = None
    aborted: str | None = None
    promoted: bool = False
    candidate: Served | None = None
    deaths: int = 0
    yielded: bool = False
    committed: bool = False
    verdict: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    samples: tuple[Sample, Sample] | None = None
    trial_began: float | None = None
    answered: Mapping[str, Judged] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    pushed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.id = self.ask.id or self.id

    @property
    def model(self) -> str:
        return self.ask.model

    @property
    def running(self) -> bool:
        return self.phase not in OVER

    def step(self, step: Step, now: float, detail: str = "") -> Phase:
        """The phase that follows; raises `IllegalStep`."""
        self.phase = after(self.phase, step)
        self.steps.append({"at": now, "phase": self.phase.value, "detail": detail})
        del self.steps[:-MOST_STEPS]
        if self.phase in OVER:
            self.over.set()
        return self.phase

    def push(self) -> None:
        """Wake whoever waits inside it."""
        self.pushed.set()

    def abort(self, why: str) -> None:
        """Raises `CallerError` when it is too late."""
        if self.committed or not self.running or self.phase is Phase.ROLLING_BACK:
            raise CallerError(
                f"the rollout of {self.model!r} is {self.phase.value} already",
                status=409,
                code="rollout_over",
            )
        self.aborted = self.aborted or why
        self.push()

    @property
    def _kind(self) -> str:
        if self.ask.share is None:
            return "rollback" if self.ask.back else "swap"
        return "ab" if self.ask.compare else "canary"

    def body(self) -> dict[str, Any]:
        ask = self.ask
        body: dict[str, Any] = {
            "id": self.id,
            "model": self.model,
            "kind": self._kind,
            "from": describe(self.former),
            "to": self.target,
            "phase": self.phase.value,
            "running": self.running,
            "mode": self.mode,
            "why": ask.why,
            "back": ask.back,
            "reason": self.reason,
            "began": self.began,
            "notes": self.notes,
            "steps": self.steps,
        }
        if ask.share is not None:
            body |= {
                "share": ask.share,
                "seconds": ask.seconds,
                "at_least": ask.at_least,
                "sticky": "conversation" if ask.by_conversation else "key",
                "trial_began": self.trial_began,
                "verdict": self.verdict,
            }
        if self.samples is not None:
            body["comparison"] = compare(*self.samples)
        return body


def describe(served: Served) -> str:
    return named(served.source)

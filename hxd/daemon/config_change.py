"""One change of the configuration on its way: what is proposed, what it comes to, how far it is and
how it ended. Acts on nothing."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hxd.config import Config
from hxd.config.history import Why
from hxd.config.plan import Plan, Step
from hxd.daemon.store.sources import Source
from hxd.errors import CallerError, HxdError

Files = Mapping[str, bytes]


class BadConfig(CallerError):
    code = "bad_config"


class Phase(enum.StrEnum):
    """From `CHECKING` on, in this order; one of the last three is the end."""

    CHECKING = "checking"
    CHANGING = "changing"
    WATCHING = "watching"
    GOING_BACK = "going back"
    APPLIED = "applied"
    ROLLED_BACK = "rolled back"
    REFUSED = "refused"


OVER = (Phase.APPLIED, Phase.ROLLED_BACK, Phase.REFUSED)


@dataclass(frozen=True)
class Candidate:
    """Files that somebody proposes: a whole configuration, or with `whole` false some of its files,
    and the others as they lie there. `files` None is what lies there. `forced`: instead of what was
    edited there and never applied. `expected` are the sha256 of what it must come to."""

    files: Files | None = None
    whole: bool = True
    forced: bool = False
    expected: Mapping[str, str] | None = None

    def beside(self, present: Files) -> Files:
        if self.files is None:
            return present
        return self.files if self.whole else {**present, **self.files}


@dataclass(frozen=True)
class Proposal:
    """A configuration that is valid in every respect, and what it takes to get there. `sources` are
    what its models load, `edited` the files that would be replaced though somebody has changed them
    since they were applied."""

    files: Files
    config: Config
    sources: Mapping[str, Source]
    plan: Plan
    edited: tuple[str, ...] = ()


@dataclass(eq=False)
class Change:
    """One change on its way, and how it ended. `began` and `until`, the end of the watch, are in
    Unix seconds. `accepted` is set once it is known to be valid and begins, or has the reason why
    it does not. One that another daemon has begun has no `proposal` here."""

    why: Why
    who: str
    began: float
    accepted: asyncio.Future[None]
    phase: Phase = Phase.CHECKING
    proposal: Proposal | None = None
    revision: int | None = None
    error: HxdError | None = None
    until: float | None = None
    steps: list[dict[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, step: Step, state: str) -> None:
        if state == "begins":
            self.steps.append({"act": step.act.value, "name": step.name, "state": "under way"})
        else:
            self.steps[-1]["state"] = state

    def accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def end(self, phase: Phase, error: HxdError | None = None) -> None:
        self.phase, self.error, self.until = phase, error, None
        if error is not None and not self.accepted.done():
            self.accepted.set_exception(error)
            # Who has asked may have left.
            self.accepted.exception()
        self.accept()
        self.over.set()

    def body(self) -> dict[str, Any]:
        return {
            "why": self.why.value,
            "who": self.who,
            "began": self.began,
            "phase": self.phase.value,
            "running": self.phase not in OVER,
            "until": self.until,
            "revision": self.revision,
            "reason": None if self.error is None else str(self.error),
            "plan": None if self.proposal is None else self.proposal.plan.body(),
            "lines": [] if self.proposal is None else self.proposal.plan.lines(),
            "steps": self.steps,
        }

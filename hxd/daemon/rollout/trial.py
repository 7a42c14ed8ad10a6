"""A release on trial beside the one in service: gathers what is seen of both, and asks the
judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hxd.clock import Clock
from hxd.daemon.request.deployment import Outcome, Served
from hxd.daemon.rollout.golden import DEFAULT, Golden
from hxd.daemon.rollout.reasons import DEATHS
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.sample import Sample
from hxd.daemon.rollout.targets import akin
from hxd.daemon.rollout.verdict import Decision, Judge, Plan, Verdict
from hxd.errors import Fault

# The judge spends by what is known, however often it is asked; this is how soon limits are seen.
LOOK_EVERY = 0.5


class Contest:
    """`samples` are of the release in service and of the candidate. A comparison (`Ask.compare`)
    decides nothing, and is over when its time is."""

    def __init__(
        self, ask: Ask, stable: Served, candidate: Served, golden: Golden, clock: Clock
    ) -> None:
        self._ask = ask
        self._sides = stable, candidate
        self._clock = clock
        self._began = 0.0
        self._told: tuple[Decision, int] | None = None
        self._judge = Judge(
            Plan(
                share=ask.share or 1.0,
                seconds=ask.seconds,
                # Prompts that have no right answer promote nothing that nobody has used.
                at_least=ask.at_least or int(golden is DEFAULT),
                golden=golden,
                one_version=akin(stable.source, candidate.source),
            )
        )
        self.samples = Sample(0), Sample(1)

    def begin(self) -> None:
        self._began = self._clock.now()
        for served, sample in zip(self._sides, self.samples, strict=True):
            served.heard = _into(sample)

    def end(self) -> None:
        for served in self._sides:
            served.heard = None

    @property
    def elapsed(self) -> float:
        return self._clock.now() - self._began

    def look(self, deaths: int) -> Verdict | None:
        """None for a comparison that goes on."""
        if not self._ask.compare:
            gate = self._sides[1].gate
            unanswered = gate.running + gate.waiting
            return self._judge.look(*self.samples, self.elapsed, deaths, unanswered)
        if deaths >= DEATHS:
            words = f"{deaths} workers of the second version have died"
            return Verdict(Decision.ROLL_BACK, words, (), self.elapsed, 0)
        if self.elapsed >= self._ask.seconds:
            words = "the time of the comparison is over"
            return Verdict(Decision.INCONCLUSIVE, words, (), self.elapsed, 0)
        return None

    def news(self, verdict: Verdict) -> dict[str, Any] | None:
        """What of a verdict has not been said yet."""
        now = verdict.decision, verdict.looks
        if now == self._told:
            return None
        self._told = now
        return {"decision": verdict.decision.value, "words": verdict.words}


def _into(sample: Sample) -> Callable[[Outcome], None]:
    def heard(outcome: Outcome) -> None:
        fault = None if outcome.fault is None else Fault.BACKEND.value
        ok = outcome.fault is None
        sample.request(ok, fault, outcome.first_token, outcome.pace, outcome.empty)

    return heard

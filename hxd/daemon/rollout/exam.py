"""What a release must show before clients meet it: golden prompts answered, vectors like those
before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hxd.daemon.request.deployment import Served
from hxd.daemon.rollout import questions
from hxd.daemon.rollout.effects import Effects
from hxd.daemon.rollout.golden import DEFAULT, Golden
from hxd.daemon.rollout.golden import Outcome as Judged
from hxd.daemon.rollout.likeness import LIKE, Vector, likeness, sound
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.rollout import Refused, Rollout, describe
from hxd.daemon.rollout.targets import akin

# Golden prompts that a version answers before it is let in; a trial asks the rest of them.
FIRST_PROMPTS = 64


class Until(Protocol):
    """Waits until it is so; raises `Refused` when the rollout can't go on meanwhile."""

    async def __call__(
        self, ready: Callable[[], bool], *, also: asyncio.Future[Any] | None = None
    ) -> None: ...


class Exam:
    """Of one rollout's candidate. What the former release says of the same is asked when it is
    needed, or by `remember` before it ends."""

    def __init__(self, rollout: Rollout, means: Means, effects: Effects, until: Until) -> None:
        self._rollout = rollout
        self._means = means
        self._effects = effects
        self._until = until
        # The prompts of the candidate's version; None where nothing is known of it.
        self.golden: Golden | None = None
        self._usual: float | None = None
        self._vectors: list[Vector] | None = None
        self._remembered = False

    async def remember(self) -> None:
        """Ask the former release now: it ends before the candidate is there."""
        if self.golden is None:
            self._usual = await self._ask_usual()
        self._vectors = await self._ask_vectors()
        self._remembered = True

    async def sit(self, candidate: Served) -> None:
        """Raises `Refused` for a candidate that fails."""
        if questions.embeds(candidate, self._means.setting):
            await self._compare_vectors(candidate)
        if questions.generates(candidate, self._means.setting):
            await self._answer(candidate)

    async def _answer(self, candidate: Served) -> None:
        """Golden prompts that are right or wrong by themselves; a trial compares besides."""
        rollout = self._rollout
        asked = (self.golden or DEFAULT).first(FIRST_PROMPTS)
        found = rollout.answered = await self.ask(candidate, asked)
        share = _right(found)
        rollout.notes.append(f"{share:.1%} of {len(found)} golden prompts right")
        missed = [id for id in asked.required if found[id] is not Judged.RIGHT]
        if missed:
            raise Refused(f"required golden prompts are answered wrong: {', '.join(missed[:5])}")
        if share >= asked.floor:
            return
        if self.golden is None:
            # Nothing is known of this model: it must answer as sensibly as what it replaces.
            usual = self._usual if self._remembered else await self._ask_usual()
            if usual is None or usual < asked.floor:
                return
        raise Refused(
            f"{share:.1%} of {len(found)} golden prompts right; {asked.floor:.0%} are needed"
        )

    async def _ask_usual(self) -> float | None:
        """The share that the old release is right about of what any model is asked; None if it
        can't be asked."""
        former = self._rollout.former
        if not self._effects.able(former) or not questions.generates(former, self._means.setting):
            return None
        return _right(await self.ask(former, DEFAULT.first(FIRST_PROMPTS)))

    async def ask(self, served: Served, golden: Golden) -> Mapping[str, Judged]:
        asking = asyncio.ensure_future(questions.outcomes(self._means.setting, served, golden))
        try:
            await self._until(asking.done, also=asking)
            return asking.result()
        finally:
            asking.cancel()

    async def _compare_vectors(self, candidate: Served) -> None:
        """Of the same version they must be alike; another version's need not, but then the two
        can't serve side by side."""
        rollout, former = self._rollout, self._rollout.former
        mine = await self._ask_vectors(candidate)
        if mine is None or not sound(mine):
            raise Refused("its vectors hold what is no number" if mine else "it gives no vectors")
        theirs = self._vectors if self._remembered else await self._ask_vectors()
        if not theirs or not sound(theirs):
            return
        alike = likeness(mine, theirs)
        rollout.notes.append(f"vectors {alike:.2f} like those of {describe(former)} (mean cosine)")
        if alike >= LIKE:
            return
        if akin(candidate.source, former.source):
            raise Refused(
                f"its vectors are not like those of {describe(former)}: a mean cosine of "
                f"{alike:.2f}, and {LIKE:g} is needed of the same version"
            )
        if rollout.ask.share is not None:
            raise Refused(
                f"its vectors can't be compared with those of {describe(former)} (mean cosine "
                f"{alike:.2f}), so the two can't serve side by side; swap without --canary, and "
                "embed anew what clients have stored"
            )
        rollout.notes.append("what clients have stored must be embedded anew")

    async def _ask_vectors(self, served: Served | None = None) -> list[Vector] | None:
        """Of the former release unless another is named; None if it can't be asked."""
        served, setting = served or self._rollout.former, self._means.setting
        if not self._effects.able(served) or not questions.embeds(served, setting):
            return None
        asking = asyncio.ensure_future(questions.vectors(setting, served))
        try:
            await self._until(asking.done, also=asking)
            return asking.result()
        finally:
            asking.cancel()


def _right(found: Mapping[str, Judged]) -> float:
    right = sum(outcome is Judged.RIGHT for outcome in found.values())
    return right / len(found) if found else 1.0

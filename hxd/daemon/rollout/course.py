"""One rollout from its beginning to its end: room, load, exam, trial, shift; or all the way back.

New beside old where the memory allows it, else the old one ends first and arrivals wait. One worker
of the new release comes up and answers the golden prompts before there are more of it: a version
that can't load, or answers badly, costs two processes at most, and no request.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

from hxd.daemon.events import Events
from hxd.daemon.request.deployment import Served, Trial
from hxd.daemon.rollout import questions
from hxd.daemon.rollout.effects import Effects
from hxd.daemon.rollout.exam import Exam
from hxd.daemon.rollout.golden import DEFAULT, Golden
from hxd.daemon.rollout.grace import Grace
from hxd.daemon.rollout.ledger import Ledger
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase, Step
from hxd.daemon.rollout.reasons import DEATHS
from hxd.daemon.rollout.rollout import Refused, Rollout, describe
from hxd.daemon.rollout.targets import no_room, part, pinned, same, sized
from hxd.daemon.rollout.trial import LOOK_EVERY, Contest
from hxd.daemon.rollout.verdict import Decision
from hxd.daemon.store.sources import Source
from hxd.errors import HxdError

log = logging.getLogger("hxd.rollout")

# A worker quantizes its file first, where it has to; that has a time limit of its own.
COMING_UP = 3600.0
YIELD_BOUND = 120.0  # seconds beyond the drain in which the old release must be gone


class Course:
    """Takes `rollout` to `source`. `arrived` is told what has come into service."""

    def __init__(
        self,
        rollout: Rollout,
        source: Source,
        means: Means,
        effects: Effects,
        ledger: Ledger,
        grace: Grace,
        arrived: Callable[[Source], None],
    ) -> None:
        self._rollout = rollout
        self._source = source
        self._means = means
        self._effects = effects
        self._ledger = ledger
        self._grace = grace
        self._arrived = arrived
        self._deployment = means.deployments[rollout.model]
        self._exam = Exam(rollout, means, effects, self._until)

    async def run(self) -> None:
        """Never raises but for a cancel: the model must not stay half-way."""
        try:
            await self._roll()
        except (Refused, HxdError) as refused:
            await self._take_back(str(refused))
        except Exception as error:
            log.exception("rollout of %s failed", self._rollout.model)
            await self._take_back(f"something broke inside hxd: {error}")

    async def accept(self, served: Served) -> None:
        """What was let in by itself: nothing of the model was served before."""
        self._rollout.candidate = served
        self._step(Step.WARM, "nothing of it was served before")
        await self._commit()

    async def _roll(self) -> None:
        rollout, deployment, source = self._rollout, self._deployment, self._source
        if same(source, deployment.current.source) and not rollout.ask.again:
            rollout.candidate = deployment.current
            self._effects.arrange(deployment.current, source)
            rollout.notes.append("it was in service already")
            self._step(Step.WARM)
            await self._commit()
            return
        if rollout.ask.share is None and (warm := self._take_warm()) is not None:
            # Until it is in service, it takes what the other one fails.
            deployment.warm = warm
            self._step(Step.WARM, "its workers are still there")
            self._arrange(warm)
            await self._commit()
            return
        self._exam.golden = await self._means.golden(source)
        if self._take_warm() is not None:
            deployment.warm = None
            self._step(Step.ROOM, "its workers are still there")
        else:
            await self._make_room()
            await self._load()
        self._step(Step.LOADED)
        await self._exam.sit(self._candidate)
        if rollout.ask.share is None:
            self._step(Step.VALID)
        else:
            await self._try(rollout.ask.share)
        await self._strengthen(source)
        await self._commit()

    def _take_warm(self) -> Served | None:
        """What is kept warm, if that is what is asked for; it is the candidate then."""
        rollout, warm = self._rollout, self._deployment.warm
        if warm is None or not same(self._source, warm.source) or not self._effects.able(warm):
            return None
        self._grace.end(rollout.model)
        rollout.candidate = warm
        rollout.deaths = self._effects.deaths[warm.source.key]
        return warm

    def _arrange(self, warm: Served) -> None:
        """As the settings say by now. More workers come up by and by, as far as there is room."""
        source, means = self._source, self._means
        have = len(means.supervisor.replicas[warm.source.key])
        if source.estimate * (source.settings.replicas - have) > max(0, means.room.left):
            source = sized(source, have)
        self._effects.arrange(warm, source)

    @property
    def _candidate(self) -> Served:
        assert self._rollout.candidate is not None
        return self._rollout.candidate

    # Forward

    async def _make_room(self) -> None:
        """Decide how, and in the worse case end the old release first."""
        rollout, source, means = self._rollout, self._source, self._means
        ask, deployment, former = rollout.ask, self._deployment, rollout.former
        share = 1.0 if ask.share is None else ask.share
        need = source.estimate * part(source, share)
        if (warm := deployment.warm) is not None:
            # One former release is kept at most.
            self._grace.end(rollout.model)
            self._effects.retire(deployment, warm)
            if need > means.room.left:
                gone = warm.source.key
                await self._until(lambda: gone not in means.supervisor.replicas)
        fits = need <= means.room.left
        rollout.mode = ask.mode if ask.mode != "auto" else "availability" if fits else "resource"
        if rollout.mode == "availability":
            if not fits:
                raise Refused(no_room(need, means.room.left))
            rollout.candidate = self._effects.open(deployment, source, part(source, 0.0))
            self._step(Step.ROOM, f"{need / 1e6:.0f} MB beside the old release")
            return
        if ask.share is not None:
            raise Refused(f"a canary needs both versions at once. {no_room(need, means.room.left)}")
        freed = former.source.estimate * len(means.supervisor.replicas[former.source.key])
        if need > means.room.left + freed:
            raise Refused(no_room(need, means.room.left + freed))
        await self._exam.remember()
        self._step(Step.NO_ROOM, "the old release finishes first; new requests wait")
        rollout.yielded = True
        means.supervisor.hold(former.source.key)
        bound = means.drain() + YIELD_BOUND
        await self._until(lambda: self._effects.rests(former), bound=bound)
        self._step(Step.YIELDED)
        rollout.candidate = self._effects.open(deployment, source, part(source, 0.0))

    async def _load(self) -> None:
        key, source = self._candidate.source.key, self._source
        await self._until(
            lambda: bool(self._means.supervisor.ready(key)),
            bound=COMING_UP + source.settings.load_time,
        )

    async def _try(self, share: float) -> None:
        """The trial, until it is won; raises `Refused` when it is lost."""
        rollout, means, source = self._rollout, self._means, self._source
        candidate, former, effects = self._candidate, rollout.former, self._effects
        if part(source, share) > 1:
            await self._strengthen(sized(source, part(source, share)))
        golden = self._exam.golden or DEFAULT
        if not questions.generates(candidate, means.setting):
            golden = Golden(())
        contest = Contest(rollout.ask, former, candidate, golden, means.clock)
        rollout.samples = contest.samples
        # What was found out before it was let in here need not be asked again.
        rest = golden.without(rollout.answered)
        answered = (
            await self._exam.ask(former, golden),
            {**rollout.answered, **await self._exam.ask(candidate, rest)},
        )
        for served, sample, found in zip(
            (former, candidate), contest.samples, answered, strict=True
        ):
            for id, outcome in found.items():
                sample.golden(id, outcome)
            if questions.generates(served, means.setting):
                sample.perplexity = await questions.perplexity_of(means.setting, served)
        self._deployment.begin(Trial(candidate, share, rollout.id, rollout.ask.by_conversation))
        rollout.trial_began = means.clock.wall()
        self._step(Step.TRY, f"{share:.0%} of the clients for {rollout.ask.seconds:g} s")
        deaths = effects.excess(candidate, former)
        contest.begin()
        try:
            while not rollout.promoted:
                verdict = contest.look(effects.excess(candidate, former) - deaths)
                if verdict is not None:
                    rollout.verdict = verdict.body()
                    if news := contest.news(verdict):
                        self._told("verdict", **news)
                    if verdict.decision is Decision.PROMOTE:
                        break
                    if verdict.decision is not Decision.GO_ON:
                        # Where it is told, it is told as what was rolled back.
                        raise Refused(verdict.words.removeprefix("rolled back: "))
                await self._pause(LOOK_EVERY)
        finally:
            contest.end()
        self._step(Step.WON, "by the operator" if rollout.promoted else "")

    async def _strengthen(self, source: Source) -> None:
        """As many workers as the settings say."""
        means, candidate = self._means, self._candidate
        key = candidate.source.key
        have = len(means.supervisor.replicas.get(key, ()))
        more = source.estimate * (source.settings.replicas - have)
        if more > means.room.left and self._rollout.mode != "resource":
            raise Refused(no_room(more, means.room.left))
        self._effects.arrange(candidate, source)
        await self._until(
            lambda: len(means.supervisor.ready(key)) >= source.settings.replicas,
            bound=COMING_UP + source.settings.load_time,
        )

    async def _commit(self) -> None:
        """From here on it is in service, also for the next daemon."""
        rollout, deployment, ask = self._rollout, self._deployment, self._rollout.ask
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)
        rollout.committed = True
        candidate, former = self._candidate, rollout.former
        deployed = self._ledger.of(rollout.model)
        if ask.fresh or candidate is former:
            # Of another configuration there is nothing: what was chosen under it is forgotten.
            before = deployed.former
        elif ask.back or ask.blame:
            # What it leaves is not what the next one should come back to.
            before = deployed.former[: -1 if ask.choice in deployed.former[-1:] else None]
        else:
            before = (*deployed.former, pinned(deployed.choice, former.source))[-10:]
        choice = pinned(ask.choice, candidate.source)
        await self._ledger.write(rollout.model, pending=None, choice=choice, former=before)
        goes = ask.blame or rollout.yielded
        if deployment.current is not candidate:
            deployment.shift(candidate)
            if former in deployment.others and not goes:
                deployment.warm = former
        label = await self._effects.label(candidate.source)
        if (why := self._ledger.unsaved) is not None or label is not None:
            said = [label] if why is None else [f"it is not on record: {why}", label]
            rollout.notes += [one for one in said if one is not None]
            rollout.notes.append(
                "until that is mended the next start of hxd may serve another version"
            )
        self._arrived(candidate.source)
        if ask.blame:
            rollout.reason = ask.why
        self._step(Step.SHIFTED, describe(candidate))
        if former is candidate or former not in deployment.others:
            return
        if goes:
            self._effects.retire(deployment, former)
        else:
            self._grace.keep(deployment, former, candidate, fresh=ask.fresh)

    # Back

    async def _take_back(self, why: str) -> None:
        rollout, deployment, effects = self._rollout, self._deployment, self._effects
        rollout.reason = why
        candidate = None if rollout.candidate is rollout.former else rollout.candidate
        if candidate is not None:
            deployment.end()
            if deployment.current is candidate:
                deployment.shift(rollout.former)
        # A daemon that dies on the way back is followed by one that serves what served before. With
        # the next step it may be over, and who waits for that may begin the next one at once.
        await self._ledger.write(rollout.model, pending=None)
        self._step(Step.FAILED, why)
        if candidate is not None:
            crashed = self._dies(candidate)
            effects.retire(deployment, candidate)
            if crashed:
                await effects.condemn(candidate.source, why, rollout.former.source)
        if rollout.yielded:
            await self._bring_back()
        if rollout.running:
            self._step(Step.BACK, f"{describe(deployment.current)} serves")
        self._means.events.counts["rollout", "taken_back"] += 1

    async def _bring_back(self) -> None:
        """The old release has ended to make room, or is about to; it begins again once the other
        one is gone, and arrivals wait for it."""
        supervisor, former = self._means.supervisor, self._rollout.former
        candidate = self._rollout.candidate
        key = candidate.source.key if candidate is not None else ""
        while key in supervisor.replicas or not self._effects.rests(former):
            await self._effects.turn()
        supervisor.start(former.source.key)

    # Waiting

    async def _until(
        self,
        ready: Callable[[], bool],
        *,
        bound: float = math.inf,
        also: asyncio.Future[Any] | None = None,
    ) -> None:
        """Raises `Refused` when it takes too long, when the candidate dies of itself too often, or
        when the rollout was aborted."""
        rollout, clock = self._rollout, self._means.clock
        deadline = clock.now() + bound
        if also is not None:
            also.add_done_callback(lambda future: rollout.push())
        while True:
            rollout.pushed.clear()
            if rollout.aborted is not None:
                raise Refused(rollout.aborted)
            if ready():
                return
            self._check_alive()
            if clock.now() >= deadline:
                raise Refused(f"{rollout.phase.value} took over {bound:g} s")
            await self._pushed(min(1.0, deadline - clock.now()))

    async def _pause(self, seconds: float) -> None:
        """Wakes early when something happens to the candidate."""
        rollout = self._rollout
        rollout.pushed.clear()
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)
        if not rollout.promoted:
            await self._pushed(seconds)
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)

    async def _pushed(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._rollout.pushed.wait()
        except TimeoutError:
            pass

    def _check_alive(self) -> None:
        rollout = self._rollout
        candidate = rollout.candidate
        if candidate is None or candidate is rollout.former:
            return
        if self._dies(candidate) and rollout.phase is not Phase.TRIAL:
            problems = self._means.supervisor.problems(candidate.source.key)
            raise Refused(f"its workers die: {'; '.join(problems) or 'it gave no reason'}")

    def _dies(self, candidate: Served) -> bool:
        return self._effects.deaths[candidate.source.key] - self._rollout.deaths >= DEATHS

    # Telling

    def _step(self, step: Step, detail: str = "") -> None:
        phase = self._rollout.step(step, self._means.clock.wall(), detail)
        self._told(phase.value, **({"detail": detail} if detail else {}))

    def _told(self, step: str, **detail: Any) -> None:
        told(self._means.events, self._rollout, step, **detail)


def told(events: Events, rollout: Rollout, step: str, **detail: Any) -> None:
    """One event of a rollout."""
    events.record("rollout", rollout.model, step, id=rollout.id, to=rollout.target, **detail)

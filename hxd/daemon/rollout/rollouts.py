"""Changes which release of a model is in service while it serves. One rollout at a time per model.

New beside old where the memory allows it, else the old one ends first and arrivals wait. One worker
of the new release comes up and answers the golden prompts before there are more of it: a version
that can't load, or answers badly, costs two processes at most, and no request. The old release
stays warm for a while; until then a version that fails takes itself back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from hxd.daemon.request.deployment import Deployment, Served, Trial
from hxd.daemon.rollout import questions
from hxd.daemon.rollout.golden import DEFAULT, Golden
from hxd.daemon.rollout.golden import Outcome as Judged
from hxd.daemon.rollout.ledger import Ledger
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase, Step
from hxd.daemon.rollout.reasons import DEATHS
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollout import Refused, Rollout, describe
from hxd.daemon.rollout.targets import identity, named, no_room, part, pinned, same, sized
from hxd.daemon.rollout.trial import LOOK_EVERY, Contest
from hxd.daemon.rollout.verdict import Decision
from hxd.daemon.rollout.watch import Watch
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.sources import Choice, Source, SourceError
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.errors import CallerError, HxdError, ModelNotFound

log = logging.getLogger("hxd.rollout")

# A worker quantizes its file first, where it has to; that has a time limit of its own.
COMING_UP = 3600.0
YIELD_BOUND = 120.0  # seconds beyond the drain in which the old release must be gone
MOST_ATTEMPTS = 3
# Golden prompts that a version answers before it is let in; a trial asks the rest of them.
FIRST_PROMPTS = 64


class Rollouts:
    def __init__(self, means: Means) -> None:
        self._means = means
        self._running: dict[str, Rollout] = {}
        self._last: dict[str, Rollout] = {}
        self._watches: dict[str, Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self.ledger = Ledger(means.record, means.configured)
        # Told what has come into service: `targets.identity`.
        self.arrived: list[Callable[[tuple[str, int, str, str]], None]] = []
        self._turns: list[asyncio.Future[None]] = []
        means.supervisor.listeners.append(self._changed)

    # What there is

    def of(self, model: str) -> Rollout | None:
        """The rollout that runs, or the last one."""
        return self._running.get(model) or self._last.get(model)

    def running(self, model: str) -> Rollout | None:
        return self._running.get(model)

    def all(self) -> list[Rollout]:
        return list((self._last | self._running).values())

    def warm_for(self, model: str) -> float | None:
        """Seconds that the former release is still kept; None when there is none."""
        watch = self._watches.get(model)
        return None if watch is None else watch.left

    def former(self, model: str) -> list[Choice]:
        return list(self.ledger.of(model).former)

    def choice(self, model: str) -> Choice:
        """What leads to the release in service, whatever else changes."""
        if model in self._means.refused:
            return self.ledger.of(model).choice
        deployment = self._deployment(model)
        return pinned(self.ledger.of(model).choice, deployment.current.source)

    def shelf(self, model: str) -> str | None:
        """The name of the model's versions in the store."""
        return self._means.shelf(model)

    # What is asked for

    async def begin(self, ask: Ask) -> Rollout:
        """Start a rollout; it goes on by itself. Raises `HxdError` when it is refused."""
        self._check_free(ask.model)
        if ask.model in self._means.refused:
            return await self._accept(ask)
        deployment = self._deployment(ask.model)
        rollout = Rollout(ask, deployment.current, self._means.clock.wall())
        self._running[ask.model] = rollout
        try:
            source = await self._resolve(ask)
            rollout.target = named(source)
            if ask.share is not None and same(source, deployment.current.source):
                raise CallerError(
                    f"{rollout.target} is what {ask.model!r} serves already",
                    status=409,
                    code="already_served",
                )
            ask = msgspec.structs.replace(ask, began=rollout.began)
            rollout.ask = ask
            await self.ledger.write(ask.model, pending=ask)
        except BaseException:
            self._running.pop(ask.model, None)
            raise
        self._told(rollout, "begins")
        self.spawn(self._live(rollout, source), f"rollout-{ask.model}")
        return rollout

    async def _accept(self, ask: Ask) -> Rollout:
        """What the configuration says can't be served; what is asked for perhaps can."""
        model = ask.model
        source = await self._resolve(ask)
        await self.introduce(model, source)
        self._means.refused.pop(model, None)
        served = self._means.deployments[model].current
        rollout = Rollout(ask, served, self._means.clock.wall(), named(source))
        rollout.candidate, self._last[model] = served, rollout
        self._step(rollout, Step.WARM, "nothing of it was served before")
        await self._commit(rollout, self._means.deployments[model])
        return rollout

    async def roll_back(self, model: str, why: str, *, blame: bool = False) -> Rollout:
        """Back to what was in service before: at once while that is warm, else by loading it. A
        rollout that runs is taken back. `blame`: what serves now is bad, and is not kept."""
        self._deployment(model)
        if (running := self._running.get(model)) is not None:
            running.abort(why)
            return running
        former = self.ledger.of(model).former
        if not former:
            raise CallerError(
                f"there is nothing before what {model!r} serves now; hxctl swap {model} VERSION "
                "takes another version",
                status=409,
                code="nothing_to_roll_back_to",
            )
        ask = Ask(model=model, choice=former[-1], why=why, back=True, blame=blame)
        return await self.begin(ask)

    def promote(self, model: str) -> Rollout:
        """End the trial in favour of the candidate. Raises `CallerError` without one."""
        self._deployment(model)
        running = self._running.get(model)
        if running is None or running.phase is not Phase.TRIAL:
            raise CallerError(f"no canary of {model!r} is running", status=409, code="no_canary")
        running.promoted = True
        running.push()
        return running

    def feedback(self, served: Served, good: bool) -> None:
        """What a client said of an answer of that release."""
        model = served.source.name
        running = self._running.get(model)
        if running is not None and running.samples is not None:
            stable, canary = running.samples
            if served is running.candidate:
                canary.feedback(good)
            elif served is running.former:
                stable.feedback(good)

    async def resume(self) -> None:
        """Take up what a former daemon left unfinished; what has failed so several times is taken
        back."""
        for model in list(self._means.deployments):
            pending = self.ledger.of(model).pending
            if pending is None:
                continue
            if pending.attempts + 1 >= MOST_ATTEMPTS:
                await self.ledger.write(model, pending=None)
                self._means.events.record(
                    "rollout", model, "rolled_back",
                    reason=f"the daemon ended {MOST_ATTEMPTS} times in the middle of it",
                )  # fmt: skip
                continue
            seconds = pending.seconds
            if pending.began:
                # What is left of the time, but no less than a tenth: nothing is known yet.
                gone = max(0.0, self._means.clock.wall() - pending.began)
                seconds = max(pending.seconds - gone, pending.seconds / 10)
            again = msgspec.structs.replace(
                pending,
                seconds=seconds,
                attempts=pending.attempts + 1,
                why="resumed after a restart of the daemon",
            )
            try:
                await self.begin(again)
            except HxdError as error:
                await self.ledger.write(model, pending=None)
                self._means.events.record("rollout", model, "rolled_back", reason=str(error))

    async def settle(self) -> None:
        """Labels that models follow point at what is in service: a daemon may have died between
        the one and the other."""
        for deployment in self._means.deployments.values():
            source = deployment.current.source
            # What stands in for a version that can't be served is not what was wanted.
            if self.ledger.of(deployment.name).choice.version == source.version:
                await self._label(source)

    async def aclose(self) -> None:
        """The daemon ends; what runs is taken up by the next one."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Parts that other parts of the daemon need

    async def introduce(self, model: str, source: Source) -> None:
        """A model that is new in the configuration, or could not be served so far."""
        means = self._means
        need = source.estimate * source.settings.replicas
        if need > means.room.left:
            raise CallerError(
                no_room(need, means.room.left), param="source", status=409, code="no_room"
            )
        source = replace(source, release=self._release_name(model))
        means.supervisor.add(source)
        means.deployments[model] = Deployment(model, means.releases.open(source))
        means.events.record("model", model, "starts", to=named(source))

    async def remove(self, model: str) -> None:
        """The model leaves the configuration: its workers finish what they have."""
        if (running := self._running.get(model)) is not None:
            with contextlib.suppress(CallerError):  # it is nearly over
                running.abort("the model was taken out of the configuration")
            await running.over.wait()
        deployment = self._means.deployments.pop(model)
        self._unwatch(model)
        for served in list(deployment.releases()):
            self._retire(deployment, served)
        await self.ledger.write(model, forget=True)

    def in_use(self) -> list[Source]:
        """What has workers, or may get them back by a rollback."""
        return [served.source for served in self._means.releases]

    # A rollout's life

    async def _live(self, rollout: Rollout, source: Source) -> None:
        try:
            try:
                await self._roll(rollout, source)
            except (Refused, HxdError) as refused:
                await self._take_back(rollout, str(refused))
            except Exception as error:  # whatever it was, the model must not stay half-way
                log.exception("rollout of %s failed", rollout.model)
                await self._take_back(rollout, f"something broke inside hxd: {error}")
        finally:
            self._running.pop(rollout.model, None)
            self._last[rollout.model] = rollout

    async def _roll(self, rollout: Rollout, source: Source) -> None:
        deployment = self._means.deployments[rollout.model]
        warm = deployment.warm
        if same(source, deployment.current.source):
            rollout.candidate = deployment.current
            self._arrange(deployment.current, source)
            rollout.notes.append("it was in service already")
            self._step(rollout, Step.WARM)
            await self._commit(rollout, deployment)
            return
        if warm is not None and same(source, warm.source) and self._able(warm):
            self._unwatch(rollout.model)
            rollout.candidate, rollout.deaths = warm, self._deaths[warm.source.key]
            if rollout.ask.share is None:
                # Until it is in service, it takes what the other one fails.
                deployment.warm = warm
                self._step(rollout, Step.WARM, "its workers are still there")
                await self._commit(rollout, deployment)
                return
            deployment.warm = None
            self._step(rollout, Step.ROOM, "its workers are still there")
        else:
            await self._make_room(rollout, deployment, source)
            await self._load(rollout, deployment, source)
        self._step(rollout, Step.LOADED)
        await self._validate(rollout)
        if rollout.ask.share is None:
            self._step(rollout, Step.VALID)
        else:
            await self._try(rollout, deployment, source)
        await self._strengthen(rollout, source)
        await self._commit(rollout, deployment)

    async def _make_room(self, rollout: Rollout, deployment: Deployment, source: Source) -> None:
        """Decide how, and in the worse case end the old release first."""
        means, ask = self._means, rollout.ask
        share = 1.0 if ask.share is None else ask.share
        need = source.estimate * part(source, share)
        if (warm := deployment.warm) is not None:
            # One former release is kept at most.
            self._unwatch(rollout.model)
            self._retire(deployment, warm)
            if need > means.room.left:
                gone = warm.source.key
                await self._until(rollout, lambda: gone not in means.supervisor.replicas)
        fits = need <= means.room.left
        rollout.mode = ask.mode if ask.mode != "auto" else "availability" if fits else "resource"
        if rollout.mode == "availability":
            if not fits:
                raise Refused(no_room(need, means.room.left))
            rollout.candidate = self._open(deployment, source, part(source, 0.0))
            self._step(rollout, Step.ROOM, f"{need / 1e6:.0f} MB beside the old release")
            return
        if ask.share is not None:
            raise Refused(f"a canary needs both versions at once. {no_room(need, means.room.left)}")
        former = rollout.former
        freed = former.source.estimate * len(means.supervisor.replicas[former.source.key])
        if need > means.room.left + freed:
            raise Refused(no_room(need, means.room.left + freed))
        if await means.golden(source) is None:
            rollout.usual = await self._usual(rollout)
        self._step(rollout, Step.NO_ROOM, "the old release finishes first; new requests wait")
        rollout.yielded = True
        means.supervisor.hold(former.source.key)
        bound = means.drain() + YIELD_BOUND
        await self._until(rollout, lambda: self._rests(former), bound=bound)
        self._step(rollout, Step.YIELDED)
        rollout.candidate = self._open(deployment, source, part(source, 0.0))

    def _rests(self, served: Served) -> bool:
        replicas = self._means.supervisor.replicas.get(served.source.key, ())
        return all(replica.state is State.STOPPED for replica in replicas)

    def _open(self, deployment: Deployment, source: Source, replicas: int) -> Served:
        """A release with its first workers, which gets no requests yet."""
        means = self._means
        source = replace(sized(source, replicas), release=self._release_name(deployment.name))
        means.supervisor.add(source)
        served = means.releases.open(source)
        deployment.adopt(served)
        return served

    def _release_name(self, model: str) -> str:
        self._numbers[model] += 1
        return str(self._numbers[model] + 1)

    async def _load(self, rollout: Rollout, deployment: Deployment, source: Source) -> None:
        candidate = _candidate(rollout)
        await self._until(
            rollout,
            lambda: bool(self._means.supervisor.ready(candidate.source.key)),
            bound=COMING_UP + source.settings.load_time,
        )

    async def _validate(self, rollout: Rollout) -> None:
        """Golden prompts that are right or wrong by themselves; a trial compares besides."""
        means, candidate = self._means, _candidate(rollout)
        if not questions.generates(candidate, means.setting):
            return
        golden = await means.golden(candidate.source)
        asked = (golden or DEFAULT).first(FIRST_PROMPTS)
        found = rollout.answered = await self._ask(rollout, candidate, asked)
        share = _right(found)
        rollout.notes.append(f"{share:.1%} of {len(found)} golden prompts right")
        missed = [id for id in asked.required if found[id] is not Judged.RIGHT]
        if missed:
            raise Refused(f"required golden prompts are answered wrong: {', '.join(missed[:5])}")
        if share >= asked.floor:
            return
        if golden is None:
            # Nothing is known of this model: it must answer as sensibly as what it replaces.
            usual = rollout.usual if rollout.yielded else await self._usual(rollout)
            if usual is None or usual < asked.floor:
                return
        raise Refused(
            f"{share:.1%} of {len(found)} golden prompts right; {asked.floor:.0%} are needed"
        )

    async def _usual(self, rollout: Rollout) -> float | None:
        """The share that the old release is right about of what any model is asked; None if it
        can't be asked."""
        former = rollout.former
        if not self._able(former) or not questions.generates(former, self._means.setting):
            return None
        return _right(await self._ask(rollout, former, DEFAULT.first(FIRST_PROMPTS)))

    async def _ask(self, rollout: Rollout, served: Served, golden: Golden) -> Mapping[str, Judged]:
        asking = asyncio.ensure_future(questions.outcomes(self._means.setting, served, golden))
        try:
            await self._until(rollout, asking.done, also=asking)
            return asking.result()
        finally:
            asking.cancel()

    async def _try(self, rollout: Rollout, deployment: Deployment, source: Source) -> None:
        """The trial, until it is won; raises `Refused` when it is lost."""
        means, ask, candidate = self._means, rollout.ask, _candidate(rollout)
        share = ask.share or 0.0
        if part(source, share) > 1:
            await self._strengthen(rollout, sized(source, part(source, share)))
        golden = await means.golden(candidate.source) or DEFAULT
        if not questions.generates(candidate, means.setting):
            golden = Golden(())
        contest = Contest(ask, rollout.former, candidate, golden, means.clock)
        rollout.samples = contest.samples
        # What was found out before it was let in here need not be asked again.
        rest = golden.without(rollout.answered)
        answered = (
            await self._ask(rollout, rollout.former, golden),
            {**rollout.answered, **await self._ask(rollout, candidate, rest)},
        )
        sides = zip((rollout.former, candidate), contest.samples, answered, strict=True)
        for served, sample, found in sides:
            for id, outcome in found.items():
                sample.golden(id, outcome)
            if questions.generates(served, means.setting):
                sample.perplexity = await questions.perplexity_of(means.setting, served)
        deployment.begin(Trial(candidate, share, rollout.id, ask.by_conversation))
        rollout.trial_began = means.clock.wall()
        self._step(rollout, Step.TRY, f"{share:.0%} of the clients for {ask.seconds:g} s")
        deaths = self._excess(candidate, rollout.former)
        contest.begin()
        try:
            while not rollout.promoted:
                verdict = contest.look(self._excess(candidate, rollout.former) - deaths)
                if verdict is not None:
                    rollout.verdict = verdict.body()
                    if news := contest.news(verdict):
                        self._told(rollout, "verdict", **news)
                    if verdict.decision is Decision.PROMOTE:
                        break
                    if verdict.decision is not Decision.GO_ON:
                        raise Refused(verdict.words)
                await self._pause(rollout, LOOK_EVERY)
        finally:
            contest.end()
        self._step(rollout, Step.WON, "by the operator" if rollout.promoted else "")

    def _excess(self, served: Served, other: Served) -> int:
        """Deaths of workers of `served` beyond those of `other`: a request that breaks both says
        nothing about the version."""
        return self._deaths[served.source.key] - self._deaths[other.source.key]

    async def _strengthen(self, rollout: Rollout, source: Source) -> None:
        """As many workers as the settings say."""
        means, candidate = self._means, _candidate(rollout)
        key = candidate.source.key
        have = len(means.supervisor.replicas.get(key, ()))
        more = source.estimate * (source.settings.replicas - have)
        if more > means.room.left and rollout.mode != "resource":
            raise Refused(no_room(more, means.room.left))
        self._arrange(candidate, source)
        await self._until(
            rollout,
            lambda: len(means.supervisor.ready(key)) >= source.settings.replicas,
            bound=COMING_UP + source.settings.load_time,
        )

    def _arrange(self, served: Served, source: Source) -> None:
        """Workers and line as these settings say; `source` loads what is loaded there."""
        arranged = replace(source, release=served.source.release)
        self._means.supervisor.resize(arranged)
        self._means.releases.arrange(served, arranged)

    async def _commit(self, rollout: Rollout, deployment: Deployment) -> None:
        """From here on it is in service, also for the next daemon."""
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)
        rollout.committed = True
        candidate = _candidate(rollout)
        model, choice = rollout.model, rollout.ask.choice
        deployed = self.ledger.of(model)
        if rollout.ask.fresh or candidate is rollout.former:
            # Of another configuration there is nothing: what was chosen under it is forgotten.
            former = deployed.former
        elif rollout.ask.back or rollout.ask.blame:
            # What it leaves is not what the next one should come back to.
            former = deployed.former[: -1 if choice in deployed.former[-1:] else None]
        else:
            before = pinned(deployed.choice, rollout.former.source)
            former = (*deployed.former, before)[-10:]
        await self.ledger.write(
            model, pending=None, choice=pinned(choice, candidate.source), former=former
        )
        goes = rollout.ask.blame or rollout.yielded
        if deployment.current is not candidate:
            deployment.shift(candidate)
            if rollout.former in deployment.others and not goes:
                deployment.warm = rollout.former
        await self._label(candidate.source)
        for listener in self.arrived:
            listener(identity(candidate.source))
        if rollout.ask.blame:
            rollout.reason = rollout.ask.why
        self._step(rollout, Step.SHIFTED, describe(candidate))
        if rollout.former is candidate or rollout.former not in deployment.others:
            return
        if goes:
            self._retire(deployment, rollout.former)
        else:
            self._keep_warm(deployment, rollout.former, candidate)

    def _keep_warm(self, deployment: Deployment, former: Served, current: Served) -> None:
        if self._means.room.left < 0:
            self._retire(deployment, former)
            return
        deployment.warm = former
        watch = Watch(deployment, former, current, self._means.clock, current.source.settings.grace)
        self._watches[deployment.name] = watch
        current.heard = watch.heard
        watch.task = self.spawn(self._watch(watch), f"warm-{deployment.name}")

    async def _watch(self, watch: Watch) -> None:
        """Until the grace period is over; a version that fails in it is taken back."""
        means, deployment = self._means, watch.deployment
        deaths = self._excess(watch.current, watch.former)
        while (left := watch.left) > 0:
            await watch.nap(min(left, 1.0))
            why = watch.trouble(self._excess(watch.current, watch.former) - deaths)
            if why is not None and deployment.name not in self._running:
                self.spawn(self._give_up_on(watch, why), f"rollback-{deployment.name}")
                return
        if self._watches.get(deployment.name) is watch:
            self._unwatch(deployment.name)
            self._retire(deployment, watch.former)
            means.events.record(
                "rollout", deployment.name, "grace_over", released=describe(watch.former)
            )

    async def _give_up_on(self, watch: Watch, why: str) -> None:
        source = watch.current.source
        if not self.ledger.of(watch.deployment.name).former:
            self._revert(watch, why)
            return
        try:
            await self.roll_back(watch.deployment.name, f"by itself: {why}", blame=True)
            await self.condemn(source, why, watch.former.source)
        except HxdError as error:
            log.error("model=%s can't be rolled back: %s", watch.deployment.name, error)

    def _revert(self, watch: Watch, why: str) -> None:
        """The configuration has no way back, but what served under the last one is still there."""
        deployment, model = watch.deployment, watch.deployment.name
        self._unwatch(model)
        deployment.shift(watch.former)
        self._retire(deployment, watch.current)
        self._means.events.record(
            "rollout", model, "taken_back", to=describe(watch.former), reason=why
        )
        if (last := self._last.get(model)) is not None:
            last.reason = why

    def _unwatch(self, model: str) -> None:
        watch = self._watches.pop(model, None)
        if watch is not None:
            watch.end()

    async def _take_back(self, rollout: Rollout, why: str) -> None:
        means, deployment = self._means, self._means.deployments[rollout.model]
        rollout.reason = why
        if rollout.phase is Phase.PREPARING:
            # With the next step it is over; who waits for that may begin the next one at once.
            await self.ledger.write(rollout.model, pending=None)
        self._step(rollout, Step.FAILED, why)
        candidate = rollout.candidate
        if candidate is not None and candidate is not rollout.former:
            deployment.end()
            if deployment.current is candidate:
                deployment.shift(rollout.former)
            crashed = self._dies(rollout, candidate)
            self._retire(deployment, candidate)
            if crashed:
                await self.condemn(candidate.source, why, rollout.former.source)
        if rollout.yielded:
            await self._bring_back(rollout)
        if rollout.running:
            await self.ledger.write(rollout.model, pending=None)
            self._step(rollout, Step.BACK, f"{describe(deployment.current)} serves")
        means.events.counts["rollout", "taken_back"] += 1

    async def _bring_back(self, rollout: Rollout) -> None:
        """The old release has ended to make room, or is about to; it begins again once the other
        one is gone, and arrivals wait for it."""
        supervisor, former, candidate = self._means.supervisor, rollout.former, rollout.candidate
        key = candidate.source.key if candidate is not None else ""
        while key in supervisor.replicas or not self._rests(former):
            await self.turn()
        supervisor.start(former.source.key)

    def _retire(self, deployment: Deployment, served: Served) -> None:
        """Its workers finish what they have, in the bounds of a drain, and end."""
        key = served.source.key
        served.heard = None
        deployment.forget(served)
        self._means.supervisor.retire(key)
        self.spawn(self._gone(served), f"retire-{key}")

    async def _gone(self, served: Served) -> None:
        while served.source.key in self._means.supervisor.replicas:
            await self.turn()
        self._means.releases.close(served)
        self._deaths.pop(served.source.key, None)

    # Waiting

    async def _until(
        self,
        rollout: Rollout,
        ready: Callable[[], bool],
        *,
        bound: float = math.inf,
        also: asyncio.Future[Any] | None = None,
    ) -> None:
        """Raises `Refused` when it takes too long, when the candidate dies of itself too often, or
        when the rollout was aborted."""
        clock = self._means.clock
        deadline = clock.now() + bound
        if also is not None:
            also.add_done_callback(lambda future: rollout.push())
        while True:
            rollout.pushed.clear()
            if rollout.aborted is not None:
                raise Refused(rollout.aborted)
            if ready():
                return
            self._check_alive(rollout)
            if clock.now() >= deadline:
                raise Refused(f"{rollout.phase.value} took over {bound:g} s")
            await self._pushed(rollout, min(1.0, deadline - clock.now()))

    async def _pause(self, rollout: Rollout, seconds: float) -> None:
        """Wakes early when something happens to the candidate."""
        rollout.pushed.clear()
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)
        if not rollout.promoted:
            await self._pushed(rollout, seconds)
        if rollout.aborted is not None:
            raise Refused(rollout.aborted)

    @staticmethod
    async def _pushed(rollout: Rollout, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await rollout.pushed.wait()
        except TimeoutError:
            pass

    def _check_alive(self, rollout: Rollout) -> None:
        candidate = rollout.candidate
        if candidate is None or candidate is rollout.former:
            return
        if self._dies(rollout, candidate) and rollout.phase is not Phase.TRIAL:
            key = candidate.source.key
            problems = "; ".join(self._means.supervisor.problems(key)) or "it gave no reason"
            raise Refused(f"its workers die: {problems}")

    def _dies(self, rollout: Rollout, candidate: Served) -> bool:
        return self._deaths[candidate.source.key] - rollout.deaths >= DEATHS

    async def turn(self) -> None:
        turned = asyncio.get_running_loop().create_future()
        self._turns.append(turned)
        try:
            async with asyncio.timeout(1.0):
                await turned
        except TimeoutError:
            pass

    def _changed(self, replica: Replica, old: State, new: State) -> None:
        """A transition; one of the supervisor's listeners."""
        if new is State.FAILED and not replica.blameless:
            self._deaths[replica.source.key] += 1
        turns, self._turns = self._turns, []
        for turned in turns:
            if not turned.done():
                turned.set_result(None)
        running = self._running.get(replica.source.name)
        if running is not None:
            running.push()

    # Small things

    def _able(self, served: Served) -> bool:
        return bool(self._means.supervisor.ready(served.source.key))

    def _deployment(self, model: str) -> Deployment:
        try:
            return self._means.deployments[model]
        except KeyError:
            raise ModelNotFound(model[:200], self._means.deployments) from None

    def _check_free(self, model: str) -> None:
        if (running := self._running.get(model)) is not None:
            raise CallerError(
                f"a rollout of {model!r} to {running.target or 'another version'} is "
                f"{running.phase.value}; wait for its end, or hxctl rollback {model}",
                status=409,
                code="rollout_running",
            )

    async def _resolve(self, ask: Ask) -> Source:
        try:
            return await self._means.resolve(ask.model, ask.choice)
        except SourceError as error:
            raise CallerError(str(error), param=error.key, code="cannot_be_served") from None

    def _step(self, rollout: Rollout, step: Step, detail: str = "") -> None:
        phase = rollout.step(step, self._means.clock.wall(), detail)
        self._told(rollout, phase.value, **({"detail": detail} if detail else {}))

    def _told(self, rollout: Rollout, step: str, **detail: Any) -> None:
        self._means.events.record(
            "rollout", rollout.model, step, id=rollout.id, to=rollout.target, **detail
        )

    async def _label(self, source: Source) -> None:
        if source.held is None or source.follows is None:
            return
        try:
            await self._means.label(source, source.follows)
        except (StoreError, HxdError) as error:
            log.error("model=%s label %s not moved: %s", source.name, source.follows, error)

    async def condemn(self, source: Source, why: str, other: Source) -> None:
        """Mark the version that died, where `other` serves in its place. It is not to blame if that
        is of the same version, or by another plugin."""
        if (
            source.held is None
            or source.version == other.version
            or source.plugin.digest != other.plugin.digest
        ):
            return
        try:
            await self._means.condemn(source, why)
            self._means.events.record(
                "store", source.name, "quarantined", version=source.version, reason=why
            )
        except (StoreError, HxdError) as error:
            log.error("model=%s@%d not quarantined: %s", source.name, source.version, error)

    def spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task=%s failed", task.get_name(), exc_info=error)


def _candidate(rollout: Rollout) -> Served:
    assert rollout.candidate is not None
    return rollout.candidate


def _right(found: Mapping[str, Judged]) -> float:
    right = sum(outcome is Judged.RIGHT for outcome in found.values())
    return right / len(found) if found else 1.0

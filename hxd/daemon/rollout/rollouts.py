"""Which release of a model is in service, and who may change it: rollouts are begun, taken back and
resumed here, one at a time per model. The way of each is a `Course`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from hxd.daemon.request.deployment import Deployment, Served
from hxd.daemon.rollout.course import Course, told
from hxd.daemon.rollout.effects import Effects
from hxd.daemon.rollout.grace import Grace
from hxd.daemon.rollout.ledger import Ledger
from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase, Step
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollout import Rollout
from hxd.daemon.rollout.targets import identity, named, no_room, pinned, same
from hxd.daemon.store.sources import Choice, Source, SourceError
from hxd.errors import CallerError, HxdError, ModelNotFound, Unavailable

MOST_ATTEMPTS = 3


class Rollouts:
    def __init__(self, means: Means) -> None:
        self._means = means
        self._running: dict[str, Rollout] = {}
        self._last: dict[str, Rollout] = {}
        self.ledger = Ledger(means.record, means.configured, means.clock)
        # Models that a drill has.
        self.lent: set[str] = set()
        # The daemon ends: what is not done by now is for the next one.
        self.closing = False
        self.effects = Effects(means, self._changed)
        self.grace = Grace(means, self.effects, self.ledger, self)
        # Told what has come into service: `targets.identity`.
        self.arrived: list[Callable[[tuple[str, int, str, str]], None]] = []

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
        return self.grace.left(model)

    def warm_is_before(self, model: str) -> bool:
        """Whether a rollback leads to what is kept; what the last one led away from is kept too."""
        former, deployment = self.ledger.of(model).former, self._means.deployments.get(model)
        if not former or deployment is None or deployment.warm is None:
            return False
        return pinned(former[-1], deployment.warm.source) == former[-1]

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

    async def begin(self, ask: Ask, *, lent: bool = False) -> Rollout:
        """Start a rollout; it goes on by itself. `lent`: the drill that has the model asks for it.
        Raises `HxdError` when it is refused."""
        self._check_open()
        self._check_free(ask.model)
        # A version that fails is taken back by itself, whoever has the model.
        if not lent and not ask.blame:
            self.check_not_lent(ask.model)
        if ask.model in self._means.refused and ask.model not in self._means.deployments:
            return await self._accept(ask)
        deployment = self._deployment(ask.model)
        rollout = Rollout(ask, deployment.current, self._means.clock.wall())
        self._running[ask.model] = rollout
        recorded = False
        try:
            source = await self._resolve(ask)
            rollout.target = named(source)
            if ask.share is not None and same(source, deployment.current.source):
                raise CallerError(
                    f"{rollout.target} is what {ask.model!r} serves already",
                    status=409,
                    code="already_served",
                )
            ask = msgspec.structs.replace(ask, id=rollout.id, began=rollout.began)
            rollout.ask, recorded = ask, True
            await self.ledger.write(ask.model, pending=ask)
            self._check_open()
        except BaseException as error:
            self._running.pop(ask.model, None)
            # Somebody may wait for its end.
            rollout.step(Step.FAILED, self._means.clock.wall(), str(error))
            if recorded:
                await self.ledger.write(ask.model, pending=None)
            raise
        told(self._means.events, rollout, "begins")
        self.effects.spawn(self._live(rollout, source), f"rollout-{ask.model}")
        return rollout

    async def _accept(self, ask: Ask) -> Rollout:
        """What the configuration says can't be served; what is asked for perhaps can."""
        model = ask.model
        source = await self._resolve(ask)
        await self.introduce(model, source)
        self._means.refused.pop(model, None)
        served = self._means.deployments[model].current
        rollout = Rollout(ask, served, self._means.clock.wall(), named(source))
        self._last[model] = rollout
        await self._course(rollout, source).accept(served)
        return rollout

    async def roll_back(self, model: str, why: str, *, blame: bool = False) -> Rollout:
        """Back to what was in service before: at once while that is warm, else by loading it. A
        rollout that runs is taken back. `blame`: what serves now is bad, and is not kept."""
        self._deployment(model)
        if (running := self._running.get(model)) is not None:
            if running.ask.back and running.ask.blame:
                # It does by itself what is asked for.
                return running
            running.abort(why)
            # Who was told so is not to meet it again after a crash.
            await self.ledger.write(model, pending=None)
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
            if pending is None or model in self._running:
                # Clients are let in before: an operator may have begun another one.
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
                await self.effects.label(source)

    async def aclose(self) -> None:
        """The daemon ends; what runs is taken up by the next one, which need not fear it."""
        self.closing = True
        running = list(self._running.values())
        await self.effects.aclose()
        for rollout in running:
            await self.ledger.spare(rollout.model, rollout.id)

    # Parts that other parts of the daemon need

    async def introduce(self, model: str, source: Source) -> None:
        """A model that is new in the configuration, or could not be served so far."""
        means = self._means
        if model in means.deployments:
            raise CallerError(
                f"{model!r} has come into service meanwhile; see hxctl rollouts",
                status=409,
                code="already_served",
            )
        need = source.estimate * source.settings.replicas
        if need > means.room.left:
            raise CallerError(
                no_room(need, means.room.left), param="source", status=409, code="no_room"
            )
        means.deployments[model] = Deployment(model, self.effects.line(model, source))
        means.events.record("model", model, "starts", to=named(source))

    async def remove(self, model: str) -> None:
        """The model leaves the configuration: its workers finish what they have."""
        if (running := self._running.get(model)) is not None:
            with contextlib.suppress(CallerError):  # it is nearly over
                running.abort("the model was taken out of the configuration")
            await running.over.wait()
        deployment = self._means.deployments.pop(model)
        self.grace.end(model)
        for served in list(deployment.releases()):
            self.effects.retire(deployment, served)
        # What is wrong with a model that there is no more need not be told.
        self._last.pop(model, None)
        await self.ledger.write(model, forget=True)

    def let_go(self, model: str) -> None:
        """What is kept warm need not be kept any more."""
        deployment = self._deployment(model)
        if (warm := deployment.warm) is not None:
            self.grace.end(model)
            self.effects.retire(deployment, warm)

    def check_not_lent(self, model: str) -> None:
        """Raises `CallerError` while a drill has the model."""
        if model in self.lent:
            raise CallerError(
                f"a drill of {model!r} is running; it brings back what served before, wait for "
                "its end",
                status=409,
                code="rollout_running",
            )

    def in_use(self) -> list[Source]:
        """What has workers, or may get them back by a rollback."""
        return [served.source for served in self._means.releases]

    # Parts

    async def _live(self, rollout: Rollout, source: Source) -> None:
        try:
            await self._course(rollout, source).run()
        finally:
            self._running.pop(rollout.model, None)
            self._last[rollout.model] = rollout

    def _course(self, rollout: Rollout, source: Source) -> Course:
        return Course(
            rollout, source, self._means, self.effects, self.ledger, self.grace, self._came
        )

    def _came(self, source: Source) -> None:
        for listener in self.arrived:
            listener(identity(source))

    def _changed(self, model: str) -> None:
        running = self._running.get(model)
        if running is not None:
            running.push()

    def _deployment(self, model: str) -> Deployment:
        try:
            return self._means.deployments[model]
        except KeyError:
            raise ModelNotFound(model[:200], self._means.deployments) from None

    def _check_open(self) -> None:
        if self.closing:
            raise Unavailable(
                "the daemon is shutting down; ask the next one", code="draining", retry_after=1.0
            )

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

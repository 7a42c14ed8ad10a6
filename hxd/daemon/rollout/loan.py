"""A model is lent to a drill: nobody else puts a version of it in service meanwhile, and what
served before does so again when it is over, also when the daemon ends in the middle.

What there was is on the disk before anything changes. A daemon that finds it there at its start
begins from that, and not from where the drill was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from hxd.daemon.rollout.means import Means
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.record import Ask, Before, Record
from hxd.daemon.rollout.rollout import Rollout
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.rollout.targets import identity, same
from hxd.daemon.store import quarantine
from hxd.daemon.store.disk import broken
from hxd.daemon.store.library import Library
from hxd.daemon.store.sources import Choice
from hxd.errors import CallerError, HxdError

log = logging.getLogger("hxd.rollout")

LONGEST = 600.0  # seconds for a version to come into service
GOING = 120.0  # seconds for workers that are not wanted any more
TRIES = 3
PAUSE = 1.0
BEGUN = "a drill"
OVER = "the drill is over"


class Loan:
    """`choice` leads to `source`, which is what serves when it is made."""

    def __init__(self, rollouts: Rollouts, means: Means, library: Library, model: str) -> None:
        self.model = model
        self.deployment = means.deployments[model]
        self.source = self.deployment.current.source
        self.choice = rollouts.choice(model)
        self._rollouts = rollouts
        self._means = means
        self._library = library
        self._warm = self.deployment.warm
        self._before: Before | None = None

    def check_free(self) -> None:
        """Raises `CallerError` while a rollout or another drill has the model."""
        if (running := self._rollouts.running(self.model)) is not None:
            raise CallerError(
                f"a rollout of {self.model!r} to {running.target or 'another version'} is "
                f"{running.phase.value}; a drill waits for its end",
                status=409,
                code="drill_refused",
            )
        self._rollouts.check_not_lent(self.model)

    async def begin(self, *, spoils: bool = False) -> None:
        """`spoils`: what serves may end up in quarantine meanwhile. Raises `HxdError`, also where
        it can't be recorded."""
        self.check_free()
        if not self.as_before:
            raise CallerError(
                f"another version of {self.model!r} has come into service meanwhile; try again",
                status=409,
                code="drill_refused",
            )
        self._rollouts.lent.add(self.model)
        try:
            await self._record(spoils)
        except BaseException:
            # Cut short, it may have been recorded all the same.
            await self._rollouts.ledger.give_back(self.model, as_before=False)
            self._rollouts.lent.discard(self.model)
            raise

    async def _record(self, spoils: bool) -> None:
        deployed, source = self._rollouts.ledger.of(self.model), self.source
        before = Before(choice=deployed.choice, former=deployed.former)
        if source.held is not None:
            name, label = str(source.held.name), source.follows or ""
            labels = await asyncio.to_thread(self._library.labels, name)
            before = Before(
                choice=deployed.choice,
                former=deployed.former,
                name=name,
                version=source.version,
                label=label if label in labels else "",
                number=labels.get(label, 0),
                spoils=spoils,
            )
        try:
            await self._rollouts.ledger.lend(self.model, before)
        except OSError as error:
            raise broken("record what serves, so no drill begins", error) from error
        self._before = before

    async def swap(self, choice: Choice, *, mode: str, again: bool) -> Rollout:
        """To another release, or to the same one anew; over when it returns. Raises `HxdError`
        when it is refused."""
        ask = Ask(model=self.model, choice=choice, mode=mode, again=again, why=BEGUN)
        rollout = await self._rollouts.begin(ask, lent=True)
        try:
            async with asyncio.timeout(LONGEST):
                await rollout.over.wait()
        except TimeoutError:
            self._stop(rollout, f"it took more than {LONGEST:g} s")
            await rollout.over.wait()
        return rollout

    async def back(self, *, again: bool = False) -> Rollout:
        """Raises `HxdError` when it is refused."""
        rollout = await self._rollouts.begin(
            Ask(model=self.model, choice=self.choice, back=True, again=again, why=OVER), lent=True
        )
        await rollout.over.wait()
        return rollout

    @property
    def begun(self) -> bool:
        return self._before is not None

    @property
    def last(self) -> Rollout | None:
        """The rollout that runs, or the last one."""
        return self._rollouts.of(self.model)

    async def others(self) -> list[Choice]:
        """Of other versions that could take its place."""
        found = [*self._rollouts.former(self.model), *await self._means.others(self.model)]
        return [choice for choice in found if choice.version not in (None, self.source.version)]

    async def settled(self) -> None:
        """Once no rollout of it runs."""
        while (running := self._rollouts.running(self.model)) is not None:
            await running.over.wait()
            await asyncio.sleep(0)

    async def end(self) -> list[str]:
        """What served before is in service again when it returns; what is wrong otherwise. When the
        daemon ends, that is for the next one to do."""
        if self._before is None or self._rollouts.closing:
            return []
        problems: list[str] = []
        if (running := self._rollouts.running(self.model)) is not None and running.ask.why == BEGUN:
            self._stop(running, OVER)
        for _ in range(TRIES):
            await self.settled()
            if self.as_before:
                break
            try:
                rollout = await self.back()
                if rollout.phase is not Phase.DONE:
                    problems.append(rollout.reason or "the way back was not taken")
            except HxdError as error:
                problems.append(f"{type(error).__name__}: {error}")
                await self._means.clock.sleep(PAUSE)
        done = self.as_before
        if done:
            problems = await self._tidy(self._before)
        else:
            problems.append(f"{self.model!r} does not serve what it served before the drill")
        await self._rollouts.ledger.give_back(self.model, as_before=done)
        self._rollouts.lent.discard(self.model)
        return problems

    @property
    def as_before(self) -> bool:
        """Whether the model serves what it did."""
        current = self._means.deployments.get(self.model)
        return current is self.deployment and same(current.current.source, self.source)

    async def _tidy(self, before: Before) -> list[str]:
        deployment = self.deployment
        key = deployment.warm.source.key if deployment.warm is not None else ""
        if key and self._warm is None:
            self._rollouts.let_go(self.model)
        for listener in self._rollouts.arrived:
            listener(identity(deployment.current.source))
        try:
            await asyncio.to_thread(_relabel, self._library, before)
            if key and self._warm is None:
                async with asyncio.timeout(GOING):
                    while key in self._means.supervisor.replicas:
                        await self._rollouts.effects.turn()
        except HxdError as error:
            return [f"{type(error).__name__}: {error}"]
        except TimeoutError:
            return [f"workers of {key} are still there {GOING:g} s after the drill"]
        return []

    def _stop(self, rollout: Rollout, why: str) -> None:
        try:
            rollout.abort(why)
        except CallerError:
            log.debug("rollout %s is nearly over", rollout.id)


def recover(state: Path, library: Library) -> Iterator[str]:
    """At the start, before anything is looked up: what a drill had when the daemon ended is as it
    was before; says what was done. Blocks."""
    record = Record(state)
    record.load()
    for model, before in record.interrupted.items():
        try:
            if before.spoils:
                lift(library, before.name, before.version)
            _relabel(library, before)
            yield f"{model}: a drill was interrupted; what served before it serves again"
        except HxdError as error:
            yield f"{model}: a drill was interrupted, and not all is as before: {error}"
    if record.interrupted:
        try:
            record.save(record.models)
        except OSError as error:
            # Nobody else goes by it; it is gone when the record is written next.
            yield f"what a drill left behind stays recorded: {broken('write it', error)}"


def lift(library: Library, name: str, number: int) -> str | None:
    """The quarantine of a version, if it is in one; why it was. Raises `Corrupt` while a file is
    not the manifest's. Blocks."""
    if (why := library.version(name, number).quarantined) is not None:
        quarantine.release(library, name, number)
    return why


def _relabel(library: Library, before: Before) -> None:
    if before.label and library.labels(before.name).get(before.label) != before.number:
        library.set_label(before.name, before.label, before.number)

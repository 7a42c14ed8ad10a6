"""What befalls a rollout at its edges: who has asked leaves, the model goes, the way back is
barred, the settings change while a release is kept warm. On a loop whose time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.succession import Succession
from hxd.daemon.rollout.loan import Loan
from hxd.daemon.rollout.phases import Phase
from hxd.daemon.rollout.record import Ask, Record
from hxd.daemon.rollout.rollout import Rollout
from hxd.daemon.store.library import Library
from hxd.daemon.store.sources import Choice, Source, SourceError
from hxd.daemon.supervise.lifecycle import State
from hxd.daemon.supervise.replica import Replica
from hxd.errors import CallerError, Unavailable
from tests.unit.test_rollout_simulated import Fleet
from tests.unit.test_simulated_faults import in_virtual_time

SMALL = "small"
# As found by the record of the first version: by no number.
FIRST = Choice()


class Store(Fleet):
    """A fleet whose versions can't be had while `shut`, nor ever those in `missing`; those in
    `deadly` can't be loaded. `changed` are settings that the configuration has by now."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1, folder, watched=False)
        self.open = asyncio.Event()
        self.open.set()
        self.missing: set[int | None] = set()
        self.deadly: set[int] = set()
        self.changed_settings: dict[str, Any] = {}
        self.condemned: list[int] = []
        self.means = self.rollouts._means

    async def _resolve(self, model: str, choice: Choice) -> Source:
        await self.open.wait()
        if choice.version in self.missing:
            raise SourceError("source", f"there is no version {choice.version}")
        like = self.deployments.get(model) or self.deployments[SMALL]
        source = replace(like.current.source, name=model, version=choice.version or 1)
        return replace(source, settings=replace(source.settings, **self.changed_settings))

    def dooms(self, replica: Replica, state: State) -> bool:
        dies = replica.source.version in self.deadly and state is State.LOADING
        return dies or super().dooms(replica, state)

    async def condemn(self, source: Source, why: str) -> None:
        self.condemned.append(source.version)

    @property
    def small(self) -> Deployment:
        return self.deployments[SMALL]

    async def swap(self, version: int | None, **asked: Any) -> Rollout:
        rollout = await self.rollouts.begin(Ask(model=SMALL, choice=Choice(version), **asked))
        await rollout.over.wait()
        # Who watches over it has begun by now.
        await self.clock.sleep(1.5)
        return rollout

    def asked(self, model: str, version: int) -> asyncio.Task[Rollout]:
        return asyncio.create_task(
            self.rollouts.begin(Ask(model=model, choice=Choice(version))), name="asked"
        )

    def fail(self) -> None:
        """What serves loses its workers, as often as it takes."""
        self.rollouts.effects.deaths[self.small.current.source.key] += 5


def drive(folder: Path, story: Callable[[Store], Awaitable[None]]) -> None:
    async def live() -> None:
        async with Store(folder) as fleet:
            await fleet.clock.sleep(10)
            await story(fleet)
            await fleet.rollouts.aclose()

    in_virtual_time(live)


def recorded(folder: Path) -> Record:
    record = Record(folder)
    record.load()
    return record


def test_a_model_goes_though_a_rollout_of_it_turns_out_to_be_impossible(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        fleet.missing = {7}
        fleet.open.clear()
        asked = fleet.asked(SMALL, 7)
        await fleet.clock.sleep(0.1)
        going = asyncio.create_task(fleet.rollouts.remove(SMALL))
        await fleet.clock.sleep(0.1)
        fleet.open.set()
        with pytest.raises(CallerError, match="no version 7"):
            await asked
        async with asyncio.timeout(100):
            await going
        assert SMALL not in fleet.deployments

    drive(tmp_path, story)


def test_of_a_model_that_is_gone_nothing_is_told_any_more(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        fleet.deadly = {2}
        assert (await fleet.swap(2)).reason is not None
        await fleet.rollouts.remove(SMALL)
        assert not fleet.rollouts.all()

    drive(tmp_path, story)


def test_who_waits_for_a_turn_leaves_nothing_behind(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        for _ in range(20):
            await fleet.rollouts.effects.turn()
        assert not fleet.rollouts.effects._turns

    drive(tmp_path, story)


def test_two_who_ask_at_once_for_a_model_that_was_refused_get_one_between_them(
    tmp_path: Path,
) -> None:
    async def story(fleet: Store) -> None:
        fleet.vocabs["new"] = fleet.vocabs[SMALL]
        fleet.means.refused["new"] = SourceError("source", "it is damaged")
        fleet.open.clear()
        asked = [fleet.asked("new", version) for version in (1, 2)]
        await fleet.clock.sleep(0.1)
        fleet.open.set()
        one, other = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(one, Rollout)
        assert one.phase is Phase.DONE
        assert isinstance(other, CallerError)
        assert other.status == 409
        [key] = [key for key in fleet.supervisor.replicas if key.startswith("new")]
        assert key == fleet.deployments["new"].current.source.key

    drive(tmp_path, story)


def test_who_leaves_while_it_is_written_down_has_asked_for_nothing(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        # Another change is just being written: this one waits for its turn, and then is.
        await fleet.rollouts.ledger._saving.acquire()
        asked = fleet.asked(SMALL, 2)
        await fleet.clock.sleep(0.1)
        asked.cancel()
        await fleet.clock.sleep(0.1)
        fleet.rollouts.ledger._saving.release()
        with pytest.raises(asyncio.CancelledError):
            await asked
        found = recorded(tmp_path).models.get(SMALL)
        assert found is None or found.pending is None
        assert fleet.rollouts.running(SMALL) is None
        assert (await fleet.swap(2)).phase is Phase.DONE

    drive(tmp_path, story)


def test_a_daemon_that_ends_begins_nothing_any_more(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.rollouts.ledger._saving.acquire()
        asked = fleet.asked(SMALL, 2)
        await fleet.clock.sleep(0.1)
        ending = asyncio.create_task(fleet.rollouts.aclose())
        await fleet.clock.sleep(0.1)
        fleet.rollouts.ledger._saving.release()
        await ending
        with pytest.raises(Unavailable, match="shutting down"):
            await asked
        with pytest.raises(Unavailable, match="shutting down"):
            await fleet.asked(SMALL, 2)
        assert [*fleet.supervisor.replicas] == [*fleet.deployments]
        assert recorded(tmp_path).models[SMALL].pending is None

    drive(tmp_path, story)


def test_what_an_operator_has_begun_is_not_taken_for_what_is_to_be_resumed(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        fleet.open.clear()
        asked = fleet.asked(SMALL, 2)
        await fleet.clock.sleep(0.1)
        fleet.open.set()
        rollout = await asked
        await fleet.rollouts.resume()
        pending = recorded(tmp_path).models[SMALL].pending
        assert pending is not None
        assert pending.id == rollout.id
        assert "rolled_back" not in {event.step for event in fleet.events.since()}

    drive(tmp_path, story)


def test_what_can_not_be_gone_back_to_is_kept_no_longer_than_its_time(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        fleet.missing = {None, 1}
        fleet.fail()
        await fleet.clock.sleep(60)
        assert fleet.small.current.source.version == 2
        assert fleet.small.warm is None
        assert not len(fleet.rollouts.grace)
        assert [*fleet.supervisor.replicas].count(fleet.small.current.source.key) == 1
        assert SMALL not in fleet.supervisor.replicas

    drive(tmp_path, story)


@pytest.mark.parametrize("fresh", [True, False])
def test_trouble_in_the_last_moment_of_the_grace_leads_to_a_release_that_is_there(
    tmp_path: Path, fresh: bool
) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        grace = fleet.rollouts.grace
        grace._watches[SMALL].fresh = fresh
        left = grace.left(SMALL)
        assert left is not None
        await fleet.clock.sleep(left - 0.5)
        fleet.fail()
        await fleet.clock.sleep(60)
        served = fleet.small.current.source
        assert served.version == 1
        assert [*fleet.supervisor.replicas].count(served.key) == 1
        assert fleet.supervisor.ready(served.key)
        assert not len(grace)

    drive(tmp_path, story)


def test_a_way_back_that_was_barred_is_tried_again(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        fleet.changed_settings = {"grace": 300.0}
        await fleet.swap(2)
        fleet.missing = {None, 1}
        fleet.fail()
        await fleet.clock.sleep(10)
        assert fleet.small.current.source.version == 2
        fleet.missing = set()
        await fleet.clock.sleep(60)
        assert fleet.small.current.source.version == 1

    drive(tmp_path, story)


@pytest.mark.parametrize("deadly", [set(), {1}])
def test_a_bad_version_is_condemned_once_another_one_serves(
    tmp_path: Path, deadly: set[int]
) -> None:
    async def story(fleet: Store) -> None:
        object.__setattr__(fleet.means, "condemn", fleet.condemn)
        await fleet.swap(2)
        held: Any = "a version of the store"
        fleet.small.current.source = replace(fleet.small.current.source, held=held)
        fleet.deadly = deadly
        for worker in list(fleet.alive()) if deadly else []:
            if worker.replica.source.key == SMALL:
                worker.crash()
        await fleet.clock.sleep(0.1)
        fleet.fail()
        await fleet.clock.sleep(120)
        assert fleet.small.current.source.version == (2 if deadly else 1)
        assert (2 in fleet.condemned) == (not deadly)

    drive(tmp_path, story)


def test_who_waits_for_a_release_that_goes_gets_its_successor_and_then_another_model(
    tmp_path: Path,
) -> None:
    async def story(fleet: Store) -> None:
        big, small = fleet.deployments["big"], fleet.small.current
        chain = [big.current, small]
        others = [
            Succession(chain, fleet.supervisor, fleet.setting.metrics, strict=False)
            for _ in range(2)
        ]
        rollout = await fleet.asked("big", 2)
        await rollout.over.wait()
        for succession in others:
            assert succession.advance(None)
            assert succession.served is big.current
        assert chain == [big.current, small]
        for succession in others:
            assert succession.advance(None)
            assert succession.served is small

    drive(tmp_path, story)


def test_what_comes_back_takes_the_settings_that_hold_by_now(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        current = fleet.small.current
        fleet.changed_settings = {"replicas": 3, "queue": 7}
        settings = replace(current.source.settings, **fleet.changed_settings)
        fleet.rollouts.effects.arrange(current, replace(current.source, settings=settings))
        await fleet.clock.sleep(2)
        rollout = await fleet.rollouts.roll_back(SMALL, "by hand")
        await rollout.over.wait()
        assert rollout.steps[0]["detail"] == "its workers are still there"
        await fleet.clock.sleep(2)
        served = fleet.small.current
        assert served is not current
        assert len(fleet.supervisor.ready(served.source.key)) == 3
        assert served.source.settings.queue == 7

    drive(tmp_path, story)


def test_without_room_for_more_workers_it_comes_back_with_those_it_has(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        fleet.changed_settings = {"replicas": 3}
        fleet.means.room.budget = 0
        source = await fleet._resolve(SMALL, FIRST)
        assert source.estimate == 0
        fleet.small.current.source = replace(fleet.small.current.source, estimate=10)
        rollout = await fleet.rollouts.roll_back(SMALL, "by hand")
        await rollout.over.wait()
        assert rollout.phase is Phase.DONE
        await fleet.clock.sleep(2)
        assert len(fleet.supervisor.replicas[SMALL]) == 2

    drive(tmp_path, story)


def test_golden_prompts_that_can_not_be_read_bar_no_way_back_to_what_is_warm(
    tmp_path: Path,
) -> None:
    async def story(fleet: Store) -> None:
        async def damaged(source: Source) -> None:
            raise CallerError("the golden prompts are damaged")

        await fleet.swap(2)
        object.__setattr__(fleet.means, "golden", damaged)
        rollout = await fleet.rollouts.roll_back(SMALL, "by hand")
        await rollout.over.wait()
        assert rollout.phase is Phase.DONE

    drive(tmp_path, story)


def test_who_asks_for_the_way_back_does_not_stop_one_that_was_taken_by_itself(
    tmp_path: Path,
) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        fleet.open.clear()
        fleet.fail()
        await fleet.clock.sleep(2)
        rollout = await fleet.rollouts.roll_back(SMALL, "by hand")
        assert rollout.ask.blame
        fleet.open.set()
        await rollout.over.wait()
        assert rollout.phase is Phase.DONE
        assert fleet.small.current.source.version == 1

    drive(tmp_path, story)


def test_settings_that_are_bad_for_a_version_do_not_lead_to_another_one(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        await fleet.clock.sleep(60)
        fleet.changed_settings = {"threads": 3}
        await fleet.swap(2, fresh=True)
        assert fleet.small.current.source.settings.threads == 3
        fleet.fail()
        await fleet.clock.sleep(30)
        serves = fleet.small.current.source
        assert (serves.version, serves.settings.threads) == (2, 0)

    drive(tmp_path, story)


def a_loan(fleet: Store, folder: Path) -> Loan:
    return Loan(fleet.rollouts, fleet.means, Library(folder / "store"), SMALL)


def test_a_drill_that_is_cut_short_as_it_begins_has_borrowed_nothing(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        loan = a_loan(fleet, tmp_path)
        await fleet.rollouts.ledger._saving.acquire()
        beginning = asyncio.create_task(loan.begin())
        await fleet.clock.sleep(0.1)
        beginning.cancel()
        await fleet.clock.sleep(0.1)
        fleet.rollouts.ledger._saving.release()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        assert await loan.end() == []
        await fleet.swap(2)
        # What the next daemon begins from.
        record = recorded(tmp_path)
        assert not record.interrupted
        assert record.models[SMALL].former

    drive(tmp_path, story)


def test_a_drill_does_not_bring_back_what_went_before_it_began(tmp_path: Path) -> None:
    async def story(fleet: Store) -> None:
        await fleet.swap(2)
        loan = a_loan(fleet, tmp_path)
        rollout = await fleet.rollouts.roll_back(SMALL, "by hand")
        await rollout.over.wait()
        with pytest.raises(CallerError, match="come into service meanwhile"):
            await loan.begin()
        assert await loan.end() == []
        assert fleet.small.current.source.version == 1
        assert SMALL not in fleet.rollouts.lent

    drive(tmp_path, story)

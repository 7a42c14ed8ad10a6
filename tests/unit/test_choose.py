"""Which replica takes the next sequence, with replicas that only count."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxd.daemon.request.choose import (
    KEPT_FOR,
    POLICIES,
    Candidate,
    InTurn,
    LeastBusy,
    Policy,
    make,
)

SPREADING = sorted(set(POLICIES) - {"pack"})


def replica(
    id: str, busy: int = 0, *, slots: int = 4, weight: float = 1.0, score: float = 1.0
) -> Candidate:
    return Candidate(id, busy, slots - busy, weight, score)


def replicas(count: int, slots: int = 4) -> list[Candidate]:
    return [replica(f"m-{n + 1}", slots=slots) for n in range(count)]


def policy(name: str) -> Policy:
    return make(name, random.Random(7))


def idle(policy: Policy, among: list[Candidate], choices: int = 3000) -> Counter[str]:
    """How often each is chosen when a sequence ends before the next one comes."""
    taken: Counter[str] = Counter()
    for _ in range(choices):
        chosen = policy.choose(among)
        assert chosen is not None
        taken[chosen.id] += 1
    return taken


def loaded(
    policy: Policy, among: list[Candidate], running: int, choices: int = 3000, omit: bool = False
) -> Counter[str]:
    """How often each is chosen when `running` sequences of random length run at any time.

    With `omit`, a replica without room isn't offered.
    """
    rng = random.Random(3)
    taken: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    ends: list[tuple[float, str]] = []
    now = 0.0
    for _ in range(choices):
        while len(ends) >= running:
            ends.remove(first := min(ends))
            busy[first[1]] -= 1
            now = first[0]
        offered = [
            replica(one.id, busy[one.id], slots=one.room, weight=one.weight)
            for one in among
            if not omit or busy[one.id] < one.room
        ]
        chosen = policy.choose(offered)
        assert chosen is not None
        assert chosen.room > 0
        taken[chosen.id] += 1
        busy[chosen.id] += 1
        ends.append((now + rng.uniform(0, 2), chosen.id))
    return taken


def assert_even(taken: Counter[str], count: int) -> None:
    assert len(taken) == count
    assert max(taken.values()) <= 1.2 * min(taken.values()), taken


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", SPREADING)
def test_equal_replicas_share_evenly_when_idle(name: str, count: int) -> None:
    assert_even(idle(policy(name), replicas(count)), count)


@pytest.mark.parametrize(
    ("per_replica", "omit"), [(0.6, False), (2, False), (3.5, False), (3.5, True)]
)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", SPREADING)
def test_equal_replicas_share_evenly_under_load(
    name: str, count: int, per_replica: float, omit: bool
) -> None:
    running = round(count * per_replica)
    assert_even(loaded(policy(name), replicas(count), running, omit=omit), count)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("running", [0, 1, 2, 4, 30])
@pytest.mark.parametrize("name", SPREADING)
def test_a_replica_of_a_tenth_weight_takes_a_tenth_of_a_full_ones_traffic(
    name: str, running: int, count: int
) -> None:
    among = replicas(count, slots=40)
    among[0] = replace(among[0], weight=0.1)
    taken = loaded(policy(name), among, running) if running else idle(policy(name), among)
    light = taken.pop("m-1")
    assert 0.05 <= light / (taken.total() / (count - 1)) <= 0.2, (light, taken)


@pytest.mark.parametrize("weight", [0.4, 0.7])
@pytest.mark.parametrize("name", sorted(set(SPREADING) - {"fastest"}))
def test_other_weights_are_honoured_as_well(name: str, weight: float) -> None:
    among = [replica("a", slots=40), replica("b", slots=40, weight=weight)]
    for taken in (idle(policy(name), among), loaded(policy(name), among, 20)):
        assert taken["b"] / taken["a"] == pytest.approx(weight, rel=0.15)


def test_the_operators_share_counts_for_weighted_and_no_other() -> None:
    among = [replace(replica("a"), share=3.0), replica("b"), replace(replica("c"), share=0.0)]
    assert idle(policy("weighted"), among) == {"a": 2250, "b": 750}
    for name in set(SPREADING) - {"weighted"}:
        assert_even(idle(policy(name), among), 3)


def test_a_share_of_zero_makes_no_sequence_wait() -> None:
    among = [replace(one, share=0.0) for one in replicas(2)]
    assert_even(idle(policy("weighted"), among), 2)


def test_the_health_score_counts_for_health_weighted_and_no_other() -> None:
    among = [replica("a", score=0.9), replica("b", score=0.3)]
    assert idle(policy("health_weighted"), among) == {"a": 2250, "b": 750}
    for name in set(SPREADING) - {"health_weighted"}:
        assert_even(idle(policy(name), among), 2)


def test_weighted_turns_are_mixed_and_not_in_runs() -> None:
    in_turn = policy("weighted")
    among = [replace(replica(id), share=share) for id, share in (("a", 5.0), ("b", 1), ("c", 1))]
    chosen = [in_turn.choose(among) for _ in range(7)]
    # The example of nginx's own commit.
    assert "".join(one.id for one in chosen if one) == "aabacaa"


def test_least_busy_is_the_least_busy() -> None:
    among = [replica("a", 2), replica("b", 1), replica("c", 3)]
    least = policy("least_busy")
    assert {one.id for _ in range(50) if (one := least.choose(among))} == {"b"}


def test_least_busy_takes_equal_idle_replicas_in_turn() -> None:
    least = policy("least_busy")
    chosen = [least.choose(replicas(3)) for _ in range(6)]
    assert [one.id for one in chosen if one] == ["m-1", "m-2", "m-3"] * 2


def test_least_busy_prefers_no_replica_for_what_it_missed_while_slow() -> None:
    least, rng = policy("least_busy"), random.Random(3)
    speeds = {"slow": 0.02, "normal": 0.2, "quick": 0.9}
    busy: Counter[str] = Counter()
    for _ in range(2000):
        chosen = least.choose([replica(id, busy[id], slots=40) for id in speeds])
        assert chosen is not None
        assert chosen.busy == min(busy[id] for id in speeds)
        busy[chosen.id] += 1
        busy.subtract(id for id in speeds if busy[id] and rng.random() < speeds[id])
    taken = idle(least, [replica(id) for id in speeds], 300)
    assert taken["slow"] <= 102


def test_fastest_takes_the_quicker_of_two() -> None:
    among = [replace(replica("slow"), latency=0.2), replace(replica("quick"), latency=0.1)]
    assert idle(policy("fastest"), among) == {"quick": 3000}
    among[1] = replace(among[1], busy=2)
    assert idle(policy("fastest"), among) == {"slow": 3000}


def test_fastest_gives_the_slowest_of_three_nothing_and_the_next_a_third() -> None:
    among = [replace(one, latency=0.1 * n) for n, one in enumerate(replicas(3), 1)]
    taken = idle(policy("fastest"), among)
    assert taken["m-3"] == 0
    assert taken["m-2"] == pytest.approx(1000, rel=0.1)


def test_fastest_tries_one_that_it_knows_nothing_of() -> None:
    among = [replace(replica("known"), latency=0.1), replica("new")]
    assert_even(idle(policy("fastest"), among), 2)
    among.append(replace(replica("slow"), latency=0.5))
    assert idle(policy("fastest"), among)["new"] > 1000


def test_pack_fills_one_before_it_opens_the_next_and_returns_to_it() -> None:
    pack = policy("pack")
    busy: Counter[str] = Counter()

    def take() -> str:
        chosen = pack.choose([replica(id, busy[id], slots=3) for id in ("a", "b", "c")])
        assert chosen is not None
        busy[chosen.id] += 1
        return chosen.id

    assert [take() for _ in range(7)] == ["a", "a", "a", "b", "b", "b", "c"]
    busy["b"] -= 1
    assert [take() for _ in range(2)] == ["b", "c"]
    busy["a"] -= 2
    busy["c"] -= 1
    assert [take() for _ in range(4)] == ["a", "a", "c", "c"]


def test_pack_keeps_to_one_as_long_as_it_has_room() -> None:
    assert idle(policy("pack"), replicas(3)) == {"m-1": 3000}


def test_pack_uses_a_light_replica_last_and_first_only_its_part_of_the_slots() -> None:
    pack = policy("pack")
    weights = {"tenth": 0.1, "most": 0.7, "full": 1.0}
    busy: Counter[str] = Counter()
    order = []
    for _ in range(30):
        among = [replica(id, busy[id], slots=10, weight=weights[id]) for id in weights]
        chosen = pack.choose(among)
        assert chosen is not None
        busy[chosen.id] += 1
        order.append(chosen.id)
    expected = [("full", 10), ("most", 7), ("tenth", 1), ("most", 3), ("tenth", 9)]
    assert order == [id for id, count in expected for _ in range(count)]


def test_a_part_of_the_slots_that_floats_round_opens_no_other_slot() -> None:
    light = replica("light", 7, slots=100, weight=0.07)
    tenth = replica("lighter", 0, slots=100, weight=0.05)
    assert policy("pack").choose([light, tenth]) is tenth


@pytest.mark.parametrize("name", POLICIES)
def test_a_replica_of_no_weight_is_the_last_resort(name: str) -> None:
    one = policy(name)
    avoided, light = replica("avoided", weight=0.0), replica("light", 3, weight=0.01)
    for _ in range(300):
        assert one.choose([avoided, light]) is light
    assert one.choose([avoided, replica("light", 4, weight=0.01)]) is avoided
    assert one.choose([avoided]) is avoided


@pytest.mark.parametrize("name", SPREADING)
def test_where_all_have_no_weight_they_share_evenly(name: str) -> None:
    assert_even(idle(policy(name), [replace(one, weight=0.0) for one in replicas(3)]), 3)


@pytest.mark.parametrize("name", SPREADING)
def test_a_replica_that_comes_back_is_not_flooded(name: str) -> None:
    one = policy(name)
    among = replicas(3)
    idle(one, among[:2], 900)
    taken = idle(one, among, 60)
    assert taken["m-3"] <= 35


@pytest.mark.parametrize("one", [LeastBusy(), InTurn(lambda one: one.weight)])
def test_replicas_that_are_gone_are_forgotten(one: LeastBusy | InTurn) -> None:
    for n in range(3 * KEPT_FOR):
        one.choose([replica(f"m-{n}"), replica("stays")])
    assert len(one._owed) <= 2 * KEPT_FOR + 2


def test_a_replica_left_out_for_a_while_is_remembered() -> None:
    turns = InTurn(lambda one: one.weight)
    a, b = replicas(2)
    turns.choose([a, b])
    for _ in range(KEPT_FOR - 1):
        turns.choose([replica("c")])
    assert turns.choose([a, b]) is b


def candidates() -> st.SearchStrategy[list[Candidate]]:
    part = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 1.0])
    one = st.builds(
        Candidate,
        id=st.sampled_from("abcdef"),
        busy=st.integers(0, 8),
        room=st.integers(0, 3),
        weight=part,
        score=part,
        share=st.floats(0, 100),
        latency=st.none() | st.floats(0, 10),
    )
    return st.lists(one, max_size=6, unique_by=lambda candidate: candidate.id)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40)
@given(offers=st.lists(candidates(), max_size=6))
def test_one_with_room_is_chosen_whenever_there_is_one(
    name: str, offers: list[list[Candidate]]
) -> None:
    one = policy(name)
    for offer in offers:
        chosen = one.choose(offer)
        assert (chosen is None) == all(candidate.room == 0 for candidate in offer)
        if chosen is not None:
            assert chosen in offer
            assert chosen.room > 0
            weighty = any(other.weight > 0 and other.room > 0 for other in offer)
            assert (chosen.weight > 0) == weighty

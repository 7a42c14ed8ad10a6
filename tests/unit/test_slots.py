"""Slots, cells and the prefix cache, against a memory that remembers what is written where."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.llama_cpp.batch import divide
from plugins.llama_cpp.cells import Cells
from plugins.llama_cpp.slots import Slot, Slots


class Recorder:
    """What the library would hold: tokens by place; `copied` counts tokens shared."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.copied = 0

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        assert len(self.held[source]) >= end
        held = self.held.setdefault(target, [])
        assert len(held) == start
        held.extend(self.held[source][start:end])
        self.copied += end - start

    def forget(self, place: int, start: int) -> None:
        del self.held.setdefault(place, [])[start:]

    def write(self, place: int, start: int, tokens: list[int]) -> None:
        held = self.held.setdefault(place, [])
        assert len(held) == start
        held.extend(tokens)


class Box:
    """Steps the slots as the backend does; the 'model' answers with 1000, 1001, …"""

    def __init__(
        self,
        *,
        limit: int = 4,
        cells: int = 400,
        entries: int = 8,
        batch: int = 64,
        unified: bool = True,
    ):
        self.memory = Recorder()
        self.slots = Slots(self.memory, limit=limit, cells=cells, entries=entries, unified=unified)
        self.batch = batch
        self.said: dict[int, int] = {}
        self.read = 0

    def add(self, id: int, tokens: list[int], *, cache: str = "", share: bool = True) -> Slot:
        self.said[id] = 0
        return self.slots.add(id, list(tokens), cache=cache, share=share)

    def step(self) -> list[int]:
        """Ids that drew a token."""
        chunks = self.slots.plan(lambda decoding, waiting: self.batch, self.batch)
        assert bool(chunks) == bool(self.slots.running)
        assert sum(chunk.count for chunk in chunks) <= self.batch
        spoke = []
        for chunk in chunks:
            slot = chunk.slot
            tokens = slot.tokens[chunk.start : chunk.start + chunk.count]
            self.memory.write(chunk.place, chunk.start, tokens)
            self.read += chunk.count
            self.slots.read(chunk)
            if chunk.complete:
                slot.tokens.append(1000 + self.said[slot.id])
                self.said[slot.id] += 1
                spoke.append(slot.id)
        for slot in self.slots.running.values():
            if slot.place is not None:
                assert self.memory.held.get(slot.place, []) == slot.tokens[: slot.fed]
        assert 0 <= self.slots.cells.used <= self.slots.cells.total
        return spoke

    def finish(self, id: int, tokens: int = 1) -> None:
        for _ in range(1000):
            if self.said[id] >= tokens:
                self.slots.remove(id)
                return
            self.step()
        pytest.fail(f"the sequence {id} never got {tokens} tokens")


PREFIX = list(range(100))


BOTH = pytest.mark.parametrize("unified", [True, False])


@BOTH
def test_a_prompt_that_was_read_before_is_not_read_again(unified: bool) -> None:
    box = Box(unified=unified)
    box.add(1, PREFIX)
    box.finish(1)
    slot = box.add(2, PREFIX)
    box.finish(2)
    # The last token is always read: its logits are wanted.
    assert slot.cached == len(PREFIX) - 1
    assert box.read == len(PREFIX) + 1


@BOTH
def test_only_the_common_beginning_is_shared(unified: bool) -> None:
    box = Box(unified=unified)
    box.add(1, PREFIX)
    box.finish(1)
    slot = box.add(2, [*PREFIX[:40], 7, 7, 7])
    box.finish(2)
    assert slot.cached == 40


@BOTH
def test_prompts_that_come_together_read_their_common_beginning_once(unified: bool) -> None:
    box = Box(cells=1000, unified=unified)
    for id in range(4):
        box.add(id, [*PREFIX, id, id])
    for id in range(4):
        box.finish(id)
    assert box.read <= len(PREFIX) + 4 * 3


@BOTH
def test_a_conversation_goes_on_where_its_answer_ended(unified: bool) -> None:
    box = Box(unified=unified)
    box.add(1, PREFIX)
    box.finish(1, tokens=20)
    slot = box.add(2, [*PREFIX, *range(1000, 1019), 5, 5])
    box.finish(2)
    assert slot.cached == len(PREFIX) + 19


@BOTH
def test_caches_of_other_names_are_never_used(unified: bool) -> None:
    box = Box(unified=unified)
    box.add(1, PREFIX, cache="a")
    box.finish(1)
    other = box.add(2, PREFIX, cache="b")
    together = box.add(3, PREFIX, cache="c")
    box.finish(2)
    box.finish(3)
    assert other.cached == together.cached == 0


def test_a_sequence_that_does_not_share_leaves_nothing_behind() -> None:
    box = Box()
    box.add(1, PREFIX, share=False)
    box.finish(1)
    assert box.slots.cells.used == 0
    assert len(box.slots.cache) == 0


def test_the_least_recently_used_prompt_goes_first() -> None:
    box = Box(entries=2, cells=1000)
    prompts = [[first, *PREFIX] for first in (1, 2, 3)]
    for id in (0, 1):
        box.add(id, prompts[id])
        box.finish(id)
    used_again = box.add(2, prompts[0])
    box.finish(2)
    box.add(3, prompts[2])
    box.finish(3)
    kept, lost = box.add(4, prompts[0]), box.add(5, prompts[1])
    box.finish(4)
    box.finish(5)
    assert used_again.cached == kept.cached == len(PREFIX)
    assert lost.cached == 0


def test_cached_prompts_make_room_for_running_sequences() -> None:
    box = Box(cells=150)
    box.add(1, PREFIX)
    box.finish(1)
    box.add(2, [9] * 140)
    box.finish(2)
    assert box.slots.pauses == 0
    assert box.slots.cache.evictions == 1


def test_the_youngest_is_paused_when_cells_run_out_and_goes_on_later() -> None:
    box = Box(cells=120)
    box.add(1, PREFIX[:50])
    box.add(2, [7] * 50)
    while box.slots.pauses == 0:
        box.step()
    young = box.slots.running[2]
    assert young.place is None
    said = box.said[2]
    box.finish(1, tokens=60)
    box.finish(2, tokens=said + 5)
    assert young.tokens[50:] == list(range(1000, 1000 + said + 5))


def test_a_follower_whose_leader_leaves_reads_for_itself() -> None:
    box = Box(cells=1000, batch=16)
    box.add(1, PREFIX)
    follower = box.add(2, [*PREFIX, 3])
    box.step()
    box.step()
    assert follower.fed == 0
    box.slots.remove(1)
    box.finish(2)
    assert follower.cached == 32


def test_a_split_cache_keeps_running_places_side_by_side() -> None:
    box = Box(unified=False, cells=8 * 200, limit=4, entries=2)
    for id in range(3):
        box.add(id, [id] * 30)
    box.step()
    box.slots.remove(1)
    box.add(4, [4] * 30)
    box.step()
    assert {slot.place for slot in box.slots.running.values()} == {0, 1, 2}


def test_wrong_guesses_are_forgotten() -> None:
    box = Box()
    slot = box.add(1, PREFIX)
    box.step()
    box.step()
    slot.guess = [1, 2, 3]
    (chunk,) = box.slots.plan(lambda decoding, waiting: 0, box.batch)
    assert chunk.count == 4
    box.memory.write(chunk.place, chunk.start, [slot.tokens[-1], 1, 2, 3])
    box.slots.read(chunk)
    slot.tokens.append(1)
    slot.tokens.append(55)
    box.slots.cut(slot, len(slot.tokens) - 1)
    assert box.memory.held[chunk.place] == slot.tokens[:-1]
    assert box.slots.cells.used == len(slot.tokens) - 1


@settings(max_examples=60)
@given(
    st.integers(0, 1 << 30),
    st.integers(60, 300),
    st.integers(0, 6),
    st.integers(8, 64),
    st.booleans(),
)
def test_whatever_comes_every_sequence_gets_its_tokens_from_its_own_text(
    seed: int, cells: int, entries: int, batch: int, unified: bool
) -> None:
    dice = random.Random(seed)
    cells = cells if unified else 60 * (3 + entries)
    box = Box(limit=3, cells=cells, entries=entries, batch=batch, unified=unified)
    wanted: dict[int, int] = {}
    coming = iter(range(12))
    for _ in range(3000):
        if len(wanted) < 3 and (id := next(coming, None)) is not None:
            prompt = [dice.randrange(3)] * dice.randrange(1, 20) + PREFIX[: dice.randrange(20)]
            box.add(id, prompt, cache=dice.choice("ab"), share=dice.random() < 0.9)
            wanted[id] = dice.randrange(1, 15)
        if not wanted:
            break
        box.step()
        for id in [id for id in wanted if box.said[id] >= wanted[id] or dice.random() < 0.01]:
            box.slots.remove(id)
            del wanted[id]
    assert not wanted
    held = {tuple(box.memory.held[entry.place]) for entry in box.slots.cache}
    assert held == {tuple(entry.tokens.tolist()) for entry in box.slots.cache}


def waiting(*lengths: int) -> list[Slot]:
    slots = Slots(Recorder(), limit=8, cells=10_000, entries=0)
    return [slots.add(id, [0] * length, cache="", share=False) for id, length in enumerate(lengths)]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    shares = {slot.id: count for slot, count in divide(waiting(4000, 30), 64, turn=1)}
    assert shares == {0: 34, 1: 30}


def test_the_oldest_prompt_has_its_turn() -> None:
    turns = [divide(waiting(4000, 100, 100), 64, turn=turn)[0][0].id for turn in range(8)]
    assert turns.count(0) == 2


@given(
    st.lists(st.integers(2, 500), min_size=1, max_size=8), st.integers(1, 128), st.integers(0, 9)
)
def test_the_whole_budget_is_used_and_not_more(lengths: list[int], budget: int, turn: int) -> None:
    given = divide(waiting(*lengths), budget, turn)
    assert sum(count for _, count in given) == min(budget, sum(lengths))
    assert all(0 < count <= slot.pending for slot, count in given)


def test_cells_that_two_places_share_are_free_when_both_have_let_go() -> None:
    cells = Cells(10)
    cells.grow(0, 6)
    cells.share(0, 1, 4)
    cells.grow(1, 2)
    assert cells.used == 8
    cells.cut(0, 0)
    assert cells.used == 6
    cells.cut(1, 1)
    assert cells.used == 1
    cells.cut(1, 0)
    assert cells.free == 10

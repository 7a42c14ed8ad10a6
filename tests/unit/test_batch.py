from hypothesis import given
from hypothesis import strategies as st

from plugins.llama_cpp.batch import Slot, plan


@st.composite
def slots(draw: st.DrawFn) -> list[Slot]:
    made = []
    for id in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 60))
        made.append(Slot(id, id, list(range(length)), draw(st.integers(0, length - 1))))
    return made


@given(slots(), st.integers(8, 40))
def test_a_batch_keeps_to_its_budget_and_never_stalls_a_running_sequence(
    running: list[Slot], budget: int
) -> None:
    chunks = plan(running, budget)
    assert sum(chunk.count for chunk in chunks) <= budget
    assert all(chunk.start == chunk.slot.fed and chunk.count > 0 for chunk in chunks)
    talking = {slot.id for slot in running if slot.pending == 1}
    assert talking <= {chunk.slot.id for chunk in chunks}


@given(slots(), st.integers(8, 40))
def test_every_prompt_is_read_whole_in_order_and_once(running: list[Slot], budget: int) -> None:
    read: dict[int, list[int]] = {slot.id: slot.tokens[: slot.fed] for slot in running}
    completed = []
    while any(slot.pending for slot in running):
        for chunk in plan(running, budget):
            read[chunk.slot.id] += chunk.slot.tokens[chunk.start : chunk.start + chunk.count]
            chunk.slot.fed += chunk.count
            if chunk.complete:
                completed.append(chunk.slot.id)
    assert read == {slot.id: slot.tokens for slot in running}
    assert sorted(completed) == [slot.id for slot in running]

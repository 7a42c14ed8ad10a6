"""How many prompt tokens a step may carry, on a machine whose steps take what the test says."""

import pytest

from plugins.llama_cpp.pace import LEAST, LONGEST, STRETCH, Pace

# Seconds of a step: what reading the weights takes at least, and each token.
WEIGHTS, TOKEN = 0.040, 0.018


def seconds(decoding: int, reading: int) -> float:
    return max(WEIGHTS, (decoding + reading) * TOKEN)


def learned(*running: int) -> Pace:
    """After some steps with so many running sequences, and some prompts."""
    pace = Pace(512)
    for _ in range(30):
        for decoding in running:
            pace.observe(decoding, 0, 0, seconds(decoding, 0))
        pace.observe(0, 64, 0, seconds(0, 64))
    return pace


@pytest.mark.parametrize("decoding", [1, 4, 7, 16])
def test_a_long_prompt_keeps_the_others_waiting_for_less_than_four_steps(decoding: int) -> None:
    pace = learned(decoding, decoding + 1)
    step = seconds(decoding + 1, 0)
    for _ in range(50):
        chunk = pace.budget(decoding, 1)
        took = seconds(decoding, chunk)
        assert took < 4 * step
        pace.observe(decoding, chunk, 0, took)
    assert took > 0.5 * STRETCH * step


def test_where_nobody_runs_a_step_is_as_long_as_a_cancel_may_wait() -> None:
    pace = learned()
    assert seconds(0, pace.budget(0, 1)) == pytest.approx(LONGEST, rel=0.1)


def test_the_chunk_shrinks_as_tokens_grow_dearer() -> None:
    pace = learned(4, 5)
    before = pace.budget(4, 1)
    for _ in range(30):
        pace.observe(4, before, 0, 3 * seconds(4, before))
    assert pace.budget(4, 1) < before / 2


def test_there_is_always_some_progress() -> None:
    pace = learned(1)
    for _ in range(50):
        pace.observe(1, LEAST, 0, 10.0)
    assert pace.budget(1, 1) == LEAST


def test_guesses_do_not_make_prompts_look_dear() -> None:
    pace = learned(1, 2)
    before = pace.budget(1, 1)
    for _ in range(30):
        pace.observe(1, 0, 4, 1.0)
    assert pace.budget(1, 1) == before
    assert pace.guess == pytest.approx((1.0 - WEIGHTS) / 4, rel=0.05)

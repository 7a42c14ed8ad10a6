from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.hookspecs import RequestRefused
from hxd.wire import Sampling
from plugins.llama_cpp.sampling import Candidates, Sampler, uniform

SIZE = 50
END = 3


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32) * 3


def draws(
    count: int, *, seed: int = 1, prompt: list[int] | None = None, **settings: Any
) -> list[int]:
    """Tokens drawn one after another, each from logits of its own position."""
    return resumed(count, [], seed=seed, prompt=prompt, **settings)


def resumed(
    count: int,
    produced: list[int],
    *,
    seed: int = 1,
    prompt: list[int] | None = None,
    **settings: Any,
) -> list[int]:
    sampling = Sampling(**settings)
    sampler = Sampler(Candidates(SIZE), sampling, seed, [END], prompt or [], produced, 512)
    try:
        return [sampler.draw(logits(at)) for at in range(len(produced), count)]
    finally:
        sampler.close()


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 20))
def test_the_draw_is_a_number_below_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_the_draws_of_one_seed_and_of_neighbouring_seeds_are_spread_evenly() -> None:
    for values in (
        [uniform(7, position) for position in range(10_000)],
        [uniform(seed, 0) for seed in range(10_000)],
    ):
        tenths = Counter(int(value * 10) for value in values)
        assert set(tenths) == set(range(10))
        # Six standard deviations of a binomial count.
        assert max(abs(count - 1000) for count in tenths.values()) < 180


def test_frequencies_follow_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2] + [1e-9] * (SIZE - 3), dtype=np.float32))
    sampler = Sampler(Candidates(SIZE), Sampling(), 11, [END], [], [], 512)
    counts = Counter(sampler.draw(row) for _ in range(20_000))
    sampler.close()
    for token, share in ((0, 0.5), (1, 0.3), (2, 0.2)):
        assert abs(counts[token] / 20_000 - share) < 0.02


SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 10},
    {"top_p": 0.8, "min_p": 0.05},
    {"repeat_penalty": 1.5, "temperature": 0.0},
    {"presence_penalty": 1.5, "frequency_penalty": 1.0, "temperature": 0.6},
    {"logit_bias": {4: 5.0, 5: -5.0}, "top_k": 20},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_another_worker_continues_with_the_same_tokens(settings: dict[str, Any]) -> None:
    whole = draws(40, prompt=[1, 2, 3], **settings)
    assert len(set(whole)) > 3
    for cut in (1, 13, 39):
        rest = resumed(40, whole[:cut], prompt=[1, 2, 3], **settings)
        assert whole[:cut] + rest == whole


def test_a_seed_decides_the_draws() -> None:
    assert draws(40, seed=1) == draws(40, seed=1)
    assert draws(40, seed=1) != draws(40, seed=2)


def test_greedy_takes_the_most_likely_token() -> None:
    assert draws(10, temperature=0.0) == [int(logits(at).argmax()) for at in range(10)]


def test_top_k_one_is_greedy_at_any_temperature() -> None:
    assert draws(10, top_k=1, temperature=2.0) == draws(10, temperature=0.0)


def test_a_strong_bias_forces_and_forbids_tokens() -> None:
    assert set(draws(20, logit_bias={9: 100.0})) == {9}
    assert 9 not in draws(200, logit_bias={9: -100.0})


def test_ending_tokens_are_never_drawn_when_told_to_ignore_them() -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[END] = 50
    candidates = Candidates(SIZE)
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, ignore_eos=True)
        sampler = Sampler(candidates, sampling, 1, [END], [], [], 512)
        assert END not in {sampler.draw(row) for _ in range(100)}
        sampler.close()


def test_a_frequency_penalty_counts_the_answer_only_and_a_repeat_penalty_the_prompt_too() -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[7], row[8] = 5.0, 4.9

    def first(**settings: Any) -> int:
        sampler = Sampler(
            Candidates(SIZE), Sampling(temperature=0.0, **settings), 1, [END], [7, 7], [], 512
        )
        try:
            return sampler.draw(row)
        finally:
            sampler.close()

    assert first(frequency_penalty=2.0) == 7
    assert first(repeat_penalty=1.5) == 8


def test_a_bias_for_a_token_that_does_not_exist_is_the_callers_fault() -> None:
    with pytest.raises(RequestRefused, match="not in the vocabulary of 50"):
        draws(1, logit_bias={SIZE: 1.0})

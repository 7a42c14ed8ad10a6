from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hxd.hookspecs import RequestRefused
from hxd.kit.draw import Logits, Sampler, Tally, _invert, log_probabilities, uniform
from hxd.wire import Sampling

SIZE = 50
END = 3
WIDE = 5_000  # more than the parts of a vocabulary that the nucleus looks at first


def logits(seed: int = 0, size: int = SIZE) -> Logits:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32) * 3


def sampler(
    *,
    seed: int = 1,
    size: int = SIZE,
    prompt: list[int] | None = None,
    produced: list[int] | None = None,
    **settings: Any,
) -> Sampler:
    return Sampler(
        Sampling(**settings),
        seed,
        size=size,
        ending=[END],
        prompt=prompt or [],
        produced=produced or [],
    )


def draws(count: int, *, produced: list[int] | None = None, **settings: Any) -> list[int]:
    """The tokens up to position `count`, each drawn from logits of its own position."""
    drawing = sampler(produced=produced, **settings)
    return [drawing.draw(logits(at)) for at in range(len(produced or []), count)]


def only(*tokens: int, size: int = SIZE) -> NDArray[np.bool_]:
    allowed = np.zeros(size, dtype=bool)
    allowed[list(tokens)] = True
    return allowed


def reference(row: Logits, mark: float, **settings: Any) -> int:
    """The token at `mark`, by the definitions and in plain Python: filters one after another, then
    the inverse of the cumulative distribution in the order of ids."""
    kept = {token: float(value) for token, value in enumerate(row)}
    top_k, top_p, min_p = (settings.get(name, off) for name, off in REFERENCE_OFF)
    best = max(kept.values())
    if top_k:
        likely = sorted(kept, key=lambda token: -kept[token])[:top_k]
        kept = {token: kept[token] for token in sorted(likely)}
    if top_p < 1:
        share, total = 0.0, sum(math.exp(value - best) for value in kept.values())
        for token in sorted(kept, key=lambda token: -kept[token]):
            least = kept[token]
            share += math.exp(least - best) / total
            if share >= top_p:
                break
        kept = {token: value for token, value in kept.items() if value >= least}
    kept = {token: value for token, value in kept.items() if math.exp(value - best) >= min_p}
    cold = settings.get("temperature", 1.0)
    weights = [math.exp((value - best) / cold) for value in kept.values()]
    wanted = mark * sum(weights)
    for token, sum_so_far in zip(kept, itertools.accumulate(weights), strict=True):
        if sum_so_far > wanted:
            return token
    return token


REFERENCE_OFF = (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))


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
    drawing = sampler(seed=11)
    counts = Counter(drawing.draw(row) for _ in range(20_000))
    for token, share in ((0, 0.5), (1, 0.3), (2, 0.2)):
        assert abs(counts[token] / 20_000 - share) < 0.02


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.0},
    {"top_k": 7},
    {"top_k": SIZE - 1},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.02, "temperature": 1.3},
]


@pytest.mark.parametrize("size", [SIZE, 300, WIDE])
@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_a_draw_is_the_token_that_the_definitions_give(settings: dict[str, Any], size: int) -> None:
    for seed in range(10):
        row = logits(seed, size)
        expected = reference(row, uniform(seed, 0), **settings)
        assert sampler(seed=seed, size=size, **settings).draw(row) == expected


def test_a_nucleus_wider_than_its_first_guess_is_found() -> None:
    # All are equally likely, so that 90 % need 90 % of the tokens, and ties let in the rest.
    row = np.zeros(WIDE, dtype=np.float32)
    drawing = sampler(size=WIDE, top_p=0.9)
    assert len({drawing.draw(row) for _ in range(2_000)}) > 1_500


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 10},
    {"top_p": 0.8, "min_p": 0.05},
    {"repeat_penalty": 1.5, "temperature": 0.0},
    {"presence_penalty": 1.5, "frequency_penalty": 1.0, "temperature": 0.6},
    {"logit_bias": {4: 5.0, 5: -5.0}, "top_k": 20},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_another_worker_continues_with_the_same_tokens(settings: dict[str, Any]) -> None:
    whole = draws(40, prompt=[1, 2, 3], **settings)
    assert len(set(whole)) > 3
    for cut in (1, 13, 39):
        rest = draws(40, produced=whole[:cut], prompt=[1, 2, 3], **settings)
        assert whole[:cut] + rest == whole


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_that_were_taken_back_leave_no_trace(settings: dict[str, Any]) -> None:
    whole = draws(30, prompt=[1, 2, 3], **settings)
    drawing = sampler(prompt=[1, 2, 3], **settings)
    said: list[int] = []
    while len(said) < 30:
        # Draws ahead of what is kept: one, then two, then three tokens too many.
        ahead = [drawing.draw(logits(at)) for at in range(len(said), min(30, len(said) + 4))]
        wrong = len(said) % 3
        if wrong and len(ahead) > wrong:
            drawing.take_back(ahead[-wrong:])
            ahead = ahead[:-wrong]
        said += ahead
    assert said == whole


def test_a_seed_decides_the_draws() -> None:
    assert draws(40, seed=1) == draws(40, seed=1)
    assert draws(40, seed=1) != draws(40, seed=2)


def test_a_draw_leaves_the_logits_as_they_were() -> None:
    row = logits()
    before = row.copy()
    drawing = sampler(logit_bias={5: 9.0}, repeat_penalty=2.0, frequency_penalty=1.0, top_p=0.5)
    for _ in range(5):
        drawing.draw(row, only(1, 2, 3, 4, 5))
    assert (row == before).all()


def test_greedy_takes_the_most_likely_token() -> None:
    assert draws(10, temperature=0.0) == [int(logits(at).argmax()) for at in range(10)]


@pytest.mark.parametrize("one", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
def test_a_filter_that_leaves_one_token_is_greedy_at_any_temperature(one: dict[str, Any]) -> None:
    assert draws(10, temperature=2.0, **one) == draws(10, temperature=0.0)


def test_ties_at_the_edge_of_top_k_are_cut() -> None:
    drawing = sampler(top_k=3)
    assert {drawing.draw(np.zeros(SIZE, dtype=np.float32)) for _ in range(200)} == {0, 1, 2}


def test_a_strong_bias_forces_and_forbids_tokens() -> None:
    assert set(draws(20, logit_bias={9: 100.0})) == {9}
    assert 9 not in draws(200, logit_bias={9: -100.0})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ending_tokens_are_never_drawn_when_told_to_ignore_them(temperature: float) -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[END] = 50
    drawing = sampler(temperature=temperature, ignore_eos=True)
    assert END not in {drawing.draw(row) for _ in range(100)}


def test_a_frequency_penalty_counts_the_answer_only_and_a_repeat_penalty_the_prompt_too() -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[7], row[8] = 5.0, 4.9

    def first(**settings: Any) -> int:
        return sampler(prompt=[7, 7], temperature=0.0, **settings).draw(row)

    assert first(frequency_penalty=2.0) == 7
    assert first(repeat_penalty=1.5) == 8


def test_a_repeat_penalty_makes_tokens_of_either_sign_less_likely() -> None:
    row = np.full(SIZE, -1.0, dtype=np.float32)
    row[7] = -0.9
    assert sampler(prompt=[7], temperature=0.0, repeat_penalty=1.5).draw(row) == 0


def test_a_presence_penalty_counts_once_and_a_frequency_penalty_each_time() -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[7], row[8] = 5.0, 2.5
    said = [7, 7, 7]
    assert sampler(produced=said, temperature=0.0, presence_penalty=2.0).draw(row) == 7
    assert sampler(produced=said, temperature=0.0, frequency_penalty=1.0).draw(row) == 8


def test_a_bias_for_a_token_that_does_not_exist_is_the_callers_fault() -> None:
    with pytest.raises(RequestRefused, match="not in the vocabulary of 50") as refused:
        draws(1, logit_bias={SIZE: 1.0})
    assert refused.value.param == "logit_bias"


@pytest.mark.parametrize("settings", [*SETTINGS, {"top_p": 1 - 1e-16}, {"min_p": 1e-9}], ids=str)
def test_only_allowed_tokens_are_drawn(settings: dict[str, Any]) -> None:
    drawing = sampler(prompt=[1, 2, 3], **settings)
    for at in range(100):
        allowed = only(at % SIZE, (7 * at + 1) % SIZE)
        assert allowed[drawing.draw(logits(at), allowed)]


def test_the_only_allowed_token_is_drawn_however_unlikely() -> None:
    row = np.zeros(SIZE, dtype=np.float32)
    row[11] = -1e30
    for settings in SETTINGS:
        assert sampler(**settings).draw(row, only(11)) == 11


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_wins_over_what_forbids_all_that_it_allows(temperature: float) -> None:
    row = logits()
    assert sampler(temperature=temperature, ignore_eos=True).draw(row, only(END)) == END
    row[[7, 8]] = -np.inf
    assert sampler(temperature=temperature).draw(row, only(7, 8)) in (7, 8)


def test_allowing_everything_changes_no_draw() -> None:
    everything = np.ones(SIZE, dtype=bool)
    for settings in SETTINGS:
        constrained = sampler(**settings)
        drawn = [constrained.draw(logits(at), everything) for at in range(30)]
        assert drawn == draws(30, **settings)


def test_a_constraint_changes_only_the_tokens_it_forbids() -> None:
    # Where the draw without it is allowed by chance, greedy gives the same token.
    free = draws(30, temperature=0.0)
    for at, token in enumerate(free):
        assert sampler(temperature=0.0).draw(logits(at), only(token, 0, 1)) == token


def test_a_token_without_weight_is_not_drawn_at_the_border_of_two_blocks() -> None:
    # Of weights so unequal, the sum of two blocks less the second may be more than the first.
    weights = np.exp(-30 * np.random.default_rng(1).random(512)).astype(np.float32)
    weights[256:300] = 0
    first, second = (weights[at : at + 256].sum(dtype=np.float64) for at in (0, 256))
    assert first + second - second > first
    assert weights[_invert(weights, first / (first + second))] > 0


def test_a_tally_grows_and_shrinks_with_what_is_said() -> None:
    tally = Tally([5, 5, 9])
    for token in range(100, 300):
        tally.add(token)
    tally.remove(5)
    tally.remove(9)
    counted = dict(zip(tally.ids.tolist(), tally.counts.tolist(), strict=True))
    assert counted == {5: 1, 9: 0} | dict.fromkeys(range(100, 300), 1)


@given(st.integers(0, 1 << 20), st.integers(0, SIZE + 5))
def test_log_probabilities_are_those_of_the_softmax(seed: int, top: int) -> None:
    row = logits(seed)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    chosen, best = log_probabilities(row, [4, END], top)
    assert chosen == pytest.approx([exact[4], exact[END]], abs=1e-5)
    assert len(best) == min(top, SIZE)
    assert [token for token, _ in best] == np.argsort(-row, kind="stable")[: len(best)].tolist()
    assert [value for _, value in best] == pytest.approx(sorted(exact)[::-1][: len(best)], abs=1e-5)
    assert sum(math.exp(value) for _, value in best) <= 1 + 1e-6


def test_log_probabilities_stand_logits_of_any_height() -> None:
    row = np.array([1e30, 1e30, -1e30, -np.inf], dtype=np.float32)
    chosen, best = log_probabilities(row, [0, 3], 2)
    assert chosen == [pytest.approx(-math.log(2), abs=1e24), -math.inf]
    assert [token for token, _ in best] == [0, 1]

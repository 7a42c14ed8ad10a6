"""What makes two requests the same, how long one stays refused, and how many are remembered."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd import wire
from hxd.daemon.request.poison import KEPT, MOST, Poison
from hxd.errors import CallerError


class Clock:
    """Time that stands where it is put."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


ORDER = wire.Generate(
    id=1,
    seed=1,
    messages=[wire.Message("user", "Hello")],
    template={"a": 1, "b": 2},
)
# Each differs from `ORDER` in something that the client asked.
OTHERS: dict[str, Any] = {
    "messages": [wire.Message("user", "hello")],
    "text": "Hello",
    "tokens": [72],
    "sampling": wire.Sampling(temperature=0.5),
    "max_tokens": 5,
    "stop": ["."],
    "tools": wire.Tools([wire.Tool("f")]),
    "constraint": wire.Constraint("json_object"),
    "logprobs": 0,
    "echo": True,
    "suffix": "!",
    "template": {"a": 1},
}
# These say nothing of what was asked, or were made by workers.
SILENT: dict[str, Any] = {"id": 2, "seed": 2, "resume": [72, 73], "cache": "somebody"}


def changed(**fields: Any) -> wire.Generate:
    return msgspec.structs.replace(ORDER, **fields)


def refused(poison: Poison, request: wire.Request, model: str = "m") -> bool:
    try:
        poison.check(model, request)
    except CallerError:
        return True
    return False


def test_what_was_added_is_refused_and_the_client_reads_for_how_long() -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.add("m", ORDER)
    clock.at = 100.0
    with pytest.raises(CallerError) as raised:
        poison.check("m", ORDER)
    error = raised.value
    assert (error.status, error.code, error.retry_after) == (422, "request_blocked", 500.0)
    assert "refused for 500 s more" in error.message
    assert error.headers() == {"Retry-After": "500"}


def test_every_field_of_a_generation_is_known_to_count_or_not() -> None:
    assert OTHERS.keys() | SILENT.keys() == set(wire.Generate.__struct_fields__)


@pytest.mark.parametrize("name", SILENT)
def test_the_same_question_is_refused_whatever_the_daemon_added_to_it(name: str) -> None:
    poison = Poison(Clock())
    poison.add("m", ORDER)
    assert refused(poison, changed(**{name: SILENT[name]}))
    assert refused(poison, changed(**SILENT))


@pytest.mark.parametrize("name", OTHERS)
def test_another_question_is_not_refused(name: str) -> None:
    poison = Poison(Clock())
    poison.add("m", ORDER)
    assert not refused(poison, changed(**{name: OTHERS[name]}))


def test_the_order_of_names_makes_no_other_question() -> None:
    poison = Poison(Clock())
    poison.add("m", ORDER)
    assert refused(poison, changed(template={"b": 2, "a": 1}))


def test_a_request_with_biases_is_known_again() -> None:
    poison = Poison(Clock())
    poison.add("m", changed(sampling=wire.Sampling(logit_bias={1: 0.5, 2: -0.5})))
    assert refused(poison, changed(sampling=wire.Sampling(logit_bias={2: -0.5, 1: 0.5})))
    assert not refused(poison, changed(sampling=wire.Sampling(logit_bias={1: 0.5})))
    assert not refused(poison, ORDER)


def test_another_model_is_asked_all_the_same() -> None:
    poison = Poison(Clock())
    poison.add("m", ORDER)
    assert not refused(poison, ORDER, "other")
    poison.add("other", ORDER)
    assert refused(poison, ORDER, "other")


REQUESTS: list[wire.Request] = [
    wire.Generate(1, 0, text="x"),
    wire.Embed(1, ["x"]),
    wire.Rank(1, "x", ["x"]),
    wire.Tokenize(1, "x"),
    wire.Detokenize(1, [120]),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_every_kind_of_request_is_known_again_under_another_id(request_: wire.Request) -> None:
    poison = Poison(Clock())
    poison.add("m", request_)
    for request in REQUESTS:
        assert refused(poison, msgspec.structs.replace(request, id=7)) == (request is request_)


def test_a_refusal_ends_by_itself_to_the_moment() -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.add("m", ORDER)
    clock.at = math.nextafter(KEPT, 0)
    assert refused(poison, ORDER)
    clock.at = KEPT
    assert not refused(poison, ORDER)
    assert len(poison) == 0


def test_what_is_added_again_is_refused_for_longer() -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.add("m", ORDER)
    clock.at = 300.0
    poison.add("m", ORDER)
    assert len(poison) == 1
    clock.at = KEPT + 299.0
    assert refused(poison, ORDER)
    clock.at = KEPT + 300.0
    assert not refused(poison, ORDER)


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    poison = Poison(Clock())
    for number in range(MOST):
        poison.add("m", wire.Embed(0, [str(number)]))
    poison.add("m", wire.Embed(0, ["0"]))
    poison.add("m", wire.Embed(0, ["one more"]))
    assert len(poison) == MOST
    assert refused(poison, wire.Embed(0, ["0"]))
    assert not refused(poison, wire.Embed(0, ["1"]))
    assert refused(poison, wire.Embed(0, ["2"]))


def test_no_more_suspects_are_remembered_than_refusals() -> None:
    poison = Poison(Clock())
    for number in range(MOST + 1):
        assert not poison.suspect("m", wire.Embed(0, [str(number)]))
    assert poison.suspect("m", wire.Embed(0, [str(MOST)]))
    assert not poison.suspect("m", wire.Embed(0, ["0"]))


def test_a_suspect_is_not_refused() -> None:
    poison = Poison(Clock())
    assert not poison.suspect("m", ORDER)
    assert poison.suspect("m", changed(**SILENT))
    assert not refused(poison, ORDER)
    assert len(poison) == 0


@pytest.mark.parametrize(
    ("after", "known"), [(0.0, True), (math.nextafter(KEPT, 0), True), (KEPT, False)]
)
def test_a_suspicion_lasts_as_long_as_a_refusal(after: float, known: bool) -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.suspect("m", ORDER)
    clock.at = after
    assert poison.suspect("m", ORDER) == known


def test_a_suspicion_is_renewed_each_time() -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.suspect("m", ORDER)
    for _ in range(5):
        clock.at += KEPT - 1.0
        assert poison.suspect("m", ORDER)
    clock.at += KEPT
    assert not poison.suspect("m", ORDER)


def test_nothing_of_a_request_is_kept() -> None:
    poison = Poison(Clock())
    secret = wire.Generate(0, 0, text="a very secret prompt")
    poison.add("m", secret)
    poison.suspect("m", secret)
    [mark], [suspected] = poison._until, poison._suspects
    assert (mark, len(mark)) == (suspected, 32)
    other = Poison(Clock())
    other.add("m", secret)
    assert mark not in other._until


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 500)), max_size=20))
def test_a_request_is_refused_exactly_until_its_time_is_up(found: list[tuple[str, float]]) -> None:
    clock = Clock()
    poison = Poison(clock)
    last: dict[str, float] = {}
    for text, pause in found:
        clock.at += pause
        poison.add("m", wire.Embed(0, [text]))
        last[text] = clock.at
        fresh = {one for one, at in last.items() if clock.at < at + KEPT}
        assert {one for one in "abc" if refused(poison, wire.Embed(0, [one]))} == fresh
        assert len(poison) == len(fresh)

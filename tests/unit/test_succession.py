"""Which release goes on with an answer: one of the same model that can answer now, then other
models, and nobody twice."""

from __future__ import annotations

from typing import Any

import pytest

from hxd.daemon.request.deployment import Deployment, Served, Trial
from hxd.daemon.request.succession import Succession
from tests.rollouts import a_release


class Books:
    """A supervisor without workers, and the metrics."""

    def __init__(self) -> None:
        self.replicas: dict[str, list[Any]] = {}
        self.fallen: list[str] = []

    def ready(self, key: str) -> list[Any]:
        return []

    def fell_back(self, model: str) -> None:
        self.fallen.append(model)


class Box:
    """A model whose version 2 is in service with version 1 kept warm, and another model behind."""

    def __init__(self) -> None:
        self.books: Any = Books()
        self.former, self.current = a_release("m"), a_release("m", version=2, release="2")
        self.other = a_release("b")
        Deployment("b", self.other)
        self.deployment = Deployment("m", self.former)
        self.deployment.adopt(self.current)
        self.deployment.shift(self.current)
        self.deployment.warm = self.former
        self.chain = [self.current, self.other]

    def succession(self, *, strict: bool = False) -> Succession:
        return Succession(self.chain, self.books, self.books, strict=strict)


@pytest.fixture
def box() -> Box:
    return Box()


def walked(succession: Succession, bound: str | None = None) -> list[Served]:
    """Until nobody is left; a bound, since one that goes in circles never ends."""
    found = []
    for _ in range(10):
        if not succession.advance(bound):
            return found
        found.append(succession.served)
    raise AssertionError(f"it goes round and round: {found}")


def test_the_version_before_comes_before_another_model(box: Box) -> None:
    assert walked(box.succession()) == [box.former, box.other]
    assert box.books.fallen == ["b"]


def test_a_version_that_can_not_answer_now_keeps_nobody_from_another_model(box: Box) -> None:
    box.former.gate.ready = False  # type: ignore[attr-defined]
    succession = box.succession()
    assert succession.relieve(None)
    assert succession.served is box.other


def test_one_on_trial_is_followed_by_the_one_in_service_and_then_by_another_model(box: Box) -> None:
    trial = a_release("m", version=3, release="3")
    box.deployment.adopt(trial)
    box.deployment.begin(Trial(trial, 1.0, "salt"))
    box.chain[:1] = [trial, box.current]
    assert walked(box.succession()) == [box.current, box.former, box.other]


def test_one_that_was_replaced_is_followed_by_the_one_in_service(box: Box) -> None:
    box.chain[0] = box.former
    assert walked(box.succession()) == [box.current, box.other]


def test_the_sequences_of_a_request_meet_at_the_same_release(box: Box) -> None:
    first, second = box.succession(), box.succession()
    assert first.advance(None)
    assert box.chain[0] is box.former
    assert second.advance(None)
    assert first.served is second.served is box.former
    # What is left behind them is left for both.
    assert walked(first) == walked(second) == [box.other]


def test_with_strict_there_is_the_chain_and_nothing_else(box: Box) -> None:
    assert walked(box.succession(strict=True)) == [box.other]


def test_who_has_begun_to_read_stays_with_the_vocabulary(box: Box) -> None:
    """The version that is still to load has most likely the same one; the other model has none."""
    box.books.replicas = {box.other.source.key: []}
    assert walked(box.succession(), "a vocabulary") == [box.former]

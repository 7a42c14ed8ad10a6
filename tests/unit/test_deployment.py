"""Which release answers whom: a deployment through any sequence of changes, the share of askers
that a trial gets, and the references that clients may use meanwhile."""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from hxd.daemon.request.deployment import NOBODY, Asker, Deployment, Served, Trial
from hxd.daemon.request.models import Catalog
from hxd.daemon.store.sources import SourceError
from hxd.errors import HxdError, ModelNotFound, Unavailable
from tests.rollouts import a_release


class Changes(RuleBasedStateMachine):
    """Everything that a rollout does to a deployment, in any order that it may."""

    beside = Bundle("beside")  # has workers, and is not the one in service

    @initialize()
    def begins(self) -> None:
        self.count = 1
        self.deployment = Deployment("m", a_release("m"))
        self.gone: list[Served] = []

    @rule(target=beside)
    def one_comes_up(self) -> Served:
        self.count += 1
        served = a_release("m", version=self.count, release=str(self.count))
        self.deployment.adopt(served)
        return served

    @rule(target=beside, served=consumes(beside))
    def shifts(self, served: Served) -> Served:
        before = self.deployment.current
        former = self.deployment.shift(served)
        assert former is before
        assert self.deployment.current is served
        assert former in self.deployment.others
        return former

    @rule(served=beside, share=st.floats(0.01, 0.99))
    def a_trial_begins(self, served: Served, share: float) -> None:
        self.deployment.end()
        self.deployment.begin(Trial(served, share, "salt"))

    @rule()
    def the_trial_ends(self) -> None:
        trial = self.deployment.trial
        self.deployment.end()
        if trial is not None:
            assert trial.served in self.deployment.others

    @rule(served=beside)
    def one_is_kept_warm(self, served: Served) -> None:
        if served in self.deployment.others:
            self.deployment.warm = served

    @rule(served=consumes(beside))
    def one_goes(self, served: Served) -> None:
        self.deployment.forget(served)
        self.gone.append(served)

    @invariant()
    def no_release_has_two_places(self) -> None:
        releases = list(self.deployment.releases())
        assert len(releases) == len({id(served) for served in releases})
        assert self.deployment.current not in self.deployment.others

    @invariant()
    def who_is_gone_is_nowhere(self) -> None:
        releases = [id(served) for served in self.deployment.releases()]
        assert not {id(served) for served in self.gone} & set(releases)
        assert self.deployment.warm not in self.gone

    @invariant()
    def what_is_warm_has_workers_and_is_not_in_service(self) -> None:
        warm = self.deployment.warm
        assert warm is None or warm in self.deployment.others or warm is self._on_trial()

    def _on_trial(self) -> Served | None:
        return None if self.deployment.trial is None else self.deployment.trial.served

    @invariant()
    def all_that_is_left_knows_where_it_belongs(self) -> None:
        for served in self.deployment.releases():
            assert served.deployment is self.deployment
            current = served is self.deployment.current
            assert served.successor is (None if current else self.deployment.current)

    @invariant()
    def an_asker_gets_what_is_in_service_last(self) -> None:
        for who in range(20):
            chain = self.deployment.chain(Asker(str(who)))
            assert chain[-1] is self.deployment.current
            assert chain[:-1] in ([], [self._on_trial()])


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=30)


def conversation(number: int) -> Asker:
    return Asker(conversation=partial(str.encode, f"conversation {number}"))


@given(st.text(max_size=40), st.text(max_size=100), st.booleans())
def test_the_same_asker_always_has_the_same_part(salt: str, key: str, by: bool) -> None:
    who = key.encode("utf-8", "replace")
    part = partial(Asker(key, lambda: who).part, salt, by_conversation=by)
    assert 0.0 <= part() < 1.0
    assert part() == part()


@pytest.mark.parametrize("make", [lambda n: Asker(f"key-{n}"), conversation])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_of_many_askers_the_share_gets_the_trial(make: object, share: float) -> None:
    deployment = Deployment("m", a_release("m"))
    canary = a_release("m", version=2, release="2")
    deployment.begin(Trial(canary, share, "a salt"))
    assert callable(make)
    count = 4000
    hits = sum(deployment.chain(make(n))[0] is canary for n in range(count))
    # Five standard deviations of a binomial.
    assert abs(hits - count * share) < 5 * math.sqrt(count * share * (1 - share))


def test_another_trial_draws_other_askers() -> None:
    parts = [
        [Asker(f"key-{n}").part(salt) < 0.5 for n in range(2000)] for salt in ("one", "another")
    ]
    same = sum(a == b for a, b in zip(*parts, strict=True))
    assert abs(same - 1000) < 5 * math.sqrt(500)


def test_a_key_is_stuck_to_whatever_it_talks_about_and_a_conversation_to_whoever_talks() -> None:
    talks = [Asker("key", partial(bytes, n)) for n in range(9)]
    assert len({asker.part("salt") for asker in talks}) == 1
    assert len({asker.part("salt", by_conversation=True) for asker in talks}) == 9
    keys = [Asker(f"key-{n}", lambda: b"the same") for n in range(9)]
    assert len({asker.part("salt") for asker in keys}) == 9
    assert len({asker.part("salt", by_conversation=True) for asker in keys}) == 1
    # A key is not taken for the conversation with the same words.
    assert Asker("the same").part("salt") != keys[0].part("salt", by_conversation=True)


def test_nobody_is_sent_to_a_trial_that_can_answer_no_more() -> None:
    deployment = Deployment("m", a_release("m"))
    canary = a_release("m", version=2, release="2")
    deployment.begin(Trial(canary, 1.0, "a salt"))
    assert deployment.chain(NOBODY) == [canary, deployment.current]
    canary.gate.hopeless = True  # type: ignore[misc]
    assert deployment.chain(NOBODY) == [deployment.current]


def test_what_is_in_service_no_more_hands_over_to_what_is() -> None:
    old, new = a_release("m"), a_release("m", version=2, release="2")
    deployment = Deployment("m", old)
    deployment.adopt(new)
    assert (old.successor, new.successor) == (None, old)
    deployment.shift(new)
    deployment.forget(old)
    assert (old.successor, new.successor) == (new, None)


def test_refuge_is_what_is_in_service_or_what_was_and_only_if_it_can_answer() -> None:
    old, new = a_release("m"), a_release("m", version=2, release="2")
    deployment = Deployment("m", old)
    deployment.adopt(new)
    deployment.shift(new)
    assert (new.refuge, old.refuge) == (None, new)
    deployment.warm = old
    assert new.refuge is old
    old.gate.ready = new.gate.ready = False  # type: ignore[attr-defined]
    assert not (new.refuge or old.refuge)


# --- references


@pytest.fixture
def catalog() -> Catalog:
    """`m` serves f16 of version 2, tries version 3, keeps version 1 and has q8_0 of 2 beside it."""
    one = Deployment("m", a_release("m", version=2))
    for number, variant in ((3, "f16"), (1, "f16"), (2, "q8_0")):
        one.adopt(a_release("m", version=number, variant=variant, release=f"{number}{variant}"))
    one.begin(Trial(one.others[0], 0.5, "salt"))
    labels = {"m": {"stable": 2, "canary": 1, "prod": 1, "nobody": 9}}
    return Catalog(
        MappingProxyType({"m": one, "other/m": Deployment("other/m", a_release("other/m"))}),
        {"broken": SourceError("source", "it is not there")},
        0,
        {"route": ["m", "other/m"]},
        labels=lambda model: labels.get(model, {}),
    )


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("m", "f16@2"),
        ("m@stable", "f16@2"),
        ("m@2", "f16@2"),
        ("m:f16", "f16@2"),
        ("m:f16@2", "f16@2"),
        ("m:f16@stable", "f16@2"),
        ("m@canary", "f16@3"),
        ("m@3", "f16@3"),
        ("m:f16@canary", "f16@3"),
        ("m@1", "f16@1"),
        ("m@prod", "f16@1"),
        ("m:q8_0@2", "q8_0@2"),
        ("m:q8_0", "q8_0@2"),
        ("other/m@1", "f16@1"),
        ("other/m:f16@stable", "f16@1"),
    ],
)
def test_a_reference_names_one_of_the_releases_that_live(
    catalog: Catalog, reference: str, found: str
) -> None:
    # Who asks does not matter: a reference is no lot.
    for asker in (NOBODY, Asker("a"), Asker("b"), Asker("c")):
        chain = catalog.chain(reference, asker)
        source = chain[-1 if reference == "m" else 0].source
        assert (f"{source.variant}@{source.version}", source.name) == (
            found,
            reference.partition("@")[0].partition(":")[0],
        )


@pytest.mark.parametrize(
    "reference",
    [
        *("m@4", "m@nobody", "m@unknown", "m:q4_0", "m:q8_0@3", "m@02", "m@²", "m@-1"),
        *("m@1@2", "m::f16", "m:f16:f16", "m@2 ", "M", "", "@2", ":f16", "other/m@2", "route@1"),
    ],
)
def test_what_no_release_is_called_is_not_found_and_the_answer_names_some(
    catalog: Catalog, reference: str
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.chain(reference)
    assert caught.value.status == 404


def test_without_a_trial_there_is_no_canary(catalog: Catalog) -> None:
    catalog.served["m"].end()
    with pytest.raises(ModelNotFound):
        catalog.chain("m@canary")


def test_a_model_that_can_not_be_served_says_why_by_any_reference(catalog: Catalog) -> None:
    for reference in ("broken", "broken@1", "broken:q8_0", "broken@stable"):
        with pytest.raises(Unavailable, match="it is not there"):
            catalog.chain(reference)


def test_a_route_goes_on_with_the_next_model_and_a_trial_in_it_with_the_stable_one(
    catalog: Catalog,
) -> None:
    deployment = catalog.served["m"]
    chains = [catalog.chain("route", Asker(str(n))) for n in range(64)]
    lengths = {len(chain) for chain in chains}
    assert lengths == {2, 3}
    for chain in chains:
        assert chain[-2] is deployment.current
        assert chain[-1].source.name == "other/m"


@given(st.text(max_size=60))
def test_no_reference_does_anything_but_find_or_say_that_there_is_none(reference: str) -> None:
    one = Catalog({"m": Deployment("m", a_release("m"))}, {}, 0)
    try:
        found = one.find(reference)
    except HxdError as error:
        assert error.status == 404
    else:
        assert found.source.name == "m"

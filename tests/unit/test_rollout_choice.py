"""What is written down of a version in service leads back to it, and to nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hxd.config import ModelSettings
from hxd.daemon.rollout.targets import akin, pinned, same
from hxd.daemon.store.sources import AS_CONFIGURED, Choice, Source
from tests.rollouts import a_source


def stored(**differs: Any) -> Source:
    """Of a version in the store."""
    held: Any = object()
    return a_source("m", **{"held": held, "version": 2, **differs})


def by(source: Source, kind: str) -> Source:
    plugin: Any = replace(source.plugin, source=kind)
    return replace(source, plugin=plugin)


@pytest.mark.parametrize(
    ("choice", "source", "found"),
    [
        (AS_CONFIGURED, a_source("m"), AS_CONFIGURED),
        (AS_CONFIGURED, stored(), Choice(2)),
        (Choice(2, "q8_0"), stored(variant="q8_0"), Choice(2, "q8_0")),
        # Of an installed plugin there may be another version tomorrow; of a built-in one there is
        # one, and an upgrade of hxd brings the next.
        (AS_CONFIGURED, by(stored(), "installed"), Choice(2, None, "fake@1.0")),
        (Choice(plugin="fake"), by(a_source("m"), "installed"), Choice(plugin="fake@1.0")),
        (Choice(plugin="fake"), by(stored(), "builtin"), Choice(2, None, "fake")),
    ],
)
def test_what_is_written_down_leads_to_just_that(
    choice: Choice, source: Source, found: Choice
) -> None:
    assert pinned(choice, source) == found
    assert pinned(found, source) == found


@pytest.mark.parametrize(
    "choice", [Choice(7), Choice(variant="q4_0"), Choice(plugin="gone"), Choice(2, plugin="fake@9")]
)
def test_a_choice_that_something_else_serves_for_is_not_passed_on(choice: Choice) -> None:
    settings = ModelSettings(plugin="auto")
    found = pinned(choice, stored(settings=settings))
    assert found == Choice(2, "f16", "auto")


def test_workers_stand_for_each_other_only_if_they_load_the_same_in_the_same_way() -> None:
    one = stored()
    assert same(one, replace(one, release="9", settings=ModelSettings(replicas=3, queue=1)))
    for other in (
        replace(one, version=3),
        replace(one, variant="q8_0"),
        replace(one, context=4096),
        replace(one, plugin=replace(one.plugin, digest="1" * 64)),
        replace(one, settings=ModelSettings(slots=9)),
        replace(one, settings=ModelSettings(options={"rate": 1})),
    ):
        assert not same(one, other)


def test_only_what_the_store_holds_is_known_to_be_of_the_same_file() -> None:
    def version(name: str, number: int) -> Any:
        return SimpleNamespace(name=name, number=number)

    one = stored(held=version("m", 2), variant="f16")
    assert akin(one, stored(held=version("m", 2), variant="q4_0"))
    assert not akin(one, stored(held=version("m", 1)))
    assert not akin(one, stored(held=version("n", 2)))
    assert not akin(one, a_source("m"))
    assert not akin(a_source("m"), a_source("m", variant="q4_0"))

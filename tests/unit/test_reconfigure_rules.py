"""When a change of the configuration is taken back for what the box looks like, and which edits it
may not overwrite. Conditions and time are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hxd.conditions import Condition
from hxd.config import Config, ModelSettings
from hxd.config.kinds import Address
from hxd.config.settings import AuthSettings, Listen, Paths
from hxd.daemon import config_check
from hxd.daemon.config_change import Candidate
from hxd.daemon.config_steps import effective
from hxd.daemon.config_watch import STEADY, watch

EPOCH = 1.7e9


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return EPOCH + self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)


def condition(code: str, subject: str = "m", since: float = 0.0, within: str = "") -> Condition:
    return Condition(code, subject, "a detail", EPOCH + since, within)


async def watched(
    seconds: float,
    seen: Callable[[float], list[Condition]],
    before: tuple[Condition, ...] = (),
) -> tuple[str | None, float]:
    """The code to go back for, and when that was said; `seen` tells what holds at a second."""
    clock = Clock()
    found = await watch(seconds, before, lambda: seen(clock.seconds), clock)
    return found and found.code, clock.seconds


def between(start: float, end: float, *found: Condition) -> Callable[[float], list[Condition]]:
    return lambda now: list(found) if start <= now < end else []


async def test_a_quiet_box_is_watched_to_the_end() -> None:
    assert await watched(30, lambda now: []) == (None, 30)


async def test_no_time_to_watch_means_no_judgement() -> None:
    bad = condition("model-unavailable")
    assert await watched(0, lambda now: [bad]) == (None, 0)


async def test_a_new_critical_condition_is_gone_back_for_at_once() -> None:
    bad = condition("model-unavailable", since=4)
    assert await watched(30, between(4, 30, bad)) == ("model-unavailable", 4)


async def test_a_warning_that_goes_away_while_workers_settle_is_none() -> None:
    young = condition("replica-unhealthy", "m-3", since=0, within="m")
    single = condition("model-single", since=2)
    assert await watched(30, between(0, 12, young, single)) == (None, 30)


async def test_a_warning_that_stays_is_gone_back_for_at_the_end_and_not_before() -> None:
    stays = condition("route-on-fallback", "chat", since=3)
    assert await watched(30, between(3, 99, stays)) == ("route-on-fallback", 30)


async def test_a_warning_of_the_last_moment_proves_nothing() -> None:
    late = 30 - STEADY + 1
    assert await watched(30, between(late, 99, condition("replica-suspect", since=late))) == (
        None,
        30,
    )
    # With less time to watch, less of it has to be filled.
    assert await watched(4, between(1, 99, condition("replica-suspect", since=1))) == (
        "replica-suspect",
        4,
    )


async def test_what_was_wrong_before_is_not_the_change() -> None:
    old = condition("model-unavailable", "broken")
    failing = condition("replica-failed", "m-1", within="m")
    again = condition("replica-failed", "m-7", since=8, within="m")
    seen = [old, again]
    assert await watched(30, lambda now: seen, (old, failing)) == (None, 30)


async def test_a_model_that_limped_before_and_is_down_now_is_worse_off() -> None:
    before = condition("model-limping")
    down = condition("model-unavailable", since=1)
    assert await watched(30, between(1, 99, down), (before,)) == ("model-unavailable", 1)


async def test_the_same_trouble_of_another_model_is_another_trouble() -> None:
    before = condition("model-unavailable", "a")
    other = condition("model-unavailable", "b", since=2)
    assert await watched(30, between(2, 99, other), (before,)) == ("model-unavailable", 2)


@pytest.mark.parametrize(
    ("present", "good", "files", "edited"),
    [
        ("a", "a", "b", False),
        ("b", "a", "b", False),  # the edit is what is asked for
        ("c", "a", "b", True),
        ("c", "a", "a", True),
        (None, "a", "a", True),  # deleted by hand
        (None, "a", None, False),
        ("c", None, None, True),  # added by hand
        ("c", None, "c", False),
    ],
)
def test_only_edits_that_would_be_lost_are_in_the_way(
    present: str | None, good: str | None, files: str | None, edited: bool
) -> None:
    def named(text: str | None) -> dict[str, bytes]:
        return {"hxd.toml": b""} | ({} if text is None else {"conf.d/x.toml": text.encode()})

    found = config_check.edited(named(present), named(good), named(files))
    assert found == ({"conf.d/x.toml"} if edited else set())


def test_a_candidate_of_one_file_leaves_the_others_where_they_are() -> None:
    present = {"hxd.toml": b"1", "conf.d/x.toml": b"2"}
    assert Candidate().beside(present) == present
    assert Candidate({"hxd.toml": b"3"}).beside(present) == {"hxd.toml": b"3"}
    one = Candidate({"hxd.toml": b"3"}, whole=False)
    assert one.beside(present) == {"hxd.toml": b"3", "conf.d/x.toml": b"2"}


def test_what_needs_a_restart_stays_as_it_is_until_then() -> None:
    now = Config(Path("/a/hxd.toml"), listen=Listen(Address("127.0.0.1", 1), ("old",)))
    new = Config(
        Path("/a/hxd.toml"),
        listen=Listen(Address("127.0.0.1", 2), ("new",)),
        auth=AuthSettings(False),
        paths=Paths(state=Path("/elsewhere")),
        models={"m": ModelSettings(source="x")},
    )
    found = effective(new, now)
    assert found.listen == new.listen
    assert found.paths == now.paths
    assert (found.auth, found.models) == (new.auth, new.models)

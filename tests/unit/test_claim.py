"""What a daemon that died has left in its folders is gone once the next one has them."""

from __future__ import annotations

from pathlib import Path

from hxd.config import load
from hxd.daemon.inspection import claim
from hxd.daemon.request.identify import Role
from hxd.daemon.rollout.record import FILE as DEPLOYMENTS
from hxd.daemon.rollout.record import Record
from hxd.daemon.store.keys import FILE as KEYS
from hxd.daemon.store.keys import KeyStore
from tests.dying import at_touch, die, until_it_lives
from tests.support import echo, write_config


def test_of_a_write_that_was_killed_nothing_stays_beside_the_file(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, echo()))
    state = config.paths.state

    def act(number: int) -> None:
        at_touch(number, die)
        KeyStore(state).create("app", Role.INFERENCE, 1.0)
        Record(state).save({})

    def check() -> None:
        left.update(path.name for path in state.glob(".*"))
        with claim(config):
            there = {path.name for path in state.iterdir()}
        assert there <= {"store", KEYS, DEPLOYMENTS}

    left: set[str] = set()
    with claim(config):
        pass
    until_it_lives(act, check)
    assert left == {f".{KEYS}.part", f".{DEPLOYMENTS}.part"}

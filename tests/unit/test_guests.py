"""What hxd asks of a release for itself sends no client away."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from hxd.daemon.request.admit import Gate
from hxd.errors import QueueFull


@dataclass
class Bench:
    """One replica that is always ready, as its own grant, roster and supervisor."""

    id: str = "bird-1"
    model: str = "bird"
    key: str = "bird"

    @property
    def replica(self) -> Bench:
        return self

    def settle(self) -> None: ...

    def demanded(self) -> None: ...

    def choose(self, busy: Counter[str], slots: int, **_: Any) -> Bench | None:
        return self if busy[self.id] < slots else None

    def ready(self, key: str) -> list[Bench]:
        return [self]


def gate(*, queue: int) -> Gate:
    bench: Any = Bench()
    return Gate(bench, 1, 1, queue, bench)


@pytest.mark.parametrize("queue", [0, 1])
async def test_a_client_waits_for_a_guest_where_it_would_have_had_the_slot(queue: int) -> None:
    line = gate(queue=queue)
    guest = line.enter(1, guest=True)
    clients = [line.enter(1) for _ in range(1 + queue)]
    with pytest.raises(QueueFull):
        line.enter(1)
    line.abandon(guest)
    line.leave(1)
    assert clients[0][0].granted.done()
    with pytest.raises(QueueFull):
        line.enter(1)


async def test_a_guest_is_let_in_as_clients_are_and_takes_nobody_elses_place() -> None:
    line = gate(queue=1)
    line.enter(1)
    line.enter(1, guest=True)
    with pytest.raises(QueueFull):
        line.enter(1, guest=True)
    client = line.enter(1)
    with pytest.raises(QueueFull):
        line.enter(1)
    assert not client[0].granted.done()

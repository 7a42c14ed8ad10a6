"""What rollouts work with: the parts of the daemon that they act on, and what they ask of the
stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hxd.clock import Clock
from hxd.daemon.events import Events
from hxd.daemon.request.deployment import Deployment
from hxd.daemon.request.releases import Releases
from hxd.daemon.request.setting import Setting
from hxd.daemon.rollout.golden import Golden
from hxd.daemon.rollout.record import Record
from hxd.daemon.store.sources import Choice, Source, SourceError
from hxd.daemon.supervise.memory import Room
from hxd.daemon.supervise.supervisor import Supervisor


@dataclass(frozen=True)
class Means:
    """`refused` are the models that can't be served as configured. `drain`
    is the bound of a drain in seconds. `configured` is what the configuration says of a model in
    the words of `record.fingerprint`; `resolve` finds what a model loads under a choice; `golden`
    the prompts of a release; `label` moves a label in the store; `condemn` marks a bad version
    there. All may raise `StoreError`."""

    deployments: dict[str, Deployment]
    refused: dict[str, SourceError]
    releases: Releases
    supervisor: Supervisor
    room: Room
    setting: Setting
    record: Record
    events: Events
    clock: Clock
    drain: Callable[[], float]
    configured: Callable[[str], str]
    shelf: Callable[[str], str | None]
    resolve: Callable[[str, Choice], Awaitable[Source]]
    others: Callable[[str], Awaitable[list[Choice]]]
    golden: Callable[[Source], Awaitable[Golden | None]]
    label: Callable[[Source, str], Awaitable[None]]
    condemn: Callable[[Source, str], Awaitable[None]]

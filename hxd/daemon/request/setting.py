"""What the requests of all models have in common."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hxd.clock import Clock
from hxd.daemon.admin.metrics import Metrics
from hxd.daemon.request.poison import Poison
from hxd.daemon.supervise.supervisor import Supervisor


@dataclass(frozen=True)
class Setting:
    """One for the daemon."""

    clock: Clock
    metrics: Metrics
    supervisor: Supervisor
    poison: Poison
    random: random.Random

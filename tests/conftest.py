"""How examples are drawn; and fixtures: one shared daemon with the demo model and echo models for
the tests that only ask."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.support import DEMO, Daemon, echo, running, write_config

# A busy box is no failure. The same examples each time: what a change is refused for is its own
# doing. `pytest --hypothesis-profile explore` looks further.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("explore"), derandomize=True)
settings.load_profile("steady")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """Demo model with two replicas of four slots, `echo` as fast as it can, `slow` at 20 tokens/s
    with two slots and a queue of two. Tests may ask it anything, and must not stop or harm it."""
    models = DEMO.format(replicas=2) + echo() + echo("slow", slots=2, queue=2, options={"rate": 20})
    async with running(write_config(tmp_path_factory.mktemp("shared"), models)) as daemon:
        yield daemon

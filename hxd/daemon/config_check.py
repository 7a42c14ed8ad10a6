"""Whether a configuration that somebody proposes is valid in every respect, for the daemon that is
to take it. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hxd.config import Config
from hxd.config.live import Live
from hxd.config.load import load_as
from hxd.config.plan import plan
from hxd.daemon.config_change import BadConfig, Candidate, Files, Proposal
from hxd.daemon.config_files import ConfigFiles
from hxd.daemon.config_steps import Steps, effective
from hxd.daemon.request.listener import CannotListen, Listener
from hxd.daemon.store.sources import Source, SourceError
from hxd.errors import ConfigError


@dataclass(frozen=True)
class Proposer:
    """`inspect` finds what the models of a configuration load, and what is wrong with which; it
    blocks. `refused` and `instead` are models that can't be served as they should be now."""

    live: Live
    files: ConfigFiles
    steps: Steps
    listener: Listener
    refused: Mapping[str, SourceError]
    instead: Mapping[str, SourceError]
    inspect: Callable[[Config], tuple[Mapping[str, Source], Mapping[str, SourceError]]]

    async def propose(self, candidate: Candidate) -> Proposal:
        """Raises `BadConfig` with every fault that there is."""
        present = await self.files.on_disk()
        files = candidate.beside(present)
        now = self.live.config
        try:
            config = await asyncio.to_thread(load_as, files, now.origin)
            sources, wrong = await asyncio.to_thread(self.inspect, effective(config, now))
        except ConfigError as error:
            raise BadConfig(str(error)) from None
        findings = [
            f"{config.at(f'models.{name}.{error.key}')}: {error}"
            for name, error in wrong.items()
            if not self._known(name, config)
        ]
        try:
            await self.listener.probe(config.listen.http)
        except CannotListen as error:
            findings.append(f"{config.at('listen.http')}: {error}")
        if findings:
            raise BadConfig("\n".join(findings))
        _, good = await self.files.holding()
        return Proposal(
            files,
            config,
            sources,
            plan(now, config, self.steps.workers(), wrong.keys() - sources.keys()),
            tuple(sorted(edited(present, good, files))),
        )

    def _known(self, name: str, config: Config) -> bool:
        """Whether that model could not be served as it should be before, either, and its settings
        are the same: a box with one broken model can still be configured."""
        told = name in self.refused or name in self.instead
        return told and self.live.config.models.get(name) == config.models[name]


def edited(present: Files, good: Files, files: Files) -> set[str]:
    """Files that are neither as they were applied nor as they are to be."""
    return {
        name
        for name in present.keys() | good.keys()
        if present.get(name) not in (good.get(name), files.get(name))
    }

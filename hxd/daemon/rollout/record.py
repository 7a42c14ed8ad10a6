"""What of every model's rollouts must outlive the daemon: what is in service by the operator's
word, what was before, and what is under way. One small file, written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import msgspec

from hxd.config import ModelSettings, durable
from hxd.daemon.store.sources import AS_CONFIGURED, Choice

log = logging.getLogger("hxd.rollout")

FILE = "deployments.json"
MOST_FORMER = 10
MOST_BYTES = 4 << 20


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as it was asked for. `share`, 0 to 1, of the clients get the new release for
    `seconds`, until at least `at_least` requests of it are seen; None swaps at once. `compare`: two
    versions stay side by side, and nothing is decided. `mode` is `auto`, `availability` or
    `resource`. `id` is the rollout's, and deals its clients, over restarts too. `began` is in
    Unix seconds, `attempts` counts daemons that have ended in it by surprise. `back`: to what was
    before. `blame`: what serves now is not to be kept. `fresh`: the configuration has
    changed, and what was before is no longer to be had. `again`: by workers of its own, though it
    is what serves."""

    model: str
    choice: Choice
    share: float | None = None
    seconds: float = 600.0
    at_least: int = 0
    compare: bool = False
    mode: str = "auto"
    by_conversation: bool = False
    id: str = ""
    began: float = 0.0
    attempts: int = 0
    back: bool = False
    blame: bool = False
    fresh: bool = False
    again: bool = False
    why: str = "asked for"


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill leaves as it found it: the record, and where the label that the model follows
    points. `name` and `version` are what served, as the store has it; `name` is empty for what is
    not in the store. `spoils`: the drill may have put that in quarantine."""

    choice: Choice
    former: tuple[Choice, ...]
    name: str = ""
    version: int = 0
    label: str = ""
    number: int = 0
    spoils: bool = False


class Deployed(msgspec.Struct, frozen=True):
    """`configured` is what the configuration said when `choice` was made; once it says something
    else, that counts. `before` is for the next daemon, should this one end in the middle of a
    drill."""

    configured: str
    choice: Choice
    former: tuple[Choice, ...] = ()
    pending: Ask | None = None
    before: Before | None = None

    def restored(self) -> Deployed:
        """As it was before the drill, if there was one."""
        if (before := self.before) is None:
            return self
        return msgspec.structs.replace(
            self, choice=before.choice, former=before.former, pending=None, before=None
        )


class Record:
    """Kept in memory; `load` and `save` touch the disk and block. `interrupted` is what drills left
    behind of which a former daemon did not see the end: in `models` they have not been."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE
        self._unreadable = False
        self.models: dict[str, Deployed] = {}
        self.interrupted: dict[str, Before] = {}

    def load(self) -> None:
        """Changes nothing on the disk. Of what can't be read the configuration counts, and nothing
        else."""
        try:
            with self._file.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            found = msgspec.json.decode(data, type=dict[str, Deployed])
            self.interrupted = {
                name: one.before for name, one in found.items() if one.before is not None
            }
            self.models = {name: one.restored() for name, one in found.items()}
        except FileNotFoundError:
            self.models = {}
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
            # A ValueError is what bytes within a string are that are no UTF-8.
            log.error("%s can't be read, the configuration counts: %s", self._file, error)
            self._unreadable = True
            self.models = {}

    def found(self, name: str, configured: str) -> Deployed | None:
        """What is recorded of a model under this configuration."""
        found = self.models.get(name)
        return found if found is not None and found.configured == configured else None

    def of(self, name: str, settings: ModelSettings) -> Deployed:
        """What counts for a model: what is recorded, and if nothing of that can be had, or the
        configuration has changed, what is configured."""
        configured = fingerprint(settings)
        found = self.found(name, configured)
        if found is None:
            return Deployed(configured, AS_CONFIGURED)
        # What was chosen may be gone by now, and all that was before it.
        return msgspec.structs.replace(found, former=(AS_CONFIGURED, *found.former))

    def save(self, models: dict[str, Deployed]) -> None:
        """Raises `OSError`, and then nothing has changed. What could not be read is put aside."""
        if self._unreadable:
            with contextlib.suppress(FileNotFoundError):
                self._file.rename(self._file.with_suffix(".unreadable"))
            self._unreadable = False
        durable.replace(self._file, msgspec.json.format(msgspec.json.encode(models), indent=1))
        self.models = models


def fingerprint(settings: ModelSettings) -> str:
    """What of a model's settings says which version, variant and plugin it is."""
    said: list[Any] = [settings.source, settings.plugin, list(settings.variants)]
    return msgspec.json.encode(said).decode()

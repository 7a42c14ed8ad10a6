"""Which releases of a model answer its new requests: the one in service, and for a while a second
one that is on trial. What is under way stays where it began."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hxd.daemon.request.admit import Gate
from hxd.daemon.store.sources import Source

WHOLE = 1 << 32


@dataclass(frozen=True)
class Outcome:
    """How one sequence went on one release. `fault` is a word for what failed, None when nothing
    did. `first_token` in seconds from the sending, `pace` in tokens per second of the whole time;
    None where they were not seen. `empty`: it ended by itself and said nothing; None where that
    can't be told, as of vectors."""

    fault: str | None
    first_token: float | None = None
    pace: float | None = None
    empty: bool | None = None


@dataclass(frozen=True)
class Asker:
    """Who sends a request. `key` is the id of the caller's key, or empty; `conversation` gives what
    all turns of one conversation have in common."""

    key: str = ""
    conversation: Callable[[], bytes] = bytes

    def part(self, salt: str, *, by_conversation: bool = False) -> float:
        """A number from 0 to below 1, always the same for the same asker and `salt`."""
        if self.key and not by_conversation:
            who = b"key\0" + self.key.encode()
        else:
            who = b"conversation\0" + self.conversation()
        digest = hashlib.blake2b(who, key=salt.encode()[:64], digest_size=4).digest()
        return int.from_bytes(digest, "big") / WHOLE


NOBODY = Asker()


@dataclass
class Tally:
    """How many sequences have gone how; those that say something about the release."""

    requests: int = 0
    failed: int = 0


@dataclass(eq=False)
class Served:
    """One release in service; `tokenizing` is its line for `/tokenize`, `deployment` the model's,
    once it has one. `tally` counts since it came up; `heard` is told how each sequence went, while
    anybody wants to know."""

    source: Source
    gate: Gate
    tokenizing: Gate | None = None
    deployment: Deployment | None = None
    heard: Callable[[Outcome], None] | None = None
    tally: Tally = field(default_factory=Tally)

    def report(self, outcome: Outcome) -> None:
        """Of a sequence that has ended here, or has had to leave."""
        self.tally.requests += 1
        self.tally.failed += outcome.fault is not None
        if self.heard is not None:
            self.heard(outcome)

    def headers(self) -> dict[str, str]:
        return {
            "x-hxd-model": self.source.name,
            "x-hxd-version": str(self.source.version),
            "x-hxd-variant": self.source.variant,
        }

    @property
    def successor(self) -> Served | None:
        """The release that is in service instead of this one."""
        current = self.deployment.current if self.deployment is not None else self
        return current if current is not self else None

    @property
    def refuge(self) -> Served | None:
        """The other release of the model that can answer now: what one on trial is measured by, or
        what was in service before."""
        if self.deployment is None:
            return None
        found = self.successor or self.deployment.warm
        return found if found is not None and found.gate.able() else None


@dataclass(frozen=True)
class Trial:
    """`share` of the askers, 0 to 1, get `served`; which ones follows from `salt`."""

    served: Served
    share: float
    salt: str
    by_conversation: bool = False


@dataclass(eq=False)
class Deployment:
    """One model as its clients know it. `others` have workers but get no new requests unless they
    are asked for by version: what comes up, drains, or is kept `warm` to take over again."""

    name: str
    current: Served
    trial: Trial | None = None
    warm: Served | None = None
    others: list[Served] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current.deployment = self

    def chain(self, asker: Asker) -> list[Served]:
        """The releases that may answer, best first."""
        trial = self.trial
        if trial is None or trial.served.gate.hopeless:
            return [self.current]
        part = asker.part(trial.salt, by_conversation=trial.by_conversation)
        return [trial.served, self.current] if part < trial.share else [self.current]

    def releases(self) -> Iterator[Served]:
        """Everything of it that has workers, the one in service first."""
        yield self.current
        if self.trial is not None:
            yield self.trial.served
        yield from self.others

    def adopt(self, served: Served) -> None:
        """One more that has workers, and gets no new requests yet."""
        served.deployment = self
        self.others.append(served)

    def shift(self, served: Served) -> Served:
        """From now on new requests go to `served`; the one that they went to so far."""
        former = self.current
        self.forget(served)
        if self.warm is served:
            self.warm = None
        self.current = served
        self.others.append(former)
        return former

    def begin(self, trial: Trial) -> None:
        self.forget(trial.served)
        self.trial = trial

    def end(self) -> None:
        """No more new requests for the one on trial."""
        if self.trial is not None:
            served, self.trial = self.trial.served, None
            self.others.append(served)

    def forget(self, served: Served) -> None:
        """It has no part in the model any more, or another one."""
        if served in self.others:
            self.others.remove(served)
        if self.trial is not None and self.trial.served is served:
            self.trial = None
        if self.warm is served:
            self.warm = None

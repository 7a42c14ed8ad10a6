"""What a drill reports: what its requests noticed, and whether hxd has kept its promise."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# DESIGN 6: the next token within so many seconds, beyond the model's usual time for one.
PROMISED_PAUSE = 0.5
MOST_PROBLEMS = 10


class Fault(enum.StrEnum):
    KILL = "kill"  # SIGKILL
    STALL = "stall"  # SIGSTOP
    SLOW = "slow"  # stopped more than half of the time, for a while
    GARBAGE = "garbage"  # bytes that are no frame come from its socket
    SWAP = "swap"  # another version in service, and back
    CORRUPT = "corrupt"  # killed, and the file that it loads has a flipped byte


@dataclass
class Report:
    """What the drill's requests noticed. Times in seconds; `full_strength` is how long it took
    until as many replicas were ready as before, None if that was not seen. `different` answers are
    whole, but not what the same release gave to the same prompt before; `mixed` ones have parts of
    several releases. `answered` counts whole answers by the key of the release that gave them,
    `names` says which version that is."""

    fault: str
    model: str
    victim: str
    requests: int = 0
    failed: int = 0
    different: int = 0
    mixed: int = 0
    failovers: int = 0
    usual_pause: float = 0.0
    longest_pause: float = 0.0
    full_strength: float | None = None
    problems: list[str] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether hxd has done what it promises."""
        pause = self.longest_pause - self.usual_pause
        return not self.failed and not self.different and pause <= PROMISED_PAUSE

    def trouble(self, what: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(what)

    def body(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "model": self.model,
            "victim": self.victim,
            "requests": self.requests,
            "failed": self.failed,
            "different": self.different,
            "failovers": self.failovers,
            "usual_pause_seconds": round(self.usual_pause, 4),
            "longest_pause_seconds": round(self.longest_pause, 4),
            "promised_pause_seconds": PROMISED_PAUSE,
            "full_strength_seconds": self.full_strength and round(self.full_strength, 2),
            "promise_kept": self.kept,
            "problems": self.problems,
        }

    def _answers(self) -> dict[str, Any]:
        rows = [
            {"release": key, "serves": self.names[key], "answers": count}
            for key, count in self.answered.items()
        ]
        return {"answered_by": rows, "mixed": self.mixed}


@dataclass
class SwapReport(Report):
    """`target` is what was swapped to, `swap` and `rollback` how long each took; None for what has
    not come about. `yielded`: there was no room for both, so requests had to wait, and no pause is
    promised. `passed_over` says why what would have been the better choice was not taken."""

    target: str = ""
    swap: float | None = None
    rollback: float | None = None
    yielded: bool = False
    restored: bool = False
    passed_over: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        went = self.swap is not None and self.rollback is not None and self.restored
        pause = self.yielded or self.longest_pause - self.usual_pause <= PROMISED_PAUSE
        return went and pause and not (self.failed or self.different or self.mixed)

    def body(self) -> dict[str, Any]:
        return (
            super().body()
            | {"promised_pause_seconds": None if self.yielded else PROMISED_PAUSE}
            | self._answers()
            | {
                "target": self.target,
                "swap_seconds": self.swap and round(self.swap, 2),
                "rollback_seconds": self.rollback and round(self.rollback, 2),
                "as_before": self.restored,
                "passed_over": self.passed_over,
            }
        )


@dataclass
class CorruptReport(Report):
    """`spoiled` says which byte of a copy of which file was flipped, `refusal` what the checksum
    said of it and `refused` when; None if the file was let in. `quarantine` is what the version's
    mark said until the drill lifted it, None if there was none. Where no replica is left, another
    version may end what one began; that is no broken promise, and clients are told."""

    spoiled: str = ""
    refusal: str | None = None
    refused: float | None = None
    quarantine: str | None = None
    restored: bool = False

    @property
    def kept(self) -> bool:
        return super().kept and self.refusal is not None and self.restored

    def body(self) -> dict[str, Any]:
        return (
            super().body()
            | self._answers()
            | {
                "spoiled": self.spoiled,
                "refusal": self.refusal,
                "refused_seconds": self.refused and round(self.refused, 2),
                "quarantine": self.quarantine,
                "as_before": self.restored,
            }
        )

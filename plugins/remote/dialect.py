"""What one server has been found not to understand, and how to ask it instead. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Sent without the client having asked for them, so they may be left out without its knowledge.
UNASKED = ("seed", "stream_options", "encoding_format")
LIMIT, LONG_LIMIT = "max_tokens", "max_completion_tokens"
_UNKNOWN = re.compile(
    r"unknown|unsupported|unrecogni[sz]ed|unexpected|extra|not (?:be )?(?:supported|permitted"
    r"|allowed|accepted|implemented|understood|a valid|recogni[sz]ed)|does(?: not|n't) support"
    r"|only (?:allowed|supported)",
    re.I,
)


@dataclass(frozen=True)
class Dialect:
    """`omit`: fields that are never sent. `limit`: the name of the field with most new tokens."""

    omit: frozenset[str] = frozenset()
    limit: str = LIMIT

    def spoken(self, asked: dict[str, Any]) -> dict[str, Any]:
        """`asked` as this server wants to hear it."""
        spoken = {name: value for name, value in asked.items() if name not in self.omit}
        if self.limit != LIMIT and LIMIT in spoken:
            spoken[self.limit] = spoken.pop(LIMIT)
        return spoken

    def without(self, sent: Mapping[str, Any], refusal: str) -> Dialect | None:
        """The dialect to try after `refusal`, the server's answer of status 400 or 422 to `sent`;
        None when it is about something else."""
        learnt = self
        if LIMIT in sent and LONG_LIMIT in refusal:
            learnt = replace(learnt, limit=LONG_LIMIT)
        if _UNKNOWN.search(refusal):
            found = {name for name in UNASKED if name in sent and _mentions(refusal, name)}
            learnt = replace(learnt, omit=learnt.omit | found)
        return None if learnt == self else learnt


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){name}(?!\w)", text) is not None

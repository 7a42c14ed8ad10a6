"""Handlers of `/admin/v1` for versions in service: swap, canary, promote, roll back, events."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import msgspec
from aiohttp import web

from hxd.config import kinds
from hxd.daemon.admin.answer import answer, decoded
from hxd.daemon.events import Events
from hxd.daemon.rollout.record import Ask
from hxd.daemon.rollout.rollouts import Rollouts
from hxd.daemon.store.faults import BadName, NotThere
from hxd.daemon.store.reference import version_number
from hxd.daemon.store.sources import QUANTIZABLE, Choice
from hxd.daemon.store.stores import Stores
from hxd.errors import CallerError

LONGEST = 30 * 86400.0
_seconds = kinds.seconds(1, LONGEST)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)\s*%")


class NewRollout(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`version` is a number, a label, a variant, or VARIANT@VERSION; what is not named stays as it
    is. `canary` is a share such as 0.1 or "10%"; `ab` keeps both versions side by side at that
    share and decides nothing. `time` is in seconds, or "10m"."""

    model: str
    version: str | int | None = None
    plugin: str | None = None
    mode: str = "auto"
    canary: float | str | None = None
    ab: bool = False
    time: float | str = 600.0
    at_least: int = 0
    sticky: str = "key"


class Named(msgspec.Struct, forbid_unknown_fields=True):
    model: str


class RolloutApi:
    def __init__(self, rollouts: Rollouts, events: Events, stores: Stores) -> None:
        self._rollouts = rollouts
        self._events = events
        self._stores = stores

    async def list(self, request: web.Request) -> web.Response:
        return answer([rollout.body() for rollout in self._rollouts.all()])

    async def begin(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), NewRollout)
        rollout = await self._rollouts.begin(await self._ask(asked))
        return answer(rollout.body(), 202)

    async def roll_back(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Named)
        rollout = await self._rollouts.roll_back(asked.model, "rolled back by an operator")
        return answer(rollout.body(), 202)

    async def promote(self, request: web.Request) -> web.Response:
        asked = decoded(await request.read(), Named)
        return answer(self._rollouts.promote(asked.model).body(), 202)

    async def events(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        if not since.isdecimal() or len(since) > 15:
            raise CallerError("since: the number of an event", param="since")
        subject = request.query.get("subject")
        found = self._events.since(int(since), subject)
        return answer([msgspec.to_builtins(event) for event in found])

    async def _ask(self, asked: NewRollout) -> Ask:
        if asked.mode not in ("auto", "availability", "resource"):
            raise CallerError("mode: auto, availability or resource", param="mode")
        if asked.sticky not in ("key", "conversation"):
            raise CallerError("sticky: key or conversation", param="sticky")
        if asked.ab and asked.canary is None:
            raise CallerError("ab needs the share of the second version: canary", param="canary")
        if asked.version is None and asked.plugin is None:
            raise CallerError("name a version, a variant or a plugin", param="version")
        if not 0 <= asked.at_least <= 1_000_000_000:
            raise CallerError("at_least: 0 to a milliard requests", param="at_least")
        try:
            seconds = _seconds(asked.time)
        except ValueError as error:
            raise CallerError(f"time: {error}", param="time") from None
        return Ask(
            model=asked.model,
            choice=await self._choice(asked),
            share=None if asked.canary is None else share(asked.canary),
            seconds=seconds,
            at_least=asked.at_least,
            compare=asked.ab,
            mode=asked.mode,
            by_conversation=asked.sticky == "conversation",
        )

    async def _choice(self, asked: NewRollout) -> Choice:
        """What is named, and the rest as it is in service now."""
        now = self._rollouts.choice(asked.model)
        version, variant = now.version, now.variant
        if asked.version is not None:
            first, at, last = str(asked.version).strip().lstrip(":").partition("@")
            if at:
                variant, number = first or variant, last
            elif first in QUANTIZABLE or first == "f32":
                variant, number = first, ""
            else:
                number = first
            if number:
                version = await self._number(asked.model, number)
        return Choice(version, variant, asked.plugin or now.plugin)

    async def _number(self, model: str, text: str) -> int:
        with contextlib.suppress(BadName):
            return version_number(text)
        shelf = self._rollouts.shelf(model)
        labels = {} if shelf is None else await asyncio.to_thread(self._stores.models.labels, shelf)
        if text not in labels:
            raise NotThere(
                f"{model!r} has no version or label {text[:80]!r}; labels: "
                f"{', '.join(sorted(labels)) or 'none'}",
                param="version",
            )
        return labels[text]


def share(value: float | str) -> float:
    """0 to 1, from a number or "10%"; raises `CallerError`."""
    found: Any = value
    if isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        found = float(match[1]) / 100
    if not isinstance(found, int | float) or not 0 < found < 1:
        raise CallerError(
            f"canary: a share between 0 and 1, or a percentage such as 10%, not {value!r}",
            param="canary",
        )
    return float(found)

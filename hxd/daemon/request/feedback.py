"""What clients say of answers, for whoever compares two versions. Bounded; remembers which release
gave an answer only while a model has one on trial."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec
from aiohttp import web

from hxd.config.live import Live
from hxd.daemon.request import reply, transfer
from hxd.daemon.request.deployment import Served
from hxd.errors import CallerError

MOST = 10_000  # answers; the oldest go first


class NewFeedback(msgspec.Struct, forbid_unknown_fields=True):
    """`id` is an answer's; `good` what its reader thought of it."""

    id: str
    good: bool


class Feedback:
    """`tell` takes the release and what was said; each answer is judged once."""

    def __init__(self, tell: Callable[[Served, bool], None], live: Live) -> None:
        self._tell = tell
        self._live = live
        self._answers: OrderedDict[str, Served] = OrderedDict()

    def answered(self, id: str, served: Served) -> None:
        deployment = served.deployment
        if deployment is None or deployment.trial is None:
            return
        self._answers[id] = served
        if len(self._answers) > MOST:
            self._answers.popitem(last=False)

    async def say(self, request: web.Request) -> web.Response:
        body = await transfer.read(request, self._live.limits)
        try:
            asked = msgspec.json.decode(body, type=NewFeedback)
        except msgspec.DecodeError as error:
            raise CallerError(str(error)) from None
        served = self._answers.pop(asked.id, None)
        if served is not None:
            self._tell(served, asked.good)
        return web.Response(
            status=202,
            body=reply.json_bytes({"counted": served is not None}),
            content_type="application/json",
        )

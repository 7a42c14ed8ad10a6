"""Requests to one OpenAI-compatible server: tried, tried again where that is right, and counted."""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
from collections.abc import Callable

import msgspec

from hxd import wire
from hxd.hookspecs import LoadRequest, ModelInfo, RelayFailed, RequestRefused

from .client import Client
from .exchange import Exchange, Out
from .faults import Failure, KeyRefused, Reader
from .key import Key
from .options import Options
from .retry import Budget, pause

CHECK_SECONDS = 3.0  # for the list of models, once, when the worker starts
CHECK_LIMIT = 8 << 20  # bytes of that list; the longest known is somewhat over 1 MB


class Listed(msgspec.Struct):
    id: str


class Models(msgspec.Struct):
    data: list[Listed]


_models = msgspec.json.Decoder(Models)


class Remote:
    """A `hookspecs.Relay`. All requests of a worker share the budget for second tries."""

    def __init__(
        self,
        options: Options,
        key: Key | None,
        trusted: ssl.SSLContext | bool,
        rng: random.Random,
    ) -> None:
        self._options = options
        self._key = key
        self._trusted = trusted
        self._random = rng
        self._budget = Budget()
        self._retries = 0
        self._failures = 0
        self._client: Client
        self._exchange: Exchange

    async def open(self, request: LoadRequest) -> ModelInfo:
        """Looks once whether the server is there, and does not mind if it is not."""
        model = self._options.model or request.model
        hide = self._key.hide if self._key else str
        reader = Reader(self._options.place, model, hide)
        self._client = Client(self._options, self._key, self._trusted, reader)
        self._exchange = Exchange(self._options, model, self._client, reader)
        return ModelInfo(
            context=request.context,
            # Equal to no other, since no token ids come from here that could go elsewhere.
            vocab=f"remote-{secrets.token_hex(16)}",
            details={
                "url": self._options.url,
                "model": model,
                "server at start": await self._check(model),
            },
            capabilities=self._options.capabilities,
        )

    async def _check(self, model: str) -> str:
        """What the list of models says, in words; costs nothing at any provider."""
        try:
            async with await self._client.get(
                self._options.url + "/models", CHECK_SECONDS
            ) as reply:
                listed = _models.decode(await reply.whole(CHECK_LIMIT))
        except (RelayFailed, RequestRefused) as error:
            return str(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "answers"
        if model in {one.id for one in listed.data}:
            return "answers"
        return f"answers, and does not list the model {model!r}"

    async def relay(self, request: wire.Request, emit: Callable[[wire.Frame], None]) -> wire.Done:
        if isinstance(request, wire.Generate) and request.resume:
            raise RelayFailed(
                "an answer that another worker began can't be continued by a remote server"
            )
        self._budget.active += 1
        try:
            return await self._persist(request, Out(emit))
        finally:
            self._budget.active -= 1

    async def _persist(self, request: wire.Request, out: Out) -> wire.Done:
        """Tries until an answer, a failure that stays, or the end of patience."""
        attempt = 0
        permitted = renewed = False
        try:
            while True:
                try:
                    return await self._exchange.run(request, out)
                except KeyRefused:
                    if renewed or self._key is None or not self._key.renew():
                        raise
                    renewed = True
                    continue
                except Failure as failure:
                    wait = self._wait(failure, attempt, out)
                    permitted = permitted or (wait is not None and self._budget.take())
                    if wait is None or not permitted:
                        self._failures += 1
                        raise
                self._retries += 1
                attempt += 1
                await asyncio.sleep(wait)
        finally:
            if permitted:
                self._budget.give()

    def _wait(self, failure: Failure, attempt: int, out: Out) -> float | None:
        """Seconds before the next try, None for no next one."""
        if out.sent or not failure.transient or attempt >= self._options.retries:
            return None
        return pause(attempt, failure.retry_after, self._random)

    def gauges(self) -> dict[str, float]:
        return {
            "remote_up": float(self._client.up),
            "remote_active": float(self._budget.active),
            "remote_retries": float(self._retries),
            "remote_failures": float(self._failures),
        }

    async def close(self) -> None:
        await self._client.close()

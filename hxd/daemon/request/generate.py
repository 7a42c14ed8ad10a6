"""Composes the steps of one generating request; the only place that knows their order."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from hxd import wire
from hxd.config.live import Live
from hxd.daemon.request import receive, reply, transfer
from hxd.daemon.request.call import Call, Piece
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.deployment import Asker, Served
from hxd.daemon.request.feedback import Feedback
from hxd.daemon.request.setting import Setting
from hxd.daemon.store.sources import Source
from hxd.errors import HxdError, Unavailable

SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Tells nginx not to collect the events.
    "X-Accel-Buffering": "no",
}
_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class Work:
    """A request as it goes to the workers and how its answer is worded."""

    chain: list[Served]
    orders: list[wire.Generate]
    shape: reply.Shape
    stream: bool
    with_usage: bool
    choices_per_prompt: int


class Generation:
    """Serves both completion endpoints."""

    def __init__(
        self, abilities: Abilities, setting: Setting, live: Live, feedback: Feedback
    ) -> None:
        self._feedback = feedback
        self._abilities = abilities
        self._setting = setting
        self._live = live

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = receive.parse_chat(await transfer.read(request, self._live.limits))
        order = wire.Generate(
            id=0,
            seed=0,
            messages=receive.plain_messages(asked),
            tools=receive.tools(asked),
            template=asked.chat_template_kwargs or {},
        )
        limit = asked.max_completion_tokens or asked.max_tokens
        work = self._work(request, asked, [order], limit)
        return await self._answer(request, work)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = receive.parse_completion(await transfer.read(request, self._live.limits))
        orders = [
            wire.Generate(
                id=0,
                seed=0,
                text=prompt if isinstance(prompt, str) else None,
                tokens=prompt if isinstance(prompt, list) else None,
                echo=bool(asked.echo),
                suffix=asked.suffix or None,
            )
            for prompt in receive.prompts(asked)
        ]
        # 16 is OpenAI's default for text completions; chat has none.
        limit = 16 if asked.max_tokens is None else asked.max_tokens
        work = self._work(request, asked, orders, limit)
        return await self._answer(request, work)

    def _work(
        self,
        request: web.Request,
        asked: receive.ChatRequest | receive.CompletionRequest,
        orders: list[wire.Generate],
        limit: int | None,
    ) -> Work:
        asker = Asker(request.get("key", ""), partial(_conversation, orders))
        chain = self._abilities.find(asked.model, "generate", asker)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed & _SEED_MASK
        choices = asked.n or 1
        sampling, constraint = receive.sampling(asked), receive.constraint(asked)
        for order in orders:
            order.sampling = sampling
            order.max_tokens = limit
            order.stop = receive.stop_strings(asked)
            order.constraint = constraint
            order.logprobs = receive.logprobs(asked)
            if any(served.source.settings.prefix_cache == "per_key" for served in chain):
                order.cache = request.get("key", "")
        spread = [
            msgspec.structs.replace(orders[index // choices], seed=(seed + index) & _SEED_MASK)
            for index in range(len(orders) * choices)
        ]
        chat = isinstance(asked, receive.ChatRequest)
        prefix = "chatcmpl" if chat else "cmpl"
        shape = reply.Shape(
            chat=chat,
            id=f"{prefix}-{secrets.token_hex(12)}",
            created=int(self._setting.clock.wall()),
            model=chain[0].source.name,
        )
        options = asked.stream_options
        return Work(
            chain=chain,
            orders=spread,
            shape=shape,
            stream=bool(asked.stream),
            with_usage=bool(options and options.include_usage),
            choices_per_prompt=choices,
        )

    async def _answer(self, request: web.Request, work: Work) -> web.StreamResponse:
        request["model"] = work.chain[0].source.name
        call = Call(
            self._setting,
            work.chain,
            work.orders,
            work.choices_per_prompt,
            whole=not work.stream,
        )
        usage = reply.Usage(work.choices_per_prompt)
        async with contextlib.aclosing(call.pieces()) as pieces:
            if work.stream:
                response = await self._stream(request, work, call, pieces, usage)
            else:
                response = await self._whole(work, call, pieces, usage)
        request["model"] = call.served.source.name
        self._feedback.answered(work.shape.id, call.served)
        self._setting.metrics.of(call.served.source.name).prompted(usage.prompt_total)
        call.count_untold(usage.completion)
        return response

    async def _whole(
        self,
        work: Work,
        call: Call,
        pieces: AsyncGenerator[list[Piece], None],
        usage: reply.Usage,
    ) -> web.Response:
        choices = [reply.Choice(index) for index in range(len(work.orders))]
        async for batch in pieces:
            for piece in batch:
                choices[piece.index].add(piece)
                if piece.finish is not None:
                    usage.add(piece)
        shape = replace(work.shape, model=call.served.source.name)
        return web.Response(
            body=reply.json_bytes(shape.whole(choices, usage, _disclosed(call))),
            content_type="application/json",
            headers=_headers(call),
        )

    async def _stream(
        self,
        request: web.Request,
        work: Work,
        call: Call,
        pieces: AsyncGenerator[list[Piece], None],
        usage: reply.Usage,
    ) -> web.StreamResponse:
        """Headers go out with the first piece, so that what fails before it has a status."""
        first = await anext(pieces)
        response = web.StreamResponse(headers={**SSE_HEADERS, **_headers(call)})
        shape = replace(work.shape, model=call.served.source.name)
        disclose = partial(_disclosed, call, call.served)
        chunks = reply.Chunks(shape, usage, with_usage=work.with_usage, disclose=disclose)
        with transfer.leaving(request):
            await response.prepare(request)
            try:
                await transfer.write(request, response, chunks.of(first), self._live.limits)
                async for batch in pieces:
                    await transfer.write(request, response, chunks.of(batch), self._live.limits)
                await transfer.write(request, response, chunks.end(), self._live.limits)
            except HxdError as error:
                request["status"] = error.status
                await transfer.write(request, response, reply.error_event(error), self._live.limits)
            await response.write_eof()
        return response


def _headers(call: Call) -> dict[str, str]:
    return {**call.served.headers(), "x-hxd-replica": ",".join(sorted(call.replicas))}


def _disclosed(call: Call, headed: Served | None = None) -> dict[str, Any]:
    """What is only known at the end of an answer: `model` and `replicas` are who has worked on it,
    which `x-hxd-model` and `x-hxd-replica` can't say of those who came later; `version` and
    `variant` are those of the last one, and `versions` is there when they were several, or when
    the headers named another one, `headed`."""
    source = call.served.source
    said: dict[str, Any] = {
        "failovers": call.failovers,
        "model": source.name,
        "version": source.version,
        "variant": source.variant,
        "replicas": sorted(call.replicas),
    }
    releases = call.releases
    if headed is not None and headed not in releases:
        releases = [headed, *releases]
    if len(releases) > 1:
        said["versions"] = _named([one.source for one in releases])
    return said


def _named(sources: list[Source]) -> list[str]:
    """NAME:VARIANT@VERSION of each, and the plugin where that tells them apart."""
    names = [one.reference for one in sources]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({one.plugin.reference})" for name, one in zip(names, sources, strict=True)]


def _conversation(orders: list[wire.Generate]) -> bytes:
    """What all turns of a conversation begin with: system prompt and first message of the user."""
    order = orders[0]
    if order.messages:
        first = next((m for m in order.messages if m.role == "user"), order.messages[0])
        return repr((order.messages[0].content, first.content)).encode("utf-8", "replace")
    text = order.text if order.text is not None else repr(order.tokens)
    return text[:256].encode("utf-8", "replace")


def draining(retry_after: float) -> Unavailable:
    return Unavailable(
        "the server is shutting down", code="draining", retry_after=max(1.0, retry_after)
    )

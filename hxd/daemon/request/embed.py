"""Serves `/v1/embeddings` and `/v1/rerank`; the only place that knows the order of their steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from hxd import wire
from hxd.config.live import Live
from hxd.daemon.request import receive_inputs, reply, transfer, vectors
from hxd.daemon.request.capable import Abilities
from hxd.daemon.request.deployment import Asker, Served
from hxd.daemon.request.inquiry import Inquiry, Reply, along
from hxd.daemon.request.receive_inputs import RerankRequest
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.vectors import Render, Vectors

# About 1.5 ms of rendering, after which other requests get their turn.
TURN_FLOATS = 1 << 15
# Beyond it an answer goes out as it is rendered, 64 KiB and more at a time: as JSON it is some 20
# bytes per number, and a call may have millions.
WHOLE_FLOATS = 1 << 16


class Embeddings:
    """A call takes one place of its model, however many inputs it has: they share batches with
    those of other calls."""

    def __init__(self, abilities: Abilities, setting: Setting, live: Live) -> None:
        self._abilities = abilities
        self._setting = setting
        self._live = live

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_embeddings(await transfer.read(request, self._live.limits))
        inputs = receive_inputs.inputs(asked)
        served, answer = await self._ask(
            request,
            asked.model,
            "embed",
            lambda id: wire.Embed(id, list(inputs)),
            len(inputs),
            asked.dimensions,
        )
        render = vectors.FORMATS[asked.encoding_format or "float"]
        headers = _headers(served, answer)
        if answer.found.floats > WHOLE_FLOATS:
            return await self._send_parts(request, served, answer, render, headers)
        parts = vectors.parts(answer.found, render, served.source.name, answer.tokens)
        return web.Response(body=b"".join(parts), content_type="application/json", headers=headers)

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        asked = receive_inputs.parse_rerank(await transfer.read(request, self._live.limits))
        documents = receive_inputs.documents(asked)
        served, answer = await self._ask(
            request,
            asked.model,
            "rank",
            lambda id: wire.Rank(id, asked.query, documents),
            len(documents),
        )
        body = _ranking(asked, documents, answer.found.scores(), served, answer.tokens)
        return web.Response(
            body=reply.json_bytes(body),
            content_type="application/json",
            headers=_headers(served, answer),
        )

    async def _ask(
        self,
        request: web.Request,
        model: str | None,
        capability: str,
        frame: Callable[[int], wire.Request],
        count: int,
        dimensions: int | None = None,
    ) -> tuple[Served, Reply[Vectors]]:
        asker = Asker(request.get("key", ""), lambda: repr(frame(0)).encode()[:4096])
        chain = self._abilities.find(model, capability, asker)
        request["model"] = chain[0].source.name

        async def ask(served: Served) -> Reply[Vectors]:
            inquiry = Inquiry(
                self._setting,
                served,
                served.gate,
                frame,
                partial(Vectors, count, dimensions),
                partial(self._abilities.confirm, served, capability),
            )
            answer = await inquiry.reply()
            answer.found.check()
            return answer

        served, answer = await along(chain, ask)
        request["model"] = served.source.name
        self._setting.metrics.of(served.source.name).prompted(answer.tokens)
        return served, answer

    async def _send_parts(
        self,
        request: web.Request,
        served: Served,
        answer: Reply[Vectors],
        render: Render,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", **headers})
        each = max(1, TURN_FLOATS // answer.found.dimension)
        held: list[bytes] = []
        with transfer.leaving(request):
            await response.prepare(request)
            for part in vectors.parts(answer.found, render, served.source.name, answer.tokens):
                held.append(part)
                if len(held) == each:
                    await transfer.write(request, response, b"".join(held), self._live.limits)
                    await asyncio.sleep(0)
                    held.clear()
            await transfer.write(request, response, b"".join(held), self._live.limits)
            await response.write_eof()
        return response


def _headers(served: Served, answer: Reply[Any]) -> dict[str, str]:
    return {**served.headers(), "x-hxd-replica": answer.replica.id}


def _ranking(
    asked: RerankRequest, documents: list[str], scores: list[float], served: Served, tokens: int
) -> Any:
    """Jina's object, or Text Embeddings Inference's list where the request is in its words."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    if asked.documents is None:
        return [
            {"index": index, "score": scores[index]}
            | ({"text": documents[index]} if asked.return_text else {})
            for index in order
        ]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": documents[index]}} if asked.return_documents else {})
        for index in order
    ]
    return {
        "object": "list",
        "model": served.source.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }

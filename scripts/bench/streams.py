"""One client of `/v1/completions`: what it asks, and when which piece of the answer arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from .stats import gaps


@dataclass
class Stream:
    """Times are `time.perf_counter()` in seconds; `arrivals` has one for each piece of text."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    first: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def first_token(self) -> float:
        """Seconds until the first piece of text."""
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> list[float]:
        return gaps(self.arrivals)


class Refused(Exception):
    """The server answered with something that is not a stream of text."""


@dataclass(frozen=True)
class Client:
    """Where to ask, and what this server wants in each request to go on to the last token."""

    session: aiohttp.ClientSession
    url: str
    extra: dict[str, Any]

    def body(self, prompt: str, tokens: int) -> dict[str, Any]:
        return {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }

    async def run(self, prompt: str, tokens: int, stream: Stream | None = None) -> Stream:
        """The whole answer. A `stream` that is given can be watched meanwhile."""
        stream = stream or begin()
        finish = None
        async for event in self._events(prompt, tokens):
            for choice in event.get("choices") or ():
                if choice.get("text"):
                    stream.arrivals.append(time.perf_counter())
                    stream.first.set()
                finish = choice.get("finish_reason") or finish
            if usage := event.get("usage"):
                stream.tokens = usage["completion_tokens"]
                stream.prompt_tokens = usage["prompt_tokens"]
        stream.ended = time.perf_counter()
        if not stream.arrivals:
            raise Refused("the answer has no text")
        # llama_cpp.server says nothing of usage in streams, but why it ended.
        stream.tokens = stream.tokens or (tokens if finish == "length" else len(stream.arrivals))
        return stream

    async def leave(self, prompt: str, tokens: int) -> None:
        """Wait for the first piece of text, then close the connection."""
        async for event in self._events(prompt, tokens):
            if any(choice.get("text") for choice in event.get("choices") or ()):
                return
        raise Refused("the answer has no text")

    def _events(self, prompt: str, tokens: int) -> AsyncIterator[dict[str, Any]]:
        return events(self.session, self.url + "/v1/completions", self.body(prompt, tokens))


async def events(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of one answer; raises `Refused`, and what aiohttp raises."""
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise Refused(f"{response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = msgspec.json.decode(line[6:])
                if "error" in event:
                    raise Refused(str(event["error"])[:300])
                yield event


def begin() -> Stream:
    return Stream(started=time.perf_counter())

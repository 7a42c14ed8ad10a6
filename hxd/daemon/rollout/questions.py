"""Asks one release golden prompts, and for vectors, the way every request goes: from the line to
the last token."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial

from hxd import wire
from hxd.daemon.request.call import Call, Piece
from hxd.daemon.request.deployment import Served
from hxd.daemon.request.inquiry import Inquiry, Reply
from hxd.daemon.request.setting import Setting
from hxd.daemon.request.vectors import Vectors
from hxd.daemon.rollout.golden import Golden, Outcome, Prompt, judge
from hxd.daemon.rollout.likeness import TEXTS, Vector, unpacked
from hxd.daemon.rollout.perplexity import PERPLEXITY_TEXT, perplexity
from hxd.errors import HxdError, QueueFull

# At once: the clients of the box shall hardly notice.
AT_ONCE = 2
LONGEST = 120.0  # seconds for one prompt
AGAIN = 0.2  # seconds until a line that was full is tried again


async def outcomes(setting: Setting, served: Served, golden: Golden) -> Mapping[str, Outcome]:
    """What came of each prompt, by its id."""
    room = asyncio.Semaphore(AT_ONCE)
    found: dict[str, Outcome] = {}

    async def one(prompt: Prompt) -> None:
        async with room:
            found[prompt.id] = await _outcome(setting, served, prompt)

    async with asyncio.TaskGroup() as group:
        for prompt in golden.prompts:
            group.create_task(one(prompt))
    return found


async def _outcome(setting: Setting, served: Served, prompt: Prompt) -> Outcome:
    order = wire.Generate(
        id=0,
        seed=0,
        messages=[wire.Message(role=role, content=content) for role, content in prompt.messages],
        sampling=wire.Sampling(temperature=0.0),
        max_tokens=prompt.max_tokens,
    )
    try:
        found = await _answer(setting, served, order)
    except (HxdError, TimeoutError):
        return judge(prompt, None, None)
    finish = next((piece.finish for piece in found if piece.finish), None)
    return judge(prompt, "".join(piece.text for piece in found), finish)


async def _answer(setting: Setting, served: Served, order: wire.Generate) -> list[Piece]:
    """Raises `HxdError` and `TimeoutError`. A full line says nothing about the release: another
    place is asked for until there is one."""
    async with asyncio.timeout(LONGEST):
        while True:
            found: list[Piece] = []
            call = Call(setting, [served], [order], whole=True, strict=True, guest=True)
            try:
                async with contextlib.aclosing(call.pieces()) as pieces:
                    async for batch in pieces:
                        found += batch
                return found
            except QueueFull:
                await setting.clock.sleep(AGAIN)


async def perplexity_of(setting: Setting, served: Served) -> float | None:
    """Of the fixed text; None where the backend has no log probabilities of a prompt's tokens, or
    the context is too short."""
    order = wire.Generate(
        id=0, seed=0, text=PERPLEXITY_TEXT, echo=True, logprobs=0, max_tokens=1, cache="perplexity"
    )
    try:
        pieces = await _answer(setting, served, order)
    except (HxdError, TimeoutError):
        return None
    count = sum(piece.prompt_tokens for piece in pieces)
    logprobs = [one.logprob for piece in pieces for one in piece.logprobs]
    # The first token has none, and the last one is the answer's.
    known = [min(0.0, logprob) for logprob in logprobs[:count] if logprob is not None]
    if len(known) < max(2, count - 2):
        return None
    found = perplexity(known)
    return round(found, 3) if math.isfinite(found) else None


async def vectors(setting: Setting, served: Served) -> list[Vector] | None:
    """Of fixed texts; None where it gives none."""
    try:
        async with asyncio.timeout(LONGEST):
            reply = await in_vectors(setting, served, lambda id: wire.Embed(id, list(TEXTS)))
        return unpacked(reply.found.rows())
    except (HxdError, TimeoutError):
        return None


async def in_vectors(
    setting: Setting, served: Served, frame: Callable[[int], wire.Request]
) -> Reply[Vectors]:
    """The answer to one question about `TEXTS`. Raises `HxdError`; a full line is tried again."""
    while True:
        inquiry = Inquiry(
            setting, served, served.gate, frame,
            partial(Vectors, len(TEXTS)), lambda replica: None,
        )  # fmt: skip
        try:
            reply = await inquiry.reply()
            reply.found.check()
            return reply
        except QueueFull:
            await setting.clock.sleep(AGAIN)


def generates(served: Served, setting: Setting) -> bool:
    """Whether there is anything to ask; a model for embeddings answers no prompts."""
    return _can(served, setting, "generate")


def embeds(served: Served, setting: Setting) -> bool:
    """Whether it is a model for embeddings; what generates may make vectors too, by the way."""
    return _can(served, setting, "embed") and not generates(served, setting)


def _can(served: Served, setting: Setting, capability: str) -> bool:
    replicas = setting.supervisor.replicas.get(served.source.key, ())
    said = [replica.loaded.capabilities for replica in replicas if replica.loaded is not None]
    return any(capability in capabilities for capabilities in said)

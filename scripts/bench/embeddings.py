"""What is asked of a server that turns texts into vectors."""

from __future__ import annotations

import time

from .prompts import Prompts
from .readings import Metric, Reading
from .serving import Running
from .stats import median
from .streams import Refused

TEXT_TOKENS = 12
BATCH = 64


async def embeddings(server: Running, prompts: Prompts, calls: int, label: str) -> list[Reading]:
    """`calls` short texts one after the other, then as many batches of 64 as take about as long."""
    await _embed(server, ["warm up"])
    single = []
    for number in range(calls):
        text = prompts.text(TEXT_TOKENS, label, "single", number)
        single.append(await _embed(server, [text]))
    batches = []
    for number in range(max(3, calls // 20)):
        texts = [prompts.text(TEXT_TOKENS, label, "batch", number, i) for i in range(BATCH)]
        batches.append(await _embed(server, texts))
    return [
        Reading("embeddings, one at a time", Metric.CALL, 1e3 * median(single)),
        Reading(f"embeddings, batch of {BATCH}", Metric.TEXTS, BATCH / median(batches)),
    ]


async def _embed(server: Running, texts: list[str]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    body = {"model": "bench", "input": texts}
    async with server.session.post(server.url + "/v1/embeddings", json=body) as response:
        if response.status != 200:
            raise Refused(f"{response.status}: {(await response.text())[:300]}")
        answer = await response.json()
    if len(answer["data"]) != len(texts):
        raise Refused(f"{len(answer['data'])} vectors for {len(texts)} texts")
    return time.perf_counter() - began

"""One real worker with the demo model, spoken to over its wire."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hxd import wire
from hxd.daemon.store import demo, plugins
from hxd.daemon.supervise.process import Program, WorkerProcess
from hxd.daemon.supervise.quantizer import quantize
from hxd.daemon.supervise.workers import PrepareError
from tests.support import Owner, ping

SLOTS = 4
_ids = itertools.count(1)


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    installed, _ = plugins.scan([plugins.builtin_folder()])
    plugin = plugins.choose("llama_cpp", "gguf", installed, {})
    owner = Owner()
    process = await WorkerProcess.spawn(Program("llama_cpp", plugin.folder, plugin.digest), owner)
    try:
        async with asyncio.timeout(60):
            assert isinstance(await owner.said.get(), wire.Hello)
            file = demo.find("builtin:demo").file
            process.link.send(wire.Load("m", str(file), 1024, SLOTS, 1, {}))
            assert isinstance(await owner.said.get(), wire.Loaded)
        yield process
    finally:
        process.kill()
        await process.wait()


async def generate(worker: WorkerProcess, **settings: Any) -> tuple[list[int], str, Any]:
    """Tokens, text and the last frame of one sequence."""
    answers: asyncio.Queue[Any] = asyncio.Queue()
    order = wire.Generate(
        id=next(_ids),
        seed=settings.pop("seed", 5),
        messages=[
            wire.Message("user", settings.pop("ask", "Tell me a story about Ada in London."))
        ],
        max_tokens=settings.pop("max_tokens", 60),
        stop=settings.pop("stop", []),
        resume=settings.pop("resume", []),
        sampling=wire.Sampling(ignore_eos=True, **settings),
    )
    worker.link.call(order, answers.put_nowait)
    tokens: list[int] = []
    text = ""
    async with asyncio.timeout(60):
        while isinstance(answer := await answers.get(), wire.Delta):
            tokens += answer.tokens
            text += answer.text
    return tokens, text, answer


async def test_a_resumed_sequence_ends_as_the_undisturbed_one(worker: WorkerProcess) -> None:
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}):
        tokens, text, done = await generate(worker, **settings)
        assert (done.finish, done.completion_tokens, len(tokens)) == ("length", 60, 60)
        for cut in (1, 25, 59):
            rest, tail, done = await generate(worker, resume=tokens[:cut], **settings)
            assert tokens[:cut] + rest == tokens
            assert text.endswith(tail)
            assert done.completion_tokens == 60


async def test_sequences_that_decode_together_do_not_change_each_other(
    worker: WorkerProcess,
) -> None:
    asks = [f"What is {a} + {b}?" for a, b in ((12, 13), (45, 50), (98, 99), (10, 11), (33, 44))]
    alone = [await generate(worker, ask=ask, temperature=0.0) for ask in asks]
    together = await asyncio.gather(*(generate(worker, ask=a, temperature=0.0) for a in asks))
    assert [tokens for tokens, _, _ in alone] == [tokens for tokens, _, _ in together]


async def test_a_resume_that_is_already_complete_ends_at_once(worker: WorkerProcess) -> None:
    tokens, text, _ = await generate(worker, temperature=0.0)
    rest, tail, done = await generate(worker, resume=tokens, temperature=0.0)
    assert (rest, tail, done.finish) == ([], "", "length")
    stop = text[10:13]
    _, before, done = await generate(worker, stop=[stop], temperature=0.0)
    assert (before, done.finish) == (text[: text.index(stop)], "stop")


async def test_a_cancelled_sequence_frees_its_slot(worker: WorkerProcess) -> None:
    endings: list[asyncio.Queue[Any]] = []
    for _ in range(SLOTS):
        answers: asyncio.Queue[Any] = asyncio.Queue()
        order = wire.Generate(
            id=next(_ids), seed=1, text="Once", sampling=wire.Sampling(ignore_eos=True)
        )
        worker.link.call(order, answers.put_nowait)
        await asyncio.wait_for(answers.get(), 60)
        endings.append(answers)
        worker.link.send(wire.Cancel(order.id))
    for answers in endings:
        async with asyncio.timeout(60):
            while not isinstance(last := await answers.get(), wire.Done):
                pass
        assert last.finish == "cancelled"
    pong = await ping(worker.link)
    assert (pong.running, pong.waiting) == (0, 0)


async def test_a_cancel_for_a_request_that_has_ended_changes_nothing(worker: WorkerProcess) -> None:
    await generate(worker)
    worker.link.send(wire.Cancel(next(_ids) - 1))
    worker.link.send(wire.Cancel(1 << 60))
    _, _, done = await generate(worker)
    assert done.finish == "length"


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    worker: WorkerProcess,
) -> None:
    _, _, failed = await generate(worker, ask="x" * 3000)
    assert isinstance(failed, wire.Failed)
    assert (failed.fault, failed.code) == ("caller", "context_length_exceeded")
    assert "1024" in failed.message


async def test_a_worker_that_quantizes_tells_how_far_it_is(tmp_path: Path) -> None:
    installed, _ = plugins.scan([plugins.builtin_folder()])
    plugin = plugins.choose("llama_cpp", "gguf", installed, {})
    told: list[float] = []
    file = demo.find("builtin:demo").file
    await quantize(
        plugin, file, tmp_path / "q.gguf", "q4_k_m", lambda share, note: told.append(share)
    )
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    # A share for nearly each of its 39 tensors.
    assert len({round(share, 3) for share in told}) > 20
    with pytest.raises(PrepareError, match="Quantize a version of the model with f16"):
        await quantize(
            plugin, tmp_path / "q.gguf", tmp_path / "r.gguf", "q4_0", lambda share, note: None
        )

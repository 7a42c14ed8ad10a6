"""One real worker with MiniLM, spoken to over its wire: vectors, batches, refusals, cancels."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from hxd import wire
from hxd.daemon.store import demo, plugins
from hxd.daemon.supervise.process import Program, WorkerProcess
from tests.embedding import (
    CONTEXT,
    MINILM,
    TEXTS,
    WIDTH,
    Head,
    cosine,
    needs_minilm,
    reference,
    write_reranker,
)
from tests.support import Owner, ping

BATCH = 63  # tokens
_ids = itertools.count(1)


class Worker:
    """A worker that has loaded `file`, or said why it can't."""

    def __init__(self, process: WorkerProcess, loaded: Any) -> None:
        self.process, self.loaded = process, loaded

    @classmethod
    async def start(cls, file: Path, context: int = 2048, **options: Any) -> Worker:
        installed, _ = plugins.scan([plugins.builtin_folder()])
        plugin = plugins.choose("llama_cpp", "gguf", installed, {})
        owner = Owner()
        program = Program("llama_cpp", plugin.folder, plugin.digest)
        process = await WorkerProcess.spawn(program, owner)
        async with asyncio.timeout(60):
            assert isinstance(await owner.said.get(), wire.Hello)
            process.link.send(wire.Load("m", str(file), context, 4, 1, options))
            return cls(process, await owner.said.get())

    async def stop(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def ask(self, frame: wire.Request) -> list[Any]:
        """Every frame of the answer."""
        answers: asyncio.Queue[Any] = asyncio.Queue()
        self.process.link.call(frame, answers.put_nowait)
        said = []
        async with asyncio.timeout(60):
            while not said or not isinstance(said[-1], wire.Done | wire.Failed):
                said.append(await answers.get())
        return said

    async def embed(self, *inputs: str | list[int]) -> NDArray[np.float32]:
        """float32 [inputs, width]"""
        *frames, done = await self.ask(wire.Embed(next(_ids), list(inputs)))
        assert isinstance(done, wire.Done), done
        rows = [np.frombuffer(f.data, dtype="<f4").reshape(-1, f.dimension) for f in frames]
        assert [f.start for f in frames] == [0, *np.cumsum([len(r) for r in rows])[:-1]]
        return np.concatenate(rows)

    async def refused(self, *inputs: str | list[int]) -> wire.Failed:
        [failed] = await self.ask(wire.Embed(next(_ids), list(inputs)))
        assert isinstance(failed, wire.Failed)
        assert failed.fault == "caller"
        return failed

    async def steps(self) -> int:
        return (await ping(self.process.link)).steps


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def minilm() -> AsyncIterator[Worker]:
    worker = await Worker.start(MINILM)
    yield worker
    await worker.stop()


pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_minilm]


async def test_the_worker_says_what_it_has_loaded(minilm: Worker) -> None:
    loaded = minilm.loaded
    assert (loaded.context, loaded.capabilities) == (CONTEXT, ["embed"])
    assert loaded.details["pooling"] == "mean"
    assert loaded.details["dimensions"] == WIDTH


async def test_vectors_are_those_of_llama_cpp_itself_and_have_length_one(minilm: Worker) -> None:
    vectors = await minilm.embed(*TEXTS)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    others = await asyncio.to_thread(reference, TEXTS)
    cosines = [cosine(a, b) for a, b in zip(vectors, others, strict=True)]
    assert min(cosines) > 0.999


async def test_a_text_has_the_same_vector_alone_and_among_others(minilm: Worker) -> None:
    together = await minilm.embed(*TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        [alone] = await minilm.embed(text)
        assert cosine(alone, vector) > 0.9999


async def test_a_text_and_its_tokens_have_the_same_vector(minilm: Worker) -> None:
    [tokens, _] = await minilm.ask(wire.Tokenize(next(_ids), TEXTS[1], add_special=True))
    one, other = await minilm.embed(TEXTS[1], tokens.tokens)
    assert cosine(one, other) > 0.9999


async def test_inputs_of_one_call_go_into_as_few_batches_as_their_tokens_need(
    minilm: Worker,
) -> None:
    before = await minilm.steps()
    texts = [f"hello world {i}" for i in range(200)]  # 5 tokens each
    assert len(await minilm.embed(*texts)) == 200
    assert await minilm.steps() - before == -(-200 * 5 // (BATCH - BATCH % 5))


async def test_calls_that_come_while_a_batch_is_computed_share_the_next(minilm: Worker) -> None:
    before = await minilm.steps()
    calls = [minilm.embed(f"hello world {i}") for i in range(40)]
    large = minilm.embed(*["the same few words"] * 100)
    vectors = await asyncio.gather(large, *calls)
    assert len({v.tobytes() for v in vectors[1:]}) == 40
    # 800 tokens fill 13 batches; a call that finds the engine idle may start one that is not
    # full. One batch per call would be 40 and more.
    assert await minilm.steps() - before < 25


async def test_a_batch_may_have_more_inputs_than_llama_cpp_has_sequences(minilm: Worker) -> None:
    worker = await Worker.start(MINILM, batch=500)
    try:
        before = await worker.steps()
        vectors = await worker.embed(*[[1000 + i] for i in range(400)])
        assert await worker.steps() - before == 1
    finally:
        await worker.stop()
    for at in (0, 255, 256, 399):
        [alone] = await minilm.embed([1000 + at])
        assert cosine(vectors[at], alone) > 0.999  # other kernels for so many tokens


async def test_a_small_call_does_not_wait_for_the_end_of_a_large_one(minilm: Worker) -> None:
    ended: list[str] = []

    async def call(name: str, inputs: list[str]) -> None:
        await minilm.embed(*inputs)
        ended.append(name)

    await asyncio.gather(
        call("large", [f"a sentence with the number {i}" for i in range(300)]),
        call("small", ["hello"]),
        call("other", ["hello", "again"]),
    )
    assert ended[-1] == "large"


async def test_an_input_of_exactly_the_context_is_taken_and_one_more_is_not(
    minilm: Worker,
) -> None:
    assert len(await minilm.embed([1000] * CONTEXT)) == 1
    failed = await minilm.refused("fits", [1000] * (CONTEXT + 1))
    assert failed.code == "context_length_exceeded"
    assert all(word in failed.message for word in ("input[1]", "513 tokens", "512"))


@pytest.mark.parametrize("text", ["x " * 500_000, "é" * 1_000_000, "a-" * 500_000])
async def test_a_megabyte_is_refused_and_the_worker_lives(minilm: Worker, text: str) -> None:
    failed = await minilm.refused(text)
    assert (failed.param, failed.code) == ("input", "context_length_exceeded")
    assert len(await minilm.embed("hello")) == 1


@pytest.mark.parametrize("text", [" \n" * 500_000, "🤗" * 300_000])
async def test_a_megabyte_that_comes_to_a_few_tokens_is_embedded(minilm: Worker, text: str) -> None:
    assert len(await minilm.embed(text)) == 1


@pytest.mark.parametrize("token", [30_522, 1 << 30])
async def test_a_token_that_there_is_not_is_refused_and_the_worker_lives(
    minilm: Worker, token: int
) -> None:
    failed = await minilm.refused([101, token, 102])
    assert (failed.param, f"token {token}" in failed.message) == ("input", True)
    assert len(await minilm.embed("hello")) == 1


async def test_a_call_of_more_than_300_000_tokens_is_refused(minilm: Worker) -> None:
    failed = await minilm.refused(*[[1000] * 500] * 601)
    assert failed.code == "too_many_tokens"


async def test_a_cancelled_call_ends_early_and_others_go_on(minilm: Worker) -> None:
    before = await minilm.steps()
    large = wire.Embed(next(_ids), [f"a sentence with the number {i}" for i in range(2000)])
    answer = asyncio.create_task(minilm.ask(large))
    assert len(await minilm.embed("hello")) == 1
    minilm.process.link.send(wire.Cancel(large.id))
    assert (await answer)[-1].finish == "cancelled"
    assert await minilm.steps() - before < 2000 * 9 // BATCH // 2
    pong = await ping(minilm.process.link)
    assert (pong.running, pong.waiting) == (0, 0)
    assert len(await minilm.embed("hello")) == 1


async def test_what_an_embedding_model_can_not_do_is_the_callers_fault(minilm: Worker) -> None:
    for frame in (
        wire.Generate(next(_ids), 1, text="Once"),
        wire.Rank(next(_ids), "query", ["document"]),
    ):
        [failed] = await minilm.ask(frame)
        assert (failed.fault, failed.code) == ("caller", "unsupported_by_model")
        assert "makes embeddings" in failed.message


async def test_text_to_tokens_and_back(minilm: Worker) -> None:
    tokens, done = await minilm.ask(wire.Tokenize(next(_ids), "Hello, world!", add_special=True))
    assert tokens.tokens == [101, 7592, 1010, 2088, 999, 102]
    assert tokens.pieces[0] == b"[CLS]"
    assert done.prompt_tokens == 6
    text, _ = await minilm.ask(wire.Detokenize(next(_ids), tokens.tokens[1:-1]))
    assert text.text.split() == ["hello", ",", "world", "!"]
    [failed] = await minilm.ask(wire.Detokenize(next(_ids), [101, 30_522]))
    assert (failed.fault, "token 30522" in failed.message) == ("caller", True)


async def test_a_korean_syllable_keeps_all_its_letters(minilm: Worker) -> None:
    # Ids by the WordPiece tokenizer that the model was trained with.
    [tokens, _] = await minilm.ask(wire.Tokenize(next(_ids), "한국어 문장"))
    assert tokens.tokens == [1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008,
                             1459, 30014, 30021, 30000, 30006, 30025]  # fmt: skip


async def test_a_reranker_gives_the_score_of_its_own_head(tmp_path: Path) -> None:
    head = Head()
    write_reranker(tmp_path / "reranker.gguf", head)
    # The reference has no flash attention; made-up weights make much of small differences.
    worker = await Worker.start(tmp_path / "reranker.gguf", flash_attention="off")
    try:
        assert worker.loaded.capabilities == ["rank"]
        assert worker.loaded.details["pooling"] == "rank"
        *frames, done = await worker.ask(wire.Rank(next(_ids), "what is hello", TEXTS[:6]))
        scores = np.concatenate([np.frombuffer(f.data, dtype="<f4") for f in frames])
        joined = [f"what is hello [SEP] {text}" for text in TEXTS[:6]]
        first = await asyncio.to_thread(reference, joined, pooling=2)
        assert scores == pytest.approx([head.score(row) for row in first], abs=0.02)
        assert np.ptp(scores) > 0.1
        [failed] = await worker.ask(wire.Embed(next(_ids), ["x"]))
        assert "ranks documents" in failed.message
        [failed] = await worker.ask(wire.Rank(next(_ids), "x " * 300, ["short", "y " * 300]))
        assert (failed.param, failed.code) == ("documents", "context_length_exceeded")
        assert "documents[1]" in failed.message
        assert done.prompt_tokens > 6 * 6
    finally:
        await worker.stop()


async def test_a_generating_model_embeds_when_the_operator_says_how() -> None:
    file = demo.find("builtin:demo").file
    texts = ["What is 23 + 45?", "Tell me a story about Ada in London.", "x", "word " * 180]
    for pooling in ("last", "mean"):
        worker = await Worker.start(file, 1024, pooling=pooling, batch=100)
        try:
            assert worker.loaded.capabilities == ["embed"]
            together = await worker.embed(*texts)
            assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
            for text, vector in zip(texts, together, strict=True):
                [alone] = await worker.embed(text)
                assert cosine(alone, vector) > 0.9999
            others = await asyncio.to_thread(_demo_reference, file, texts, pooling)
            cosines = [cosine(a, b) for a, b in zip(together, others, strict=True)]
            assert min(cosines) > 0.999
        finally:
            await worker.stop()


def _demo_reference(file: Path, texts: list[str], pooling: str) -> list[list[float]]:
    import llama_cpp

    number = {"mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN, "last": llama_cpp.LLAMA_POOLING_TYPE_LAST}
    model = llama_cpp.Llama(
        str(file), embedding=True, pooling_type=number[pooling], n_ctx=1024, n_batch=1024,
        n_ubatch=1024, verbose=False,
    )  # fmt: skip
    try:
        return [model.embed(text) for text in texts]
    finally:
        model.close()


async def test_pooling_that_gives_no_vector_is_refused_at_load() -> None:
    worker = await Worker.start(MINILM, pooling="none")
    try:
        assert isinstance(worker.loaded, wire.Failed)
        assert "mean, cls, last" in worker.loaded.message
    finally:
        await worker.stop()

"""The second engine on tiny files of every family that it serves, and on the demo model."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import random
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
import pytest_asyncio

from hxd import ggml, wire
from hxd.daemon.store import demo, plugins
from hxd.daemon.supervise.process import Program, WorkerProcess
from hxd.ggml import FAMILIES
from plugins.ctransformers.native import Model
from plugins.ctransformers.vocabulary import legacy as words_of
from tests import legacy
from tests.support import Daemon, Owner, ping, post, run_hxd, running, write_config

pytestmark = pytest.mark.skipif(
    find_spec("ctransformers") is None, reason="ctransformers is not installed"
)
SLOTS = 3
_ids = itertools.count(1)


@contextlib.asynccontextmanager
async def loaded(
    file: Path, plugin: str = "ctransformers", context: int = 128, **options: Any
) -> AsyncIterator[tuple[WorkerProcess, Any]]:
    """A worker, and what it said when it was to load `file`."""
    installed, _ = plugins.scan([plugins.builtin_folder()])
    chosen = plugins.choose(plugin, None, installed, {})
    owner = Owner()
    process = await WorkerProcess.spawn(Program(plugin, chosen.folder, chosen.digest), owner)
    try:
        async with asyncio.timeout(60):
            assert isinstance(await owner.said.get(), wire.Hello)
            process.link.send(wire.Load("m", str(file), context, SLOTS, 1, options))
            yield process, await owner.said.get()
    finally:
        process.kill()
        await process.wait()


def ask(worker: WorkerProcess, **settings: Any) -> tuple[int, asyncio.Queue[Any]]:
    """Starts a sequence; its id and what comes for it."""
    answers: asyncio.Queue[Any] = asyncio.Queue()
    order = {"text": "hello the world", "seed": 5, "max_tokens": 30} | settings
    sampling = {
        name: order.pop(name) for name in list(order) if name in wire.Sampling.__struct_fields__
    }
    sampling.setdefault("ignore_eos", True)
    id = next(_ids)
    worker.link.call(
        wire.Generate(id=id, sampling=wire.Sampling(**sampling), **order), answers.put_nowait
    )
    return id, answers


async def rest(answers: asyncio.Queue[Any]) -> tuple[list[int], list[wire.Logprob], Any]:
    tokens: list[int] = []
    logprobs: list[wire.Logprob] = []
    async with asyncio.timeout(60):
        while isinstance(answer := await answers.get(), wire.Delta):
            tokens += answer.tokens
            logprobs += answer.logprobs
    return tokens, logprobs, answer


async def generate(worker: WorkerProcess, **settings: Any) -> list[int]:
    tokens, _, done = await rest(ask(worker, **settings)[1])
    assert isinstance(done, wire.Done), done
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_answers_resumes_and_shares_prompts(tmp_path: Path, family: str) -> None:
    file = legacy.write(tmp_path / "m.bin", family)
    async with loaded(file, family=family) as (worker, said):
        assert isinstance(said, wire.Loaded), said
        assert set(said.capabilities) == {"generate", "logprobs"}
        for settings in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}):
            tokens = await generate(worker, **settings)
            assert len(tokens) == 30
            assert await generate(worker, **settings) == tokens
            for cut in (1, 17):
                assert await generate(worker, resume=tokens[:cut], **settings) == tokens[cut:]
        other = await generate(worker, text="hello the end", temperature=0.0)
        _, _, done = await rest(ask(worker, temperature=0.0)[1])
        # Falcon's cache can't be cut where the two prompts part.
        assert (done.cached_tokens > 0) == (family != "falcon")
        assert await generate(worker, text="hello the end", temperature=0.0) == other


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_weights_compute_what_whole_ones_do(tmp_path: Path, family: str) -> None:
    logits = []
    ftypes = (0, 1, 7) if family in ("llama", "falcon") else (0, 1, 2007)
    for ftype, name in zip(ftypes, ("f32", "f16", "q8_0"), strict=True):
        file = legacy.write(tmp_path / "m.bin", family, ftype=ftype)
        assert ggml.read_header(file, family).file_type == name
        model = Model(file, family, 128)
        logits.append(model.evaluate(list(range(20, 60)), 0, 1).copy())
        model.close()
    whole, half, quantized = logits
    assert np.corrcoef(whole, half)[0, 1] > 0.999
    assert np.corrcoef(whole, quantized)[0, 1] > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_cut_into_words_as_the_library_cuts_it(tmp_path: Path, family: str) -> None:
    file = legacy.write(tmp_path / "m.bin", family)
    words = words_of(family, ggml.read_vocabulary(file, family))
    model = Model(file, family, 128)
    parts = ["the", " the", "hello", " ", "  ", "\n", "1", "'s", "é", "?", ".", "ing", "🎉"]
    draw = random.Random(4)
    try:
        for _ in range(100):
            text = "".join(draw.choices(parts, k=draw.randint(1, 15)))
            room = (ctypes.c_int * 1000)()
            count = model._library.ctransformers_llm_tokenize(
                ctypes.c_void_p(model._model), text.encode(), False, room
            )
            assert words.cutter.cut(text) == list(room[:count]), text
    finally:
        model.close()


async def test_logprobs_come_with_the_answer_and_with_the_prompt(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gpt2")
    async with loaded(file, family="gpt2") as (worker, _):
        tokens, logprobs, _ = await rest(ask(worker, temperature=0.0, logprobs=3)[1])
        assert [one.token for one in logprobs] == tokens
        for one in logprobs:
            assert one.top[0][0] == one.token
            assert one.logprob == one.top[0][2] < 0
            assert len(one.top) == 3
        text = "hello the world and all of it"
        for prompt in (text, "1"):
            _, scored, done = await rest(
                ask(worker, text=prompt, logprobs=0, echo=True, max_tokens=2)[1]
            )
            assert len(scored) == done.prompt_tokens + 2
            assert b"".join(one.piece for one in scored[:-2]).decode() == prompt
            assert [one.logprob is None for one in scored[:2]] == [True, False]


async def test_sampling_does_what_it_does_in_the_other_engine(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gptneox")
    async with loaded(file, family="gptneox") as (worker, _):
        greedy = await generate(worker, temperature=0.0)
        for only in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}):
            assert await generate(worker, temperature=1.0, **only) == greedy
        banned = await generate(worker, temperature=0.0, logit_bias={greedy[0]: -100.0})
        assert greedy[0] not in banned
        wanted = await generate(worker, temperature=0.0, logit_bias={77: 1000.0})
        assert set(wanted) == {77}
        thrice = dict.fromkeys((76, 77, 78), 1000.0)
        spread = await generate(
            worker, temperature=0.0, presence_penalty=100.0, logit_bias=thrice, max_tokens=3
        )
        assert sorted(spread) == [76, 77, 78]
        assert await generate(worker, seed=1) != await generate(worker, seed=2)


async def test_what_the_library_can_not_do_is_refused_by_name(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gpt2")
    async with loaded(file, family="gpt2") as (worker, _):
        for order, param in (
            ({"constraint": wire.Constraint("json_object")}, "response_format"),
            ({"suffix": "end"}, "suffix"),
            ({"tokens": [1, 1 << 20], "text": None}, "prompt"),
            ({"tokens": [-1], "text": None}, "prompt"),
        ):
            _, _, failed = await rest(ask(worker, **order)[1])
            assert isinstance(failed, wire.Failed)
            assert (failed.fault, failed.param) == ("caller", param)
        # A token that is none ends the library; the worker is still there.
        assert await generate(worker)


@pytest.mark.parametrize("family", FAMILIES)
async def test_no_text_that_a_user_can_send_ends_the_worker(tmp_path: Path, family: str) -> None:
    file = legacy.write(tmp_path / "m.bin", family, context=1024)
    texts = [
        "a" * 200_000,
        "\0\0x",
        "\n" * 5000,
        "é" * 900,
        "<|endoftext|>" * 50,
        "\udcff"[:0] + "�",
    ]
    async with loaded(file, context=1024, family=family) as (worker, _):
        for text in texts:
            _, _, last = await rest(ask(worker, text=text, max_tokens=2)[1])
            refused = isinstance(last, wire.Failed) and last.fault == "caller"
            assert refused or isinstance(last, wire.Done), last
        assert len(await generate(worker)) == 30


async def test_starcoder_fills_in(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "starcoder")
    async with loaded(file, family="starcoder") as (worker, _):
        _, _, done = await rest(ask(worker, text="ab", suffix="c")[1])
        # Three characters and three control tokens.
        assert (done.finish, done.prompt_tokens) == ("length", 6)


async def test_sequences_queue_in_order_and_a_cancelled_one_makes_room(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gpt2", context=8192)
    async with loaded(file, context=8192, family="gpt2") as (worker, _):
        first, answers = ask(worker, max_tokens=None)
        assert isinstance(await asyncio.wait_for(answers.get(), 60), wire.Delta)
        behind = [ask(worker, seed=seed)[1] for seed in range(SLOTS + 2)]
        skipped, gone = ask(worker)
        worker.link.send(wire.Cancel(skipped))
        _, _, done = await rest(gone)
        assert done.finish == "cancelled"
        assert all(queue.empty() for queue in behind)
        worker.link.send(wire.Cancel(first))
        _, _, done = await rest(answers)
        assert done.finish == "cancelled"
        ended: list[int] = []

        async def follow(at: int, queue: asyncio.Queue[Any]) -> list[int]:
            tokens, _, _ = await rest(queue)
            ended.append(at)
            return tokens

        got = await asyncio.gather(*(follow(at, queue) for at, queue in enumerate(behind)))
        assert ended == sorted(ended)
        assert got == [await generate(worker, seed=seed) for seed in range(SLOTS + 2)]
        pong = await ping(worker.link)
        assert (pong.running, pong.waiting) == (0, 0)


async def test_a_cancel_is_heard_while_a_prompt_is_read(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gpt2", context=8192)
    async with loaded(file, context=8192, family="gpt2", batch=1) as (worker, _):
        id, answers = ask(worker, text="1" * 8000, max_tokens=1)
        while (await ping(worker.link)).steps < 5:
            pass
        worker.link.send(wire.Cancel(id))
        _, _, done = await rest(answers)
        assert done.finish == "cancelled"
        pong = await ping(worker.link)
        assert pong.steps < 8000
        # What was read serves the next request, from the right place on.
        _, _, done = await rest(ask(worker, text="1" * 100 + "2", max_tokens=1)[1])
        assert 0 < done.cached_tokens <= 100


async def test_prompts_are_shared_within_one_cache_only(tmp_path: Path) -> None:
    file = legacy.write(tmp_path / "m.bin", "gptj")
    async with loaded(file) as (worker, _):

        async def cached(name: str) -> int:
            _, _, done = await rest(ask(worker, cache=name)[1])
            return int(done.cached_tokens)

        assert [await cached(name) for name in ("a", "b", "b", "a")] == [0, 0, 2, 0]


async def test_a_prompt_is_read_in_chunks_that_the_library_has_memory_for(tmp_path: Path) -> None:
    # With these sizes the library is known to end when it reads 256 tokens at the context's end.
    file = legacy.write(tmp_path / "m.bin", "gpt2", context=600, width=128, heads=128, layers=4)
    async with loaded(file, context=600, family="gpt2", batch=512) as (worker, _):
        tokens = await generate(worker, text="1" * 590, max_tokens=None)
        assert len(tokens) == 10


@pytest.mark.parametrize("text", ["What is 12 + 13?", "Tell me a story about Ada.", "Sort: c a b"])
async def test_a_gguf_model_says_what_it_says_in_the_other_engine(text: str) -> None:
    file = demo.find("builtin:demo").file
    messages = [wire.Message("user", text)]
    said, vocabularies = [], set()
    for plugin in ("ctransformers", "llama_cpp"):
        async with loaded(file, plugin, context=512) as (worker, info):
            vocabularies.add(info.vocab)
            order = {"messages": messages, "text": None, "ignore_eos": False, "max_tokens": 60}
            tokens, _, done = await rest(ask(worker, temperature=0.0, **order)[1])
            said.append((tokens, done.finish, done.prompt_tokens))
    assert said[0] == said[1]
    assert len(vocabularies) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"\5\0\0\0\0\0\0\0llama\x0c", b"\5\0\0\0\0\0\0\0mamba\x0c", "llama_cpp serves the others"),
        (b"tokenizer.ggml.scores", b"tokenizer.ggml.xcores", "incomplete"),
        (b"eos_token_id\x04\0\0\0\4\1", b"eos_token_id\x04\0\0\0\4\x81", "the eos token 33028"),
        (b"llama.attention.head_count\x04\0\0\0\4", b"llama.attention.head_count\x04\0\0\0\1",
         "1 heads of 256 values"),
    ],
)  # fmt: skip
async def test_a_gguf_file_that_the_library_can_not_serve_is_refused(
    tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    content = demo.find("builtin:demo").file.read_bytes()
    assert content.count(old) == 1
    file = tmp_path / "m.gguf"
    file.write_bytes(content.replace(old, new))
    async with loaded(file) as (_, said):
        assert isinstance(said, wire.Failed)
        assert words in said.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"famly": "gpt2"}, "unknown option 'famly'; there are batch, family"),
        ({"family": "gpt2", "batch": 0}, "option batch: 0 is not an integer from 1 to 512"),
        ({"family": "gpt2", "batch": True}, "option batch: True is not"),
        ({"family": "gptj"}, "ModelFileError"),
    ],
)
async def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    async with loaded(legacy.write(tmp_path / "m.bin", "gpt2"), **options) as (_, said):
        assert isinstance(said, wire.Failed)
        assert words in said.message


# The daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("ctransformers")
    legacy.write(folder / "gpt2.bin", "gpt2")
    legacy.write(folder / "llama.bin", "llama")
    models = """
[models.gpt2]
source = "gpt2.bin"
slots = 2
options = { family = "gpt2" }
[models.llama]
source = "llama.bin"
context = 100
"""
    async with running(write_config(folder, models)) as daemon:
        yield daemon


async def complete(daemon: Daemon, **settings: Any) -> dict[str, Any]:
    body = {"model": "gpt2", "prompt": "hello the world", "max_tokens": 20, "seed": 3} | settings
    status, answer, _ = await post(daemon.url + "/v1/completions", body)
    assert status == 200, answer
    return answer


@pytest.mark.asyncio(loop_scope="module")
async def test_a_daemon_serves_older_files_by_their_format_alone(daemon: Daemon) -> None:
    for model in ("gpt2", "llama"):
        answer = await complete(daemon, model=model)
        assert answer["usage"]["completion_tokens"] <= 20
        chat = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
        status, answer, _ = await post(daemon.url + "/v1/chat/completions", chat)
        assert status == 200, answer


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stream_is_the_answer_in_pieces(daemon: Daemon) -> None:
    whole = (await complete(daemon))["choices"][0]["text"]
    assert (await complete(daemon))["choices"][0]["text"] == whole
    body = {"model": "gpt2", "prompt": "hello the world", "max_tokens": 20, "seed": 3}
    async with (
        aiohttp.ClientSession() as session,
        session.post(daemon.url + "/v1/completions", json=body | {"stream": True}) as response,
    ):
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    texts = [msgspec.json.decode(line[6:])["choices"][0]["text"] for line in lines]
    assert "".join(texts) == whole
    assert len(texts) > 2


@pytest.mark.asyncio(loop_scope="module")
async def test_two_answers_to_one_prompt_differ_and_can_be_had_again(daemon: Daemon) -> None:
    first, again = [await complete(daemon, n=2) for _ in range(2)]
    texts = [choice["text"] for choice in first["choices"]]
    assert texts[0] != texts[1]
    assert texts == [choice["text"] for choice in again["choices"]]


@pytest.mark.asyncio(loop_scope="module")
async def test_more_calls_than_the_library_takes_at_once_are_all_answered(daemon: Daemon) -> None:
    alone = [(await complete(daemon, seed=seed))["choices"][0]["text"] for seed in range(8)]
    together = await asyncio.gather(*(complete(daemon, seed=seed) for seed in range(8)))
    assert [answer["choices"][0]["text"] for answer in together] == alone


@pytest.mark.asyncio(loop_scope="module")
async def test_clients_that_leave_free_their_places(daemon: Daemon) -> None:
    body = {"model": "gpt2", "prompt": "hello", "stream": True}
    async with aiohttp.ClientSession() as session:
        for _ in range(6):
            async with session.post(daemon.url + "/v1/completions", json=body) as response:
                await response.content.readline()
    assert (await complete(daemon))["choices"]


CONFIG = '[models.x]\nsource = "m.bin"\ncontext = 100\n{more}\n'


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (legacy.content("gpt2"), "", "x.options: the file may be gpt2 or starcoder"),
        (legacy.content("gpt2"), 'options = { family = "gpt3" }', "x.options: no family 'gpt3'"),
        (legacy.content("gpt2")[:-1], 'options = { family = "gpt2" }', "x.source: truncated"),
        (legacy.content("llama")[:999], "", "x.source: truncated"),
        (b"lmgg" + b"\xff" * 400, "", "x.source: vocab is -1"),
        (legacy.content("llama"), 'plugin = "llama_cpp"', "does not load ggml files"),
        (legacy.content("llama"), 'variants = ["q8_0"]', "only GGUF files can be quantized"),
    ],
)
def test_a_bad_file_is_refused_before_a_worker_starts(
    tmp_path: Path, content: bytes, more: str, said: str
) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    config = tmp_path / "hxd.toml"
    config.write_text(CONFIG.format(more=more))
    done = run_hxd("check", "--config", str(config))
    assert done.returncode == 78
    assert said in done.stderr


def test_older_files_are_counted_with_the_cache_that_they_take(tmp_path: Path) -> None:
    legacy.write(tmp_path / "m.bin", "gptj", context=1 << 20)
    config = tmp_path / "hxd.toml"
    config.write_text(CONFIG.format(more="") + '[memory]\nbudget = "100 MiB"\n')
    done = run_hxd("check", "--config", str(config))
    assert "memory" in done.stderr
    assert done.returncode == 78

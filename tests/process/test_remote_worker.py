"""A real worker with the remote plugin, spoken to over its wire, and a server made by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hxd import wire
from hxd.daemon.store import plugins
from hxd.daemon.supervise.process import Program, WorkerProcess
from hxd.hookspecs import CAPABILITIES
from tests import misbehaving
from tests.misbehaving import (
    DONE,
    Conversation,
    Server,
    answers,
    delta,
    error,
    event,
    refuses,
    says,
    says_whole,
    silent,
    stalls,
)  # fmt: skip
from tests.support import Owner, ping

SECONDS = 60
VARIABLE = "TEST_REMOTE_KEY"
KEY = "sk-test-0123456789"
_ids = itertools.count(1)


@contextlib.asynccontextmanager
async def started(
    options: dict[str, Any], environment: tuple[str, ...] = ()
) -> AsyncIterator[tuple[WorkerProcess, wire.Loaded | wire.Failed]]:
    """A worker, and what it says once it has been told what to load."""
    installed, _ = plugins.scan([plugins.builtin_folder()])
    plugin = plugins.choose("remote", None, installed, {})
    owner = Owner()
    program = Program("remote", plugin.folder, plugin.digest, environment=environment)
    process = await WorkerProcess.spawn(program, owner)
    try:
        async with asyncio.timeout(SECONDS):
            hello = await owner.said.get()
            assert (hello.plugin, hello.protocol) == ("remote", wire.PROTOCOL)
            process.link.send(wire.Load("here", None, 1024, 4, 1, options))
            yield process, await owner.said.get()
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def working(server: Server, **options: Any) -> AsyncIterator[WorkerProcess]:
    async with started({"url": server.url, **options}) as (worker, loaded):
        assert isinstance(loaded, wire.Loaded)
        yield worker


def chat(text: str = "hi", **settings: Any) -> wire.Generate:
    return wire.Generate(next(_ids), 9, messages=[wire.Message("user", text)], **settings)


def call(worker: WorkerProcess, request: wire.Request) -> asyncio.Queue[Any]:
    answers: asyncio.Queue[Any] = asyncio.Queue()
    worker.link.call(request, answers.put_nowait)
    return answers


async def rest(answers: asyncio.Queue[Any]) -> list[Any]:
    """The answers up to the last one."""
    got = []
    async with asyncio.timeout(SECONDS):
        while True:
            got.append(await answers.get())
            if isinstance(got[-1], wire.Done | wire.Failed):
                return got


async def ask(worker: WorkerProcess, request: wire.Request) -> list[Any]:
    return await rest(call(worker, request))


async def test_a_worker_says_what_it_serves_and_answers() -> None:
    async with Server(answers("Hel", "lo")) as server:
        server.models = ["there"]
        async with started({"url": server.url, "model": "there"}) as (worker, loaded):
            assert isinstance(loaded, wire.Loaded)
            assert loaded.details == {
                "url": server.url, "model": "there", "server at start": "answers",
            }  # fmt: skip
            assert set(loaded.capabilities) == CAPABILITIES
            request = chat()
            *deltas, done = await ask(worker, request)
            assert "".join(delta.text for delta in deltas) == "Hello"
            assert done == wire.Done(request.id, "stop", 7, 3, 3)
            assert server.requests[0].json["model"] == "there"


async def test_without_a_name_there_the_model_has_the_name_here() -> None:
    async with Server(answers("a")) as server, working(server) as worker:
        await ask(worker, chat())
        assert server.requests[0].json["model"] == "here"


async def test_the_warm_up_costs_nothing_at_the_server() -> None:
    async with Server(answers("a")) as server, working(server) as worker:
        assert await ask(worker, wire.Generate(0, 0, text="Hello", max_tokens=1)) == [
            wire.Done(0, "length", 0, 0)
        ]
        assert server.requests == []


async def test_a_worker_starts_while_the_server_is_down() -> None:
    async with started({"url": misbehaving.closed_port()}) as (worker, loaded):
        assert isinstance(loaded, wire.Loaded)
        assert "Connection refused" in loaded.details["server at start"]
        (failed,) = await ask(worker, chat())
        assert failed.fault == "backend"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "option url: it is needed"),
        ({"url": "http://h/v1", "key": KEY}, "option key: a key never stands in the config"),
        ({"url": "http://h/v1", "key_env": VARIABLE}, f'environment = ["{VARIABLE}"]'),
        ({"url": "http://h/v1", "key_file": "/nowhere"}, "/nowhere: can't be read"),
        ({"url": "http://h/v1", "ca_file": "/nowhere"}, "option ca_file: /nowhere"),
    ],
)
async def test_a_wrong_option_ends_the_worker_with_its_name(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    async with started(options) as (worker, failed):
        assert isinstance(failed, wire.Failed)
        assert words in failed.message
        assert await worker.wait() == 70
        assert KEY not in "".join([failed.message, *worker.tail])


async def test_a_key_reaches_the_worker_whose_model_names_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    async with Server(answers("a")) as server:
        options = {"url": server.url, "key_env": VARIABLE}
        async with started(options, (VARIABLE, "NOT_THERE")) as (worker, loaded):
            assert KEY not in repr(loaded)
            await ask(worker, chat())
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_credential_of_systemd_is_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "provider").write_text(KEY)
    (tmp_path / "provider").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    async with Server(answers("a")) as server, working(server, key_file="provider") as worker:
        await ask(worker, chat())
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_cancel_reaches_the_server() -> None:
    async with Server(stalls(delta("begun"))) as server, working(server) as worker:
        request = chat()
        got = call(worker, request)
        assert (await asyncio.wait_for(got.get(), SECONDS)).text == "begun"
        worker.link.send(wire.Cancel(request.id))
        assert await rest(got) == [wire.Done(request.id, "cancelled", 0, 1)]
        await asyncio.wait_for(server.left.wait(), SECONDS)
        pong = await ping(worker.link)
        assert (pong.running, pong.waiting) == (0, 0)


async def test_many_cancels_free_everything() -> None:
    async with Server(silent) as server, working(server) as worker:
        requests = [chat() for _ in range(40)]
        waiting = [call(worker, request) for request in requests]
        for request in requests:
            worker.link.send(wire.Cancel(request.id))
        for got in waiting:
            (done,) = await rest(got)
            assert done.finish == "cancelled"
        pong = await ping(worker.link)
        assert (pong.running, pong.waiting) == (0, 0)
        server.script = [answers("a")]
        assert (await ask(worker, chat()))[-1].finish == "stop"


async def test_a_worker_that_waits_for_its_server_shows_progress() -> None:
    async with Server(silent) as server, working(server) as worker:
        call(worker, chat())
        steps = []
        async with asyncio.timeout(SECONDS):
            while len(steps) < 3:
                pong = await ping(worker.link)
                assert pong.running == 1
                if not steps or pong.steps > steps[-1]:
                    steps.append(pong.steps)
        assert pong.gauges["remote_up"] == 1.0
        assert pong.gauges["remote_active"] == 1.0


async def test_unload_ends_a_worker_that_waits_for_its_server() -> None:
    async with Server(stalls(delta("begun"))) as server, working(server) as worker:
        got = call(worker, chat())
        await asyncio.wait_for(got.get(), SECONDS)
        worker.link.send(wire.Unload())
        assert (await rest(got))[-1].finish == "cancelled"
        assert await worker.wait() == 0
        await asyncio.wait_for(server.left.wait(), SECONDS)


async def test_requests_of_one_worker_do_not_wait_for_each_other() -> None:
    async def behave(talk: Conversation) -> None:
        slow = "slow" in talk.request.json["messages"][0]["content"]
        await (stalls(delta("begun")) if slow else answers("a"))(talk)

    async with Server(behave) as server, working(server) as worker:
        held = [call(worker, chat("slow")) for _ in range(10)]
        for got in held:
            await asyncio.wait_for(got.get(), SECONDS)
        assert (await ask(worker, chat("quick")))[-1].finish == "stop"
        assert all(got.empty() for got in held)


async def test_refusals_and_failures_say_whose_fault_they_are() -> None:
    script = (
        refuses(400, error("too long", param="messages", code="context_length_exceeded")),
        refuses(401, error("who?")),
        refuses(429, Retry_After="9"),
        refuses(500, error("broken")),
    )
    async with Server(*script) as server, working(server) as worker:
        last = [(await ask(worker, chat()))[-1] for _ in script]
        assert [(f.fault, f.code, f.param, f.retry_after) for f in last] == [
            ("caller", "context_length_exceeded", "messages", None),
            ("operator", "remote_key_refused", None, None),
            ("hxd", "remote_busy", None, 9.0),
            ("backend", None, None, None),
        ]
        assert last[0].message == "too long"


async def test_tools_and_a_schema_go_out_and_calls_come_back() -> None:
    function = {"name": "f", "arguments": '{"a":1}'}
    script = says(
        delta(tool_calls=[{"index": 0, "id": "c1", "function": function}]),
        delta(finish="tool_calls"),
        DONE,
    )
    async with Server(script) as server, working(server) as worker:
        schema = {"type": "object"}
        got, done = await ask(
            worker,
            chat(
                tools=wire.Tools([wire.Tool("f", "adds", schema)], "required"),
                constraint=wire.Constraint("json_schema", json.dumps(schema)),
                logprobs=2,
            ),
        )
        asked = server.requests[0].json
        assert asked["tools"][0]["function"]["parameters"] == schema
        assert (asked["tool_choice"], asked["top_logprobs"]) == ("required", 2)
        assert asked["response_format"]["json_schema"]["schema"] == schema
        assert got.calls == [wire.CallDelta(0, "c1", "f", '{"a":1}')]
        assert done.finish == "tool_calls"


async def test_logprobs_come_back_in_both_shapes() -> None:
    scored = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    listed = {"tokens": ["b"], "token_logprobs": [-1.5], "top_logprobs": [{"b": -1.5}]}
    script = (
        says(event({"choices": [{"delta": {"content": "a"}, "logprobs": scored}]}), DONE),
        says(event({"choices": [{"text": "b", "logprobs": listed}]}), DONE),
    )
    async with Server(*script) as server, working(server) as worker:
        got, _ = await ask(worker, chat(logprobs=0))
        assert got.logprobs == [wire.Logprob(-1, b"a", -0.5)]
        got, _ = await ask(worker, wire.Generate(next(_ids), 0, text="x", echo=True, logprobs=1))
        assert got.logprobs == [wire.Logprob(-1, b"b", -1.5, [(-1, b"b", -1.5)])]
        assert server.requests[1].json["echo"] is True


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


async def test_embeddings_come_back_as_vectors() -> None:
    def answer(*rows: Any) -> dict[str, Any]:
        data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": 5}}

    packed = base64.b64encode(floats(1, 2)).decode()
    script = (
        says_whole(answer([1, 2], [3, 4])),
        refuses(400, error("encoding_format is not supported", param="encoding_format")),
        says_whole(answer(packed)),
        says_whole(answer([1, 2])),
    )
    async with Server(*script) as server, working(server) as worker:
        request = wire.Embed(next(_ids), ["a", "b"])
        assert await ask(worker, request) == [
            wire.Vectors(request.id, 0, 2, floats(1, 2, 3, 4)),
            wire.Done(request.id, "stop", 5, 0),
        ]
        got = await ask(worker, wire.Embed(next(_ids), [[1, 2, 3]]))
        assert got[0].data == floats(1, 2)
        sent = [request.json for request in server.requests]
        assert ["encoding_format" in asked for asked in sent] == [True, True, False]
        assert sent[2]["input"] == [[1, 2, 3]]
        (failed,) = await ask(worker, wire.Embed(next(_ids), ["a", "b"]))
        assert (failed.fault, "1 vectors for 2 inputs" in failed.message) == ("backend", True)


async def test_many_embeddings_take_several_frames() -> None:
    rows = [{"embedding": [float(i)] * 1024} for i in range(600)]
    async with Server(says_whole({"data": rows})) as server, working(server) as worker:
        *frames, done = await ask(worker, wire.Embed(next(_ids), ["x"] * 600))
        assert isinstance(done, wire.Done)
        assert len(frames) > 1
        assert b"".join(frame.data for frame in frames) == b"".join(
            floats(*[float(i)] * 1024) for i in range(600)
        )


async def test_rankings_come_back_as_scores() -> None:
    results = [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": -2}]
    script = (refuses(404), says_whole({"results": results}))
    async with Server(*script) as server, working(server) as worker:
        request = wire.Rank(next(_ids), "q", ["a", "b"])
        assert await ask(worker, request) == [
            wire.Vectors(request.id, 0, 1, floats(-2, 0.75)),
            wire.Done(request.id, "stop", 0, 0),
        ]
        assert [request.path for request in server.requests] == ["/v1/rerank", "/rerank"]


async def test_tokens_and_texts_come_from_the_server_where_it_has_them() -> None:
    script = (
        says_whole({"tokens": [{"id": 5, "piece": "h"}, {"id": 6, "piece": [195]}]}),
        says_whole({"content": "hi"}),
        refuses(404),
        refuses(404),
    )
    async with Server(*script) as server, working(server) as worker:
        request = wire.Tokenize(next(_ids), "hi")
        assert await ask(worker, request) == [
            wire.Tokens(request.id, [5, 6], [b"h", b"\xc3"]),
            wire.Done(request.id, "stop", 2, 0),
        ]
        got, _ = await ask(worker, wire.Detokenize(next(_ids), [5, 6]))
        assert got.text == "hi"
        (failed,) = await ask(worker, wire.Tokenize(next(_ids), "hi"))
        assert failed.fault == "caller"
        assert "has no /tokenize" in failed.message
        assert [request.path for request in server.requests] == [
            "/tokenize", "/detokenize", "/tokenize", "/v1/tokenize",
        ]  # fmt: skip

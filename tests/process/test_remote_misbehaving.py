"""The remote plugin's relay against a server that does everything wrong, in one loop with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import LoadRequest, RelayFailed, RequestRefused
from plugins.remote import exchange
from plugins.remote.main import hxd_backend
from plugins.remote.relay import Remote
from tests import misbehaving
from tests.misbehaving import (
    DONE,
    EVENTS,
    Behaviour,
    Conversation,
    Server,
    answers,
    cuts,
    delta,
    endless,
    error,
    event,
    refuses,
    resets,
    says,
    says_whole,
    silent,
    stalls,
    usage,
    writes,
)  # fmt: skip

KEY = "sk-test-0123456789abcdef"
GONE = "closed the connection without an answer"


@contextlib.asynccontextmanager
async def remote(url: str, **options: Any) -> AsyncIterator[Remote]:
    relay = hxd_backend(options={"url": url, **options})
    assert isinstance(relay, Remote)
    await relay.open(LoadRequest("here", None, 2048, 4, 1))
    try:
        yield relay
    finally:
        await relay.close()


@contextlib.asynccontextmanager
async def talking(*script: Behaviour, **options: Any) -> AsyncIterator[tuple[Server, Remote]]:
    """A server that behaves as told, and a relay to it."""
    async with Server(*script) as server, remote(server.url, **options) as relay:
        yield server, relay


def chat(text: str = "hello", **settings: Any) -> wire.Generate:
    return wire.Generate(id=5, seed=9, messages=[wire.Message("user", text)], **settings)


async def ask(relay: Remote, request: wire.Request | None = None) -> tuple[str, wire.Done]:
    frames: list[wire.Frame] = []
    async with asyncio.timeout(30):
        done = await relay.relay(request or chat(), frames.append)
    return said(frames), done


def said(frames: list[wire.Frame]) -> str:
    return "".join(
        delta.text for frame in frames if isinstance(frame, wire.Step) for delta in frame.deltas
    )


async def failure(relay: Remote, request: wire.Request | None = None) -> RelayFailed:
    """The failure that the request ends with, and nothing of an answer before it."""
    frames: list[wire.Frame] = []
    with pytest.raises(RelayFailed) as caught:
        async with asyncio.timeout(30):
            await relay.relay(request or chat(), frames.append)
    assert frames == []
    assert KEY not in str(caught.value)
    return caught.value


async def refusal(relay: Remote, request: wire.Request | None = None) -> Any:
    with pytest.raises(RequestRefused) as caught:
        await ask(relay, request)
    assert KEY not in str(caught.value)
    return caught.value


# As it should be.


async def test_an_answer_comes_through_with_its_counts() -> None:
    async with talking(answers("Hel", "lo")) as (server, relay):
        assert await ask(relay) == ("Hello", wire.Done(5, "stop", 7, 3, 3))
        assert server.requests[0].path == "/v1/chat/completions"
        assert "authorization" not in server.requests[0].headers


async def test_requests_share_a_connection_one_after_the_other() -> None:
    async with talking(answers("a")) as (server, relay):
        for _ in range(5):
            await ask(relay)
        assert (len(server.requests), server.connections) == (5, 1)


async def test_an_answer_that_is_not_streamed_is_taken_all_the_same() -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2},
    }
    async with talking(says_whole(whole)) as (_, relay):
        assert await ask(relay) == ("Hi", wire.Done(5, "stop", 4, 2))


async def test_tokens_are_counted_by_chunks_where_the_server_counts_none() -> None:
    script = says(delta("a"), delta("b"), delta(finish="length"), DONE)
    async with talking(script) as (_, relay):
        assert await ask(relay) == ("ab", wire.Done(5, "length", 0, 2))


async def test_a_stream_without_its_last_event_is_complete_if_it_says_why_it_ends() -> None:
    script = says(delta("a"), delta(finish="stop"), usage(1, 2))
    async with talking(script) as (_, relay):
        assert await ask(relay) == ("a", wire.Done(5, "stop", 1, 2))


async def test_comments_and_empty_chunks_are_no_text() -> None:
    script = says(b": still there\r\n\r\n", event({"choices": []}), delta("a", finish="stop"), DONE)
    async with talking(script) as (_, relay):
        assert (await ask(relay))[0] == "a"


async def test_a_text_longer_than_a_frame_comes_in_parts() -> None:
    text = "ä€😀x" * 30_000
    async with talking(says(delta(text, finish="stop"), DONE)) as (_, relay):
        frames: list[wire.Frame] = []
        await relay.relay(chat(), frames.append)
        assert max(len(wire.encode(frame)) for frame in frames) < wire.TO_DAEMON_LIMIT
        assert said(frames) == text


async def test_a_prompt_of_megabytes_arrives_whole() -> None:
    async with talking(answers("a")) as (server, relay):
        await ask(relay, chat("ä" * (3 << 20)))
        assert len(server.requests[0].json["messages"][0]["content"]) == 3 << 20


async def test_reasoning_calls_and_logprobs_come_through() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    part = {"index": 0, "function": {"arguments": '{"a":1}'}}
    scores = {"content": [{"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}]}
    script = says(
        delta(reasoning_content="hm"),
        event({"choices": [{"index": 0, "delta": {"content": "H"}, "logprobs": scores}]}),
        delta(tool_calls=[call]),
        delta(tool_calls=[part]),
        delta(finish="tool_calls"),
        DONE,
    )
    async with talking(script) as (_, relay):
        frames: list[wire.Frame] = []
        done = await relay.relay(chat(), frames.append)
        deltas = [delta for frame in frames for delta in frame.deltas]  # type: ignore[attr-defined]
        assert deltas == [
            wire.Delta(5, [], "", [], [], "hm"),
            wire.Delta(5, [], "H", [], [wire.Logprob(-1, b"H", -0.5)]),
            wire.Delta(5, [], "", [wire.CallDelta(0, "c1", "f", "")]),
            wire.Delta(5, [], "", [wire.CallDelta(0, None, None, '{"a":1}')]),
        ]
        assert done.finish == "tool_calls"


async def test_a_resumed_answer_is_refused() -> None:
    async with talking(answers("a")) as (server, relay):
        assert "can't be continued" in str(await failure(relay, chat(resume=[1])))
        assert server.requests == []


# Connecting.


async def test_a_server_that_is_not_there_is_named_with_the_reason() -> None:
    url = misbehaving.closed_port()
    async with remote(url, retries=1) as relay:
        error = await failure(relay)
        assert (error.fault, url[7:-3] in str(error)) == ("backend", True)
        assert "Connection refused" in str(error)
        assert relay.gauges()["remote_up"] == 0.0
        assert relay.gauges()["remote_retries"] == 1.0


async def test_a_server_that_comes_up_later_is_used() -> None:
    async with Server(answers("a")) as server:
        url = server.url
    async with remote(url, retries=0) as relay:
        await failure(relay)
        late = Server(answers("late"))
        port = int(url.rpartition(":")[2].removesuffix("/v1"))
        listening = await asyncio.start_server(late._accept, "127.0.0.1", port)
        async with listening:
            assert (await ask(relay))[0] == "late"
            assert relay.gauges()["remote_up"] == 1.0
            await relay.close()


async def test_a_name_that_does_not_exist_is_named() -> None:
    async with remote("http://no-such-host.invalid/v1", retries=0) as relay:
        assert "no-such-host.invalid is not found" in str(await failure(relay))


async def test_a_connection_that_does_not_come_about_in_time_is_given_up() -> None:
    with misbehaving.deaf_port() as url:
        async with remote(url, connect=0.1, retries=1) as relay:
            error = await failure(relay)
            assert "can't connect" in str(error)
            assert "within 0.1 s" in str(error)
            assert relay.gauges()["remote_retries"] == 1.0


async def test_a_tls_handshake_with_a_silent_server_is_given_up() -> None:
    async with Server(silent) as server:
        url = server.url.replace("http:", "https:")
        async with remote(url, connect=0.1, retries=0) as relay:
            assert "can't connect" in str(await failure(relay))


async def test_a_server_that_closes_at_once_is_asked_again() -> None:
    async with talking(resets, answers("a")) as (server, relay):
        assert (await ask(relay))[0] == "a"
        assert len(server.requests) == 2


async def test_a_server_that_always_closes_at_once_fails_after_the_retries() -> None:
    async with talking(resets, retries=2) as (server, relay):
        assert GONE in str(await failure(relay))
        assert len(server.requests) == 3


# Time.


async def test_a_server_that_takes_the_request_and_says_nothing_is_given_up() -> None:
    async with talking(silent, first_byte=0.2) as (server, relay):
        error = await failure(relay)
        assert "has not begun to answer within 0.2 s" in str(error)
        await asyncio.wait_for(server.left.wait(), 30)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [stalls(), endless(b": patience\n\n"), endless(event({"choices": []}))],
    ids=["headers-only", "comments", "empty-chunks"],
)
async def test_signs_of_life_without_content_do_not_stretch_the_first_byte(
    behaviour: Behaviour,
) -> None:
    async with talking(behaviour, first_byte=0.3) as (_, relay):
        assert "within 0.3 s" in str(await failure(relay))


@pytest.mark.parametrize(
    "behaviour",
    [stalls(delta("begun")), endless(b": patience\n\n", delta("begun"))],
    ids=["silence", "comments"],
)
async def test_a_stream_that_stalls_fails_after_what_has_come(behaviour: Behaviour) -> None:
    async with talking(behaviour, stall=0.2) as (server, relay):
        frames: list[wire.Frame] = []
        with pytest.raises(RelayFailed, match=r"stalled: nothing came for 0.2 s in mid-answer"):
            await relay.relay(chat(), frames.append)
        assert said(frames) == "begun"
        await asyncio.wait_for(server.left.wait(), 30)
        assert len(server.requests) == 1


async def test_a_server_that_never_ends_a_finished_answer_does_not_hold_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "TAIL_SECONDS", 0.1)
    finished = delta("a") + delta(finish="stop")
    for behaviour in (
        stalls(finished),
        endless(b": bye\n\n", finished),
        endless(usage(1, 2), finished),
    ):
        async with talking(behaviour) as (server, relay):
            text, done = await ask(relay)
            assert (text, done.finish) == ("a", "stop")
            await asyncio.wait_for(server.left.wait(), 30)


async def test_what_comes_after_the_last_event_is_not_read() -> None:
    async with talking(says(delta("a") + DONE + delta("b"))) as (_, relay):
        assert (await ask(relay))[0] == "a"


# Streams that break.


async def test_a_stream_that_is_cut_after_its_first_byte_fails_and_is_not_asked_again() -> None:
    async with talking(cuts(delta("begun"))) as (server, relay):
        frames: list[wire.Frame] = []
        with pytest.raises(RelayFailed, match="cut its answer off"):
            await relay.relay(chat(), frames.append)
        assert len(server.requests) == 1
        assert said(frames) in ("", "begun")


async def test_a_stream_that_is_cut_before_its_first_byte_is_asked_again() -> None:
    script = (cuts(delta(role="assistant")), answers("whole"))
    async with talking(*script) as (server, relay):
        assert (await ask(relay))[0] == "whole"
        assert len(server.requests) == 2


async def test_a_stream_that_is_cut_after_all_has_been_said_is_complete() -> None:
    heard = asyncio.Event()

    async def behave(talk: Conversation) -> None:
        await talk.stream(delta("a"), delta(finish="stop"), delta("heard?"))
        await heard.wait()
        talk.reset()

    def emit(frame: wire.Frame) -> None:
        if said([frame]) == "heard?":
            heard.set()

    async with talking(behave) as (_, relay):
        assert (await relay.relay(chat(), emit)).finish == "stop"


async def test_a_body_that_simply_ends_is_no_end_of_an_answer() -> None:
    for last in (b"", b"data: {", delta("x")[:-10]):
        script = writes(EVENTS + b"Connection: close\r\n\r\n" + delta("begun") + last)
        async with talking(script) as (_, relay):
            with pytest.raises(RelayFailed, match="cut its answer off"):
                await ask(relay)


async def test_an_error_event_ends_the_answer_with_its_words() -> None:
    broken = event({"error": {"message": "out of memory", "type": "server_error"}})
    async with talking(says(delta("a"), broken)) as (_, relay):
        with pytest.raises(RelayFailed, match="broke off: out of memory"):
            await ask(relay)


async def test_an_error_event_about_the_request_is_the_callers() -> None:
    wrong = event({"error": {"message": "too long", "code": 400, "param": "messages"}})
    async with talking(says(wrong)) as (_, relay):
        refused = await refusal(relay)
        assert (str(refused), refused.param) == ("too long", "messages")


async def test_an_answer_that_the_server_gives_up_is_no_answer() -> None:
    async with talking(says(delta("a"), delta(finish="error"), DONE)) as (_, relay):
        with pytest.raises(RelayFailed, match="gave the answer up"):
            await ask(relay)


async def test_a_stream_that_says_nothing_but_its_end_is_no_answer() -> None:
    async with talking(says(DONE)) as (_, relay):
        assert "without saying anything" in str(await failure(relay))


# Garbage.


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (says(event(b"not json")), "no completion"),
        (says(event(b"[1, 2]")), "no completion"),
        (says(event({"choices": "many"})), "no completion"),
        (says(event(b'{"choices":[{"delta":{"content":"\xff\xfe"}}]}')), "no completion"),
        (says(event(b'{"choices":[{"delta":{"content":"\\ud800"}}]}')), "no completion"),
        (says(event(b'{"choices":' + b"[" * 100_000)), "no completion"),
        (says(b"data: " + b"x" * (2 << 20)), "longer than 1048576 bytes"),
        (says(*[b"data: " + b"x" * 60_000 + b"\n"] * 20), "longer than 1048576 bytes"),
        (endless(b"x" * 60_000), "longer than 1048576 bytes"),
        (refuses(200, b"<html>hello</html>", kind="text/html"), "neither events nor JSON"),
        (refuses(200, b"", kind="application/octet-stream"), "neither events nor JSON"),
        (refuses(200, b"{", kind="application/json"), "no completion"),
        (refuses(200, b"{}", kind="application/json"), "no completion"),
        (refuses(200, b"x", Content_Encoding="gzip"), "compressed"),
        (refuses(204), "status 204"),
        (writes(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n"), "what is not HTTP"),
        (writes(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), "what is not HTTP"),
        (writes(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"), "what is not HTTP"),
    ],
    ids=[
        "no-json", "no-object", "wrong-type", "invalid-utf8", "surrogate", "deep", "huge-line",
        "huge-event", "endless-line", "html", "octets", "half-json", "empty-json", "compressed",
        "no-content", "no-http", "huge-header", "many-headers",
    ],
)  # fmt: skip
async def test_garbage_is_the_backends_fault_and_said_so(behaviour: Behaviour, words: str) -> None:
    async with talking(behaviour, first_byte=20) as (server, relay):
        error = await failure(relay)
        assert words in str(error)
        assert error.fault == "backend"
        assert len(str(error)) < 500
        assert len(server.requests) == 1


async def test_an_answer_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.remote.answer.ANSWER_LIMIT", 1 << 20)
    async with talking(endless(delta("y" * 50_000))) as (server, relay):
        with pytest.raises(RelayFailed, match="over 1048576 characters"):
            await ask(relay)
        await asyncio.wait_for(server.left.wait(), 30)


async def test_a_whole_answer_without_end_is_ended() -> None:
    async def behave(talk: Conversation) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
        while True:
            await talk.send(b" " * 60_000)

    async with talking(behave) as (_, relay):
        assert "over 8388608 bytes" in str(await failure(relay))


async def test_more_calls_than_anybody_makes_end_the_answer() -> None:
    calls = [{"index": i, "id": f"c{i}", "function": {"name": "f"}} for i in range(200)]
    async with talking(says(delta(tool_calls=calls))) as (_, relay):
        assert "more than 128 tool calls" in str(await failure(relay))


# Statuses.


async def test_a_redirect_is_not_followed() -> None:
    async with Server(answers("stolen")) as other:
        script = refuses(307, Location=other.url + "/chat/completions")
        async with talking(script) as (server, relay):
            error = await failure(relay)
            assert (error.fault, "redirects are not followed" in str(error)) == ("operator", True)
            assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refusal_is_the_callers_with_the_servers_words(status: int) -> None:
    body = error("max_tokens is too large", param="max_tokens", code="too_large")
    async with talking(refuses(status, body)) as (server, relay):
        refused = await refusal(relay)
        assert (str(refused), refused.param) == ("max_tokens is too large", "max_tokens")
        assert refused.code == "too_large"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        error("The model `there` does not exist.", code="model_not_found"),
        json.dumps({"object": "error", "message": "The model `there` does not exist"}).encode(),
        error('model "there" not found, try pulling it first', type="api_error"),
    ],
    ids=["openai", "vllm", "ollama"],
)
async def test_a_model_that_the_server_does_not_have_is_named(body: bytes) -> None:
    async with talking(refuses(404, body), model="there") as (_, relay):
        refused = await refusal(relay)
        assert (refused.code, refused.param) == ("model_not_found", "model")
        assert "does not have the model 'there'" in str(refused)


async def test_a_wrong_url_is_the_operators() -> None:
    for body in (b"<html>404</html>", b'{"detail":"Not Found"}', b""):
        async with talking(refuses(404, body, kind="text/html")) as (_, relay):
            failed = await failure(relay)
            assert (failed.fault, failed.code) == ("operator", "remote_url")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_not_accepted_is_the_operators_and_never_shown(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_REMOTE_KEY", KEY)
    body = error(f"Incorrect API key provided: {KEY}", code="invalid_api_key")
    async with talking(refuses(status, body), key_env="TEST_REMOTE_KEY") as (server, relay):
        failed = await failure(relay)
        assert (failed.fault, failed.code) == ("operator", "remote_key_refused")
        assert "is not accepted" in str(failed)
        assert "Incorrect" not in str(failed)
        assert KEY not in repr(relay) + repr(vars(relay))
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_key_that_was_changed_in_its_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-old\n")
    file.chmod(0o600)

    async def check(talk: Conversation) -> None:
        right = talk.request.headers["authorization"] == "Bearer sk-new"
        await (answers("in") if right else refuses(401))(talk)

    async with talking(check, key_file=str(file)) as (server, relay):
        assert (await failure(relay)).code == "remote_key_refused"
        assert len(server.requests) == 1
        file.write_text("sk-new\n")
        assert (await ask(relay))[0] == "in"
        assert len(server.requests) == 3


async def test_the_key_is_taken_out_of_what_the_server_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_REMOTE_KEY", KEY)
    said = "x" * 490 + f" your key {KEY} \x1b[31m\r\nis odd"
    for status in (400, 500):
        async with talking(
            refuses(status, error(said, param=KEY, code=KEY)), key_env="TEST_REMOTE_KEY", retries=0
        ) as (_, relay):
            with pytest.raises((RelayFailed, RequestRefused)) as caught:
                await ask(relay)
            shown = f"{caught.value} {vars(caught.value)} {caught.value.args}"
            raw = getattr(caught.value, "raw", "")
            assert KEY[:6] not in shown.replace(repr(raw), "")
            assert "\x1b" not in str(caught.value)


async def test_an_html_page_of_a_proxy_is_not_shown() -> None:
    page = b"<html><title>502 Bad Gateway</title></html>" * 3000
    script = refuses(502, page, kind="text/html")
    async with talking(script, retries=0) as (_, relay):
        failed = await failure(relay)
        assert str(failed).endswith("answered with status 502")
        assert failed.fault == "backend"


async def test_an_error_whose_body_never_ends_is_an_error_all_the_same() -> None:
    async def behave(talk: Conversation) -> None:
        await talk.send(b"HTTP/1.1 500 No\r\nContent-Type: text/html\r\n\r\n")
        while True:
            await talk.send(b"x" * 60_000)

    async with talking(behave) as (server, relay):
        assert "status 500" in str(await failure(relay))
        await asyncio.wait_for(server.left.wait(), 30)


async def test_a_used_up_account_is_the_operators() -> None:
    for status, code in ((402, None), (429, "insufficient_quota")):
        async with talking(refuses(status, error("no money", code=code))) as (server, relay):
            failed = await failure(relay)
            assert (failed.fault, failed.code) == ("operator", "remote_quota")
            assert len(server.requests) == 1


# Trying again.


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_server_that_is_down_for_a_moment_is_asked_again_once(status: int) -> None:
    async with talking(refuses(status), answers("a")) as (server, relay):
        assert (await ask(relay))[0] == "a"
        assert len(server.requests) == 2
        assert relay.gauges()["remote_retries"] == 1.0


@pytest.mark.parametrize("status", [500, 501, 408, 418])
async def test_other_errors_are_not_asked_again(status: int) -> None:
    async with talking(refuses(status)) as (server, relay):
        with pytest.raises((RelayFailed, RequestRefused)):
            await ask(relay)
        assert len(server.requests) == 1


async def test_a_busy_server_is_asked_again_when_it_says_soon() -> None:
    async with talking(refuses(429, Retry_After="0"), answers("a")) as (server, relay):
        assert (await ask(relay))[0] == "a"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "after"), [(429, "60"), (429, None), (503, "60")], ids=["later", "unsaid", "down"]
)
async def test_a_server_that_wants_a_longer_pause_gets_it(status: int, after: str | None) -> None:
    headers = {} if after is None else {"Retry_After": after}
    async with talking(refuses(status, **headers)) as (server, relay):
        failed = await failure(relay)
        assert failed.retry_after == (None if after is None else 60.0)
        assert failed.fault == ("hxd" if status == 429 else "backend")
        assert len(server.requests) == 1


async def test_second_tries_are_bounded_by_the_budget_of_the_worker() -> None:
    """Of 24 requests that all fail at once, 20 % may be tried again, which is four."""
    gate = asyncio.Event()
    arrived = asyncio.Semaphore(0)

    async def behave(talk: Conversation) -> None:
        arrived.release()
        await gate.wait()
        await talk.reply(503)

    async with talking(behave, retries=1) as (server, relay):
        tasks = [asyncio.create_task(failure(relay)) for _ in range(24)]
        for _ in tasks:
            await arrived.acquire()
        gate.set()
        await asyncio.gather(*tasks)
        assert len(server.requests) == 24 + 4
        assert relay.gauges()["remote_retries"] == 4.0
        assert relay.gauges()["remote_active"] == 0.0
        # The permits have come back.
        server.script = [refuses(503), answers("a")]
        assert (await ask(relay))[0] == "a"


# What servers don't understand.


@pytest.mark.parametrize(
    "message",
    [
        "Unrecognized request argument supplied: stream_options",
        "stream_options is not supported",
        json.dumps([{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "no"}]),
    ],
)
async def test_a_server_without_stream_options_is_asked_without_from_then_on(message: str) -> None:
    script = (refuses(400, error(message)), answers("a"))
    async with talking(*script) as (server, relay):
        assert (await ask(relay))[0] == "a"
        assert (await ask(relay))[0] == "a"
        sent = ["stream_options" in request.json for request in server.requests]
        assert sent == [True, False, False]


async def test_a_server_that_wants_another_name_for_the_limit_gets_it_from_then_on() -> None:
    message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    script = (refuses(400, error(message, param="max_tokens")), answers("a"))
    async with talking(*script) as (server, relay):
        for _ in range(2):
            assert (await ask(relay, chat(max_tokens=7)))[0] == "a"
        names = [
            [name for name in request.json if name.startswith("max_")]
            for request in server.requests
        ]
        assert names == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


async def test_a_refusal_that_only_names_a_field_teaches_nothing() -> None:
    script = refuses(400, error("seed must be below 100", param="seed"))
    async with talking(script) as (server, relay):
        assert (await refusal(relay)).param == "seed"
        assert len(server.requests) == 1


async def test_a_server_that_refuses_everything_is_not_asked_for_ever() -> None:
    message = "unknown: seed stream_options, use max_completion_tokens"
    async with talking(refuses(400, error(message))) as (server, relay):
        await refusal(relay, chat(max_tokens=1))
        assert len(server.requests) == 2


# Cancelling.


async def test_a_cancelled_request_closes_its_connection() -> None:
    begun = asyncio.Event()
    async with talking(stalls(delta("a"))) as (server, relay):
        task = asyncio.create_task(relay.relay(chat(), lambda frame: begun.set()))
        await asyncio.wait_for(begun.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 30)


async def test_a_cancel_during_the_pause_gives_the_permit_back() -> None:
    refused = asyncio.Event()

    async def behave(talk: Conversation) -> None:
        await talk.reply(503, Retry_After="2")
        # The next thing that this server is asked comes two seconds later.
        asyncio.get_running_loop().call_soon(refused.set)

    async with talking(behave) as (_, relay):
        task = asyncio.create_task(relay.relay(chat(), lambda frame: None))
        await asyncio.wait_for(refused.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert relay._budget.retrying == 0
        assert relay.gauges()["remote_active"] == 0.0


# TLS.


async def test_a_server_that_speaks_no_tls_is_said_not_to() -> None:
    def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with remote(f"https://127.0.0.1:{port}/v1", retries=0) as relay:
            assert "can't connect to the remote server" in str(await failure(relay))


async def test_a_certificate_counts_only_if_the_operator_trusts_it(tmp_path: Path) -> None:
    trusted, own = misbehaving.certificate(tmp_path)
    async with Server(answers("private"), tls=own) as server:
        async with remote(server.url) as relay:
            failed = await failure(relay)
            assert "a certificate that is not trusted: self-signed certificate" in str(failed)
            assert (failed.fault, server.requests) == ("backend", [])
        async with remote(server.url, ca_file=str(trusted)) as relay:
            assert (await ask(relay))[0] == "private"
        async with remote(server.url.replace("127.0.0.1", "localhost"), ca_file=str(trusted)) as r:
            assert "a certificate that is not trusted" in str(await failure(r))


# The look at the start.


async def test_the_start_says_what_it_found() -> None:
    found = {}
    async with Server(silent) as server:
        for models in (["there"], ["other"], None):
            server.models = models
            relay = hxd_backend(options={"url": server.url, "model": "there"})
            info = await relay.open(LoadRequest("here", None, 2048, 4, 1))
            found[str(models)] = info.details["server at start"]
            await relay.close()
    assert found["['there']"] == "answers"
    assert found["['other']"] == "answers, and does not list the model 'there'"
    assert "status 404" in found["None"]
    assert info.details["model"] == "there"


async def test_no_two_workers_share_a_vocabulary() -> None:
    vocabularies = set()
    for _ in range(2):
        relay = hxd_backend(options={"url": misbehaving.closed_port()})
        info = await relay.open(LoadRequest("here", None, 2048, 4, 1))
        vocabularies.add(info.vocab)
        await relay.close()
    assert len(vocabularies) == 2


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, misbehaving.closed_port())
    async with talking(answers("a")) as (_, relay):
        assert (await ask(relay))[0] == "a"


async def test_no_cookie_is_kept() -> None:
    script = (refuses(503, Set_Cookie="a=b; Path=/"), answers("a"))
    async with talking(*script) as (server, relay):
        await ask(relay)
        assert all("cookie" not in request.headers for request in server.requests)

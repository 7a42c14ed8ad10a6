"""One hxd in front of another: what a client of the first sees of the second."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests import misbehaving
from tests.support import DEMO, Daemon, chat, echo, get, post, running, write_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

HXCTL = "from hxd.cli.ctl import hxctl; hxctl()"
RIGHT, WRONG = "TEST_REMOTE_RIGHT", "TEST_REMOTE_WRONG"
WRONG_KEY = "hxd-00000000-wrongwrongwrong"
CHAT = "/v1/chat/completions"


def remote(name: str, url: str, *, environment: tuple[str, ...] = (), **options: Any) -> str:
    """A `[models.NAME]` table for the remote plugin."""
    lines = [f'[models."{name}"]', 'plugin = "remote"', f"environment = {json.dumps(environment)}"]
    lines += [f'[models."{name}".options]', f"url = {json.dumps(url)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join([*lines, ""])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """The second daemon: it wants a key. `slow` and `full` have one slot, and `full` no queue."""
    models = DEMO.format(replicas=1) + echo()
    models += echo("slow", slots=1, options={"rate": 20})
    models += echo("full", slots=1, queue=0, options={"rate": 20})
    config = write_config(tmp_path_factory.mktemp("behind"), models, auth=True)
    async with running(config) as daemon:
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def key(behind: Daemon) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HXCTL, "--socket", str(behind.folder / "run" / "admin.sock")),
        *("--json", "key", "create", "front", "--role", "inference"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    made: str = json.loads(output)["key"]
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(
    behind: Daemon, key: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Daemon]:
    """The first daemon, whose models are those of the second under other names."""
    folder = tmp_path_factory.mktemp("front")
    file = folder / "remote.key"
    file.write_text(key + "\n")
    file.chmod(0o600)
    url = behind.url + "/v1"
    known: dict[str, Any] = {"key_env": RIGHT, "environment": (RIGHT,)}
    models = [
        remote("far/echo", url, model="echo", **known),
        remote("echo", url, key_file=str(file)),
        remote("far-demo", url, model="hxd-demo", **known),
        remote("far-slow", url, model="slow", **known),
        remote("far-full", url, model="full", retries=0, **known),
        remote("far-gone", url, model="gone", **known),
        remote("only-text", url, model="echo", capabilities=["generate"], **known),
        remote("locked-out", url, model="echo", key_env=WRONG, environment=(WRONG,)),
        remote("down", misbehaving.closed_port(), retries=0),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RIGHT, key)
        patch.setenv(WRONG, WRONG_KEY)
        async with running(write_config(folder, "".join(models))) as daemon:
            yield daemon


async def direct(behind: Daemon, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """The second daemon's own answer."""
    headers = {"Authorization": f"Bearer {key}"}
    status, answer, _ = await post(behind.url + CHAT, body, headers=headers)
    assert status == 200
    return answer


async def streamed(daemon: Daemon, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as it should."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with (
        aiohttp.ClientSession() as session,
        session.post(daemon.url + CHAT, json=asked) as response,
    ):
        assert response.status == 200
        *events, last = (await response.text()).strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


@pytest.mark.parametrize("model", ["far/echo", "echo"], ids=["key-env", "key-file"])
async def test_a_whole_answer_comes_under_the_name_here_with_the_counts_there(
    front: Daemon, behind: Daemon, key: str, model: str
) -> None:
    status, answer, _ = await post(front.url + CHAT, chat(model, "Grüße, wörld 😀"))
    there = await direct(behind, key, chat("echo", "Grüße, wörld 😀"))
    assert status == 200
    assert texts(answer) == ["Grüße, wörld 😀"]
    assert answer["model"] == model
    assert answer["usage"] == there["usage"]
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_comes_in_as_many_chunks_as_there(front: Daemon) -> None:
    chunks = await streamed(front, chat("far/echo", "abcdef"))
    said = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert "".join(text or "" for text in said) == "abcdef"
    assert sum(bool(text) for text in said) == 6
    assert chunks[-1]["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.9}])
async def test_choices_are_those_that_the_second_daemon_would_give(
    front: Daemon, behind: Daemon, key: str, settings: dict[str, Any]
) -> None:
    asked = {"n": 2, "seed": 11, "max_tokens": 12, **settings}
    _, answer, _ = await post(front.url + CHAT, chat("far-demo", "What is 12 + 13?", **asked))
    there = await direct(behind, key, chat("hxd-demo", "What is 12 + 13?", **asked))
    assert texts(answer) == texts(there)
    assert answer["usage"]["completion_tokens"] == there["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == there["usage"]["prompt_tokens"]


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
ADD = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "add"}}


def shape(value: Any, *, about: bool = False) -> Any:
    """An answer without what differs between two answers to the same question. `about`: equal to
    what is near, since a prompt that is read anew and one from a cache give probabilities that
    differ in the fourth digit."""
    passing = {"created", "hxd", "model", "system_fingerprint", "prompt_tokens_details"}
    match value:
        case dict():
            return {
                name: "…" if name == "id" else shape(inner, about=about)
                for name, inner in value.items()
                if name not in passing
            }
        case list():
            return [shape(inner, about=about) for inner in value]
        case float() if about:
            return pytest.approx(value, abs=0.05)
    return value


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "sum", "schema": SCHEMA},
            }
        },
        {"tools": [ADD], "tool_choice": "required"},
        {"tools": [ADD], "tool_choice": NAMED, "parallel_tool_calls": False},
        {"tools": [ADD], "tool_choice": "none"},
        {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repeat_penalty": 1.1, "top_k": 5},
        {"logit_bias": {"70": 5}, "min_p": 0.1},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
async def test_a_chat_is_answered_as_the_second_daemon_would(
    front: Daemon, behind: Daemon, key: str, settings: dict[str, Any]
) -> None:
    asked = {"seed": 4, "max_tokens": 120 if "tools" in settings else 24, **settings}
    status, answer, _ = await post(front.url + CHAT, chat("far-demo", "What is 2 + 3?", **asked))
    assert status == 200, answer
    there = await direct(behind, key, chat("hxd-demo", "What is 2 + 3?", **asked))
    assert shape(answer) == shape(there, about=True)
    (choice,) = answer["choices"]
    assert bool(choice["logprobs"]) == ("logprobs" in settings)
    assert ("tool_calls" in choice["message"]) == (
        settings.get("tool_choice") in ("required", NAMED)
    )
    if "response_format" in settings and choice["finish_reason"] == "stop":
        json.loads(choice["message"]["content"])


@pytest.mark.parametrize("settings", [{"logprobs": 2}, {"logprobs": 0}, {"echo": True}])
async def test_a_text_completion_is_answered_as_the_second_daemon_would(
    front: Daemon, behind: Daemon, key: str, settings: dict[str, Any]
) -> None:
    asked = {"prompt": "Once upon", "seed": 4, "max_tokens": 8, **settings}
    path = "/v1/completions"
    status, answer, _ = await post(front.url + path, {"model": "far-demo", **asked})
    assert status == 200, answer
    headers = {"Authorization": f"Bearer {key}"}
    _, there, _ = await post(behind.url + path, {"model": "hxd-demo", **asked}, headers=headers)
    assert shape(answer) == shape(there, about=True)


async def test_limits_and_stop_strings_hold(front: Daemon) -> None:
    _, answer, _ = await post(front.url + CHAT, chat("echo", "one two three", max_tokens=5))
    assert (texts(answer), answer["choices"][0]["finish_reason"]) == (["one t"], "length")
    _, answer, _ = await post(front.url + CHAT, chat("echo", "one two three", stop=["two"]))
    assert (texts(answer), answer["choices"][0]["finish_reason"]) == (["one "], "stop")


async def test_text_completions_go_through(front: Daemon) -> None:
    status, answer, _ = await post(
        front.url + "/v1/completions", {"model": "echo", "prompt": "abc", "max_tokens": 9}
    )
    assert (status, answer["choices"][0]["text"]) == (200, "abc")
    tokens = {"model": "echo", "prompt": [104, 105], "max_tokens": 9}
    _, answer, _ = await post(front.url + "/v1/completions", tokens)
    assert answer["choices"][0]["text"] == "hi"


async def test_texts_become_tokens_and_back(front: Daemon) -> None:
    asked = {"model": "far/echo", "content": "hä", "with_pieces": True}
    _, answer, _ = await post(front.url + "/tokenize", asked)
    assert answer["tokens"] == [
        {"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 164, "piece": [164]},
    ]  # fmt: skip
    _, answer, _ = await post(
        front.url + "/detokenize", {"model": "far/echo", "tokens": [104, 195, 164]}
    )
    assert answer["content"] == "hä"


async def begin(
    session: aiohttp.ClientSession, front: Daemon, model: str
) -> aiohttp.ClientResponse:
    """A stream on the only slot of `model`, begun and endless."""
    body = chat(model, "x", stream=True, ignore_eos=True, max_tokens=2000)
    response = await session.post(front.url + CHAT, json=body)
    assert response.status == 200
    await response.content.readline()
    return response


async def test_a_client_that_leaves_frees_the_slot_of_the_second_daemon(
    front: Daemon, behind: Daemon, key: str
) -> None:
    async with aiohttp.ClientSession() as session:
        (await begin(session, front, "far-slow")).close()
    # Its only slot serves somebody else once the one who left has lost it.
    assert texts(await direct(behind, key, chat("slow", "a"))) == ["a"]


async def test_a_full_queue_there_is_told_with_the_time_to_wait(front: Daemon) -> None:
    async with aiohttp.ClientSession() as session:
        response = await begin(session, front, "far-full")
        status, answer, headers = await post(front.url + CHAT, chat("far-full", "a"))
        response.close()
    assert status in (429, 503)
    assert headers["Retry-After"] == "1"
    assert answer["error"]["code"] == "remote_busy"


async def test_a_key_that_is_not_accepted_is_no_fault_of_the_client(
    front: Daemon, key: str
) -> None:
    status, answer, _ = await post(front.url + CHAT, chat("locked-out", "a"))
    assert status >= 500
    assert answer["error"]["code"] == "remote_key_refused"
    assert "the operator's key" in answer["error"]["message"]
    for secret in (WRONG_KEY, key):
        assert secret not in json.dumps(answer) + front.log


async def test_a_model_that_is_not_there_is_named(front: Daemon) -> None:
    status, answer, _ = await post(front.url + CHAT, chat("far-gone", "a"))
    assert 400 <= status < 500
    assert answer["error"]["code"] == "model_not_found"
    assert "'gone'" in answer["error"]["message"]


async def test_a_refusal_there_is_the_clients_here(front: Daemon) -> None:
    status, answer, _ = await post(front.url + CHAT, chat("far-demo", "x" * 9000))
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"


async def test_what_the_operator_says_a_server_can_not_do_is_refused_here(front: Daemon) -> None:
    asked = {"model": "only-text", "input": "a"}
    status, answer, _ = await post(front.url + "/v1/embeddings", asked)
    assert (status, answer["error"]["code"]) == (400, "unsupported_by_model")
    assert "'only-text'" in answer["error"]["message"]


async def test_what_the_server_can_not_do_is_refused_there(front: Daemon) -> None:
    status, answer, _ = await post(
        front.url + "/v1/embeddings", {"model": "far/echo", "input": "a"}
    )
    assert status == 400
    assert "can't make embeddings" in answer["error"]["message"]


async def test_a_server_that_is_down_leaves_its_replica_ready_and_says_why(front: Daemon) -> None:
    status, _ = await get(front.url + "/readyz")
    assert status == 200
    status, answer, _ = await post(front.url + CHAT, chat("down", "a"))
    assert status == 502
    assert "Connection refused" in answer["error"]["message"]


async def test_operators_see_what_is_served_and_no_key(front: Daemon, key: str) -> None:
    _, body = await get(front.url + "/admin/v1/replicas")
    assert isinstance(body, list)
    details = {row["model"]: row["details"] for row in body}
    assert details["far/echo"]["model"] == "echo"
    assert details["far/echo"]["server at start"] == "answers"
    assert "does not list the model 'gone'" in details["far-gone"]["server at start"]
    assert "is not accepted" in details["locked-out"]["server at start"]
    assert key not in json.dumps(body)


async def test_a_variable_reaches_the_workers_of_the_model_that_names_it(front: Daemon) -> None:
    _, body = await get(front.url + "/admin/v1/replicas")
    seen = {
        row["model"]: {RIGHT, WRONG} & psutil.Process(row["pid"]).environ().keys() for row in body
    }
    assert (seen["far/echo"], seen["locked-out"], seen["down"]) == ({RIGHT}, {WRONG}, set())


async def test_a_second_daemon_that_dies_in_mid_answer_ends_the_stream_with_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    far = echo("slow", options={"rate": 20})
    async with running(write_config(tmp_path / "a", far)) as second:
        near = remote("slow", second.url + "/v1")
        async with running(write_config(tmp_path / "b", near)) as first:
            body = chat("slow", "x", stream=True, ignore_eos=True, max_tokens=2000)
            async with (
                aiohttp.ClientSession() as session,
                session.post(first.url + CHAT, json=body) as response,
            ):
                await response.content.readline()
                await second.kill()
                rest = (await response.read()).decode()
            last = rest.strip().rpartition("\n\n")[2]
            assert last.startswith('data: {"error":')
            assert "cut its answer off" in last
            # The worker itself is none the worse.
            assert (await get(first.url + "/readyz"))[0] == 200

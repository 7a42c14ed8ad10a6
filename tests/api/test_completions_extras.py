"""Echo, infill and values for the chat template."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest

from tests.support import Daemon, chat, echo, post, running, usage, write_config

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def completed(shared: Daemon, model: str = "echo", **body: Any) -> dict[str, Any]:
    status, answer, _ = await post(shared.url + "/v1/completions", {"model": model} | body)
    assert status == 200, answer
    return answer


async def streamed(url: str, body: dict[str, Any]) -> dict[int, str]:
    """The text of each choice of a streamed text completion."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body | {"stream": True}) as response,
    ):
        data = (await response.read()).decode()
    texts: dict[int, str] = {}
    for line in data.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


async def test_an_echoed_answer_begins_with_its_prompt(shared: Daemon) -> None:
    answer = await completed(shared, prompt="hé", echo=True)
    assert answer["choices"][0]["text"] == "héhé"
    assert answer["usage"] == usage(3, 4)


async def test_every_choice_of_every_prompt_is_echoed(shared: Daemon) -> None:
    body: dict[str, Any] = {"prompt": ["ab", [99, 100]], "n": 2, "echo": True, "max_tokens": 1}
    answer = await completed(shared, **body)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["aba", "aba", "cdc", "cdc"]
    assert await streamed(shared.url, {"model": "echo"} | body) == dict(enumerate(texts))


async def test_an_echo_with_nothing_after_it_needs_no_model(shared: Daemon) -> None:
    answer = await completed(shared, prompt="hello", echo=True, max_tokens=0)
    assert answer["choices"][0]["text"] == "hello"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == usage(5, 0)


async def test_a_stop_string_in_an_echoed_prompt_stops_nothing(shared: Daemon) -> None:
    answer = await completed(shared, prompt="one stop", echo=True, stop="stop")
    assert answer["choices"][0]["text"] == "one stopone "


async def test_control_tokens_in_an_echoed_prompt_are_spelled_as_they_were_sent(
    shared: Daemon,
) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n"
    answer = await completed(shared, "hxd-demo", prompt=prompt, echo=True, max_tokens=1)
    assert answer["choices"][0]["text"].startswith(prompt)


async def test_an_echo_of_more_than_a_frame_arrives_whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    models = echo("long", context=2_000_000, slots=1)
    async with running(write_config(tmp_path_factory.mktemp("long"), models)) as daemon:
        prompt = "0123456789" * 130_000
        [worker] = daemon.workers()
        body = {"model": "long", "prompt": prompt, "echo": True, "max_tokens": 1}
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                daemon.url + "/v1/completions",
                data=io.BytesIO(json.dumps(body).encode()),
                headers={"Content-Type": "application/json"},
            ) as response,
        ):
            answer = await response.json()
        assert response.status == 200, answer
        assert answer["choices"][0]["text"] == prompt + "0"
        assert daemon.workers() == [worker]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": "yes"}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": False, "max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"suffix": 5}, "suffix"),
        ({"prompt": [100, 101], "suffix": "x"}, "suffix"),
        ({"prompt": ["a", [100, 101]], "suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=str,
)
async def test_what_does_not_go_together_is_refused(
    shared: Daemon, change: dict[str, Any], param: str
) -> None:
    body = {"model": "hxd-demo", "prompt": "hi"} | change
    status, answer, _ = await post(shared.url + "/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_an_empty_suffix_asks_for_nothing(shared: Daemon) -> None:
    answer = await completed(shared, prompt="hi", suffix="")
    assert answer["choices"][0]["text"] == "hi"


async def test_values_for_the_template_that_it_does_not_know_change_nothing(shared: Daemon) -> None:
    values = {"enable_thinking": False, "x": [1.5, None, {"y": "<|im_end|>"}]}
    body = chat("hxd-demo", "What is 2 + 3?", temperature=0, chat_template_kwargs=values)
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "5"


@pytest.mark.parametrize(
    "values",
    [
        {"messages": []},
        {"tools": []},
        {"bos_token": ""},
        {"eos_token": ""},
        {"add_generation_prompt": False},
        {"x": 10**30},
        {"x": ["y"] * 30_000},
        {"x": "y" * 1_000_000, "z": "y" * 50_000},
        [],
        "text",
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_values_that_are_not_the_clients_to_set_are_refused(
    shared: Daemon, values: Any
) -> None:
    body = chat("hxd-demo", "hi", chat_template_kwargs=values)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            shared.url + "/v1/chat/completions",
            data=io.BytesIO(json.dumps(body).encode()),
            headers={"Content-Type": "application/json"},
        ) as response,
    ):
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["param"] == "chat_template_kwargs"


@pytest.mark.parametrize("levels", [64, 100, 129, 500, 900, 970, 1000, 5000])
@pytest.mark.parametrize(
    ("field", "begin", "end"),
    [
        ("chat_template_kwargs", '{"a":', "}"),
        ("json_schema", '{"items":', "}"),
        ("tools", '[{"type":"function","function":{"name":"f","parameters":{"items":', "}}}]"),
        ("response_format", '{"type":"json_object","schema":', "}"),
    ],
)
async def test_values_nested_to_any_depth_are_refused_and_harm_nobody(
    shared: Daemon, field: str, begin: str, end: str, levels: int
) -> None:
    mark = len(shared.log)
    deep = begin + '{"items":' * levels + "{}" + "}" * levels + end
    body = json.dumps(chat("hxd-demo", "hi", max_tokens=1))[:-1] + f', "{field}": {deep}}}'
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body.encode())
    assert status == 400, answer
    param = answer["error"]["param"]
    assert param is None or param.startswith(field)
    assert "Traceback" not in shared.log[mark:]
    assert "from=ready" not in shared.log[mark:]


@pytest.mark.parametrize(
    "value", [rb'"\ud800"', rb'{"\ud800": 1}', b'"\xff"', b"NaN", b"-Infinity", b"1e400"]
)
@pytest.mark.parametrize(
    ("field", "begin", "end"),
    [
        ("chat_template_kwargs", b'{"a": ', b"}"),
        ("json_schema", b'{"const": ', b"}"),
        ("tools", b'[{"type": "function", "function": {"name": "f", "parameters": {"x": ', b"}}}]"),
        ("tool_choice", b'{"type": ', b"}"),
        ("grammar", b"", b""),
    ],
)
async def test_what_is_no_json_or_no_text_is_refused_wherever_it_stands(
    shared: Daemon, field: str, begin: bytes, end: bytes, value: bytes
) -> None:
    body = json.dumps(chat("echo", "hi")).encode()[:-1]
    body += b', "%s": %s%s%s}' % (field.encode(), begin, value, end)
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 400, answer
    param = answer["error"]["param"]
    assert param is None or param.startswith(field)
    assert "[...]" not in (param or "")

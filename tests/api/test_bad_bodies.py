"""What a client can get wrong in a body, and that the answer names it in OpenAI's error shape."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest

from tests.support import Daemon, chat, post, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")

USER = {"role": "user", "content": "hi"}


def raw(field: str, value: bytes) -> bytes:
    """A chat request with one field's JSON written by hand."""
    body = json.dumps(chat("echo", "hi")).encode()
    return body[:-1] + b', "%s": %s}' % (field.encode(), value)


async def refused(
    shared: Daemon,
    body: Any,
    *,
    status: int = 400,
    path: str = "/v1/chat/completions",
    **headers: str,
) -> dict[str, Any]:
    """The error object of an answer that must be a refusal in OpenAI's shape."""
    mark = len(shared.log)
    got, answer, _ = await post(shared.url + path, body, headers=headers)
    assert got == status, answer
    assert answer.keys() == {"error"}
    error: dict[str, Any] = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert "Traceback" not in shared.log[mark:]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nope", b"'", b'{"model": "echo",}', b"null", b"[]", b"5", b'"text"',
        b"\xff\xfe", b"\xef\xbb\xbf{}", '{"model": "echo"}'.encode("utf-16"),
        b'{"model": "echo", "messages": []} {}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        rb'{"model": "echo", "messages": [{"role": "user", "content": "\ud800"}]}',
        rb'{"model": "echo", "messages": [{"role": "user", "content": "\udc00 x"}]}',
        rb'{"model": "\ud800", "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model": ' * 100_000,
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_what_is_no_json_object_is_refused(shared: Daemon, body: bytes, path: str) -> None:
    error = await refused(shared, body, path=path)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("field", ["anything", "tools", "metadata", "logit_bias", "stop"])
async def test_a_field_100000_deep_is_refused(shared: Daemon, field: str) -> None:
    await refused(shared, raw(field, b"[" * 100_000 + b"]" * 100_000))


@pytest.mark.parametrize(
    "number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1" + b"0" * 400, b"1" + b"0" * 10_000]
)
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed", "n", "top_k", "top_p"])
async def test_numbers_beyond_all_bounds_are_refused(
    shared: Daemon, field: str, number: bytes
) -> None:
    error = await refused(shared, raw(field, number))
    assert error["param"] in (field, None)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [USER, {"content": "hi"}]}, "messages[1].role"),
        ({"messages": [USER, {"role": "king", "content": "hi"}]}, "messages[1].role"),
        ({"messages": [USER, {"role": 5, "content": "hi"}]}, "messages[1].role"),
        ({"messages": [{**USER, "name": 5}]}, "messages[0].name"),
        ({"messages": [USER, "hi"]}, "messages[1]"),
        ({"messages": [USER, None]}, "messages[1]"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**18}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop": "x" * 100_000}, "stop"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(10_000)}}, "logit_bias"),
        ({"user": 5}, "user"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_wrong_value_is_refused_by_its_path(
    shared: Daemon, change: dict[str, Any], param: str
) -> None:
    error = await refused(shared, chat("echo", "hi") | change)
    assert error["param"] == param
    assert error["message"].startswith(param)


@pytest.mark.parametrize("value", ["much", None, [1], {}])
async def test_a_bias_that_is_no_number_is_refused(shared: Daemon, value: Any) -> None:
    error = await refused(shared, chat("echo", "hi", logit_bias={"5": value}))
    assert error["param"].startswith("logit_bias")


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_a_missing_field_is_named(shared: Daemon, field: str) -> None:
    body = chat("echo", "hi")
    del body[field]
    error = await refused(shared, body)
    assert error["param"] == field
    assert "required" in error["message"]


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], [""], None, 5, {}, [1.5], [True], [None], [-1], [1 << 31], [10**30],
     ["a", [1.5]], [["a"]], ["a"] * 5000, "absent"],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_a_wrong_prompt_is_refused_by_name(shared: Daemon, prompt: Any) -> None:
    body = {"model": "echo"} if prompt == "absent" else {"model": "echo", "prompt": prompt}
    error = await refused(shared, body, path="/v1/completions")
    assert error["param"].startswith("prompt")


@pytest.mark.parametrize("content", ["", []])
async def test_a_conversation_without_a_token_is_refused(shared: Daemon, content: Any) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": content}]}
    assert (await refused(shared, body))["param"] == "messages"


@pytest.mark.parametrize("token", [546, 1_000_000, (1 << 31) - 1])
async def test_tokens_outside_the_vocabulary_are_refused(shared: Daemon, token: int) -> None:
    body = {"model": "hxd-demo", "prompt": [token]}
    assert str(token) in (await refused(shared, body, path="/v1/completions"))["message"]
    biased = chat("hxd-demo", "hi", logit_bias={str(token): 1})
    if token < 10**9:
        assert str(token) in (await refused(shared, biased))["message"]


@pytest.mark.parametrize("model", ["echo", "hxd-demo"])
async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(
    shared: Daemon, model: str
) -> None:
    for path, body, param in (
        ("/v1/chat/completions", chat(model, "x" * 2048), "messages"),
        ("/v1/completions", {"model": model, "prompt": "x" * 2048}, "prompt"),
        ("/v1/completions", {"model": model, "prompt": [100] * 3000}, "prompt"),
    ):
        error = await refused(shared, body, path=path)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == param
        assert "2048" in error["message"]
        numbers = [int(word) for word in error["message"].split() if word.isdigit()]
        assert len(numbers) >= 2
        assert max(numbers) >= 2048


@pytest.mark.parametrize("model", ["echo", "hxd-demo"])
async def test_a_prompt_of_megabytes_is_refused_and_delays_nobody(
    shared: Daemon, model: str
) -> None:
    async with aiohttp.ClientSession() as session:
        for text in ("x" * 4_000_000, "\U0001f600" * 300_000, "<|im_end|>" * 300_000):
            body = io.BytesIO(json.dumps(chat(model, text)).encode())
            async with session.post(
                shared.url + "/v1/chat/completions",
                data=body,
                headers={"Content-Type": "application/json"},
            ) as response:
                assert response.status == 400
                error = (await response.json())["error"]
                assert error["code"] == "context_length_exceeded"
    status, _, _ = await post(
        shared.url + "/v1/chat/completions", chat(model, "still here", max_tokens=1)
    )
    assert status == 200


async def test_a_prompt_that_just_fits_is_answered(shared: Daemon) -> None:
    status, answer, _ = await post(shared.url + "/v1/chat/completions", chat("echo", "x" * 2047))
    assert status == 200
    assert answer["usage"] == usage(2047, 1)
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_an_unknown_model_is_refused_with_the_names_there_are(
    shared: Daemon, path: str
) -> None:
    for name in ("hxd-dmo", "", "x" * 100_000, "hxd-demo@99", "echo:q8_0", "../echo", "ECHO"):
        body = {"model": name, "messages": [USER], "prompt": "hi"}
        error = await refused(shared, body, status=404, path=path)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        for served in ("hxd-demo", "echo", "slow"):
            assert served in error["message"]
        assert len(error["message"]) < 1000


@pytest.mark.parametrize("reference", ["hxd-demo@2", "hxd-demo@stable"])
async def test_a_reference_may_name_the_version(shared: Daemon, reference: str) -> None:
    status, answer, headers = await post(
        shared.url + "/v1/chat/completions", chat(reference, "hi", max_tokens=1)
    )
    assert status == 200
    assert answer["model"] == "hxd-demo"
    assert headers["x-hxd-version"] == "2"


UNSUPPORTED = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_what_openai_knows_and_hxd_does_not_is_refused_by_name(
    shared: Daemon, name: str
) -> None:
    error = await refused(shared, chat("echo", "hi") | {name: UNSUPPORTED[name]})
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"


UNABLE = {
    "logprobs": {"logprobs": True},
    "response_format": {"response_format": {"type": "json_object", "schema": {}}},
    "json_schema": {"json_schema": {}},
    "grammar": {"grammar": 'root ::= "a"'},
    "tool_choice": {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
    },
}


@pytest.mark.parametrize("name", UNABLE)
async def test_what_the_backend_of_a_model_can_not_do_is_refused_by_name(
    shared: Daemon, name: str
) -> None:
    error = await refused(shared, chat("echo", "hi") | UNABLE[name])
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("name", "value"),
    [("tools", []), ("tools", None), ("tool_choice", "auto"), ("tool_choice", "none"),
     ("functions", []), ("function_call", "none"), ("logprobs", False), ("top_logprobs", 0)],
)  # fmt: skip
async def test_a_parameter_at_its_neutral_value_is_taken(
    shared: Daemon, name: str, value: Any
) -> None:
    status, answer, _ = await post(
        shared.url + "/v1/chat/completions", chat("echo", "hi") | {name: value}
    )
    assert status == 200, answer


@pytest.mark.parametrize(("name", "value"), [("suffix", "x"), ("logprobs", 1), ("best_of", 3)])
async def test_unsupported_parameters_of_text_completions_are_refused_by_name(
    shared: Daemon, name: str, value: Any
) -> None:
    body = {"model": "echo", "prompt": "hi", name: value}
    error = await refused(shared, body, path="/v1/completions")
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
async def test_content_that_is_no_text_is_refused_by_its_type(
    shared: Daemon, part: dict[str, Any]
) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": [part]}]}
    error = await refused(shared, body)
    assert error["param"] == "messages[0].content[0].type"
    assert part["type"] in error["message"]


async def test_messages_of_the_old_function_role_are_refused(shared: Daemon) -> None:
    body = {"model": "echo", "messages": [USER, {"role": "function", "content": "5"}]}
    assert (await refused(shared, body))["param"] == "messages[1].role"

"""Paths, methods, headers and raw bytes: whatever comes, the answer is OpenAI's error in HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support import Daemon, chat, get, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMIT = 4 << 20
BODY = json.dumps(chat("echo", "hi")).encode()


def request(
    path: str = "/v1/chat/completions",
    *headers: str,
    method: str = "POST",
    body: bytes = BODY,
    host: str = "Host: localhost",
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", host, *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([line for line in lines if line] + ["", ""]).encode("latin-1") + body


async def answers(
    shared: Daemon, data: bytes, count: int = 1
) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each of `count` answers to raw bytes on one connection."""
    parts = urlsplit(shared.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        got = []
        async with asyncio.timeout(60):
            for _ in range(count):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                length = 0 if data.startswith(b"HEAD ") else int(headers["content-length"])
                got.append((int(head[0].split()[1]), headers, await reader.readexactly(length)))
        return got
    finally:
        writer.close()
        await writer.wait_closed()


async def refusal(shared: Daemon, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of a refusal, which must have OpenAI's shape and log no traceback."""
    mark = len(shared.log)
    [(status, headers, body)] = await answers(shared, data)
    assert headers["content-type"].startswith("application/json"), body
    assert headers["server"] == "hxd"
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    await get(shared.url + "/livez")
    assert "Traceback" not in shared.log[mark:]
    return status, error


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/models/", "/v1/chat", "/V1/models", "//v1/models", "/v1//models",
     "/v1/../v1/models", "/v1/%2e%2e/v1/models", "/api", "/api/api/v1/models", "/admin",
     "/admin/v1", "/%ff", "/%00", "/%zz", "/[", "/" + "a" * 20_000],
)  # fmt: skip
async def test_a_path_that_is_not_served_is_404_in_the_openai_shape(
    shared: Daemon, path: str
) -> None:
    status, error = await refusal(shared, request(path, method="GET", body=b""))
    assert status == 404
    assert error["code"] == "not_found"
    assert len(error["message"]) < 1000


async def test_an_escaped_letter_is_the_letter(shared: Daemon) -> None:
    [(status, _, body)] = await answers(shared, request("/v1/%6dodels", method="GET", body=b""))
    assert status == 200
    assert json.loads(body)["object"] == "list"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/echo", "GET"),
        ("PUT", "/livez", "GET"),
        ("PATCH", "/api/v1/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("TRACE", "/health", "GET"),
    ],
)
async def test_a_wrong_method_is_405_with_the_right_one(
    shared: Daemon, method: str, path: str, allowed: str
) -> None:
    [(status, headers, body)] = await answers(shared, request(path, method=method, body=b""))
    assert status == 405
    assert allowed.lower() in headers["allow"].split(", ")
    error = json.loads(body)["error"]
    assert error["code"] == "method_not_allowed"
    assert allowed in error["message"]


async def test_the_same_routes_answer_below_api(shared: Daemon) -> None:
    assert await get(shared.url + "/api/v1/models") == await get(shared.url + "/v1/models")
    one = "/v1/models/hxd-demo"
    assert await get(shared.url + "/api" + one) == await get(shared.url + one)
    status, answer, _ = await post(shared.url + "/api/v1/chat/completions", chat("echo", "hi"))
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "hi")
    status, answer, _ = await post(
        shared.url + "/api/v1/completions", {"model": "echo", "prompt": "hi"}
    )
    assert (status, answer["choices"][0]["text"]) == (200, "hi")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
     "application/vnd.api+json", "text/json"],
)  # fmt: skip
async def test_a_body_of_another_type_is_415(shared: Daemon, content_type: str) -> None:
    status, answer, _ = await post(
        shared.url + "/v1/chat/completions", BODY, headers={"Content-Type": content_type}
    )
    assert status == 415
    assert content_type.split(";")[0] in answer["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_labelled_in_any_of_its_ways(shared: Daemon, content_type: str) -> None:
    status, _, _ = await post(
        shared.url + "/v1/chat/completions", BODY, headers={"Content-Type": content_type}
    )
    assert status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
async def test_a_compressed_body_is_415(shared: Daemon, encoding: str) -> None:
    status, answer, _ = await post(
        shared.url + "/v1/chat/completions", BODY, headers={"Content-Encoding": encoding}
    )
    assert status == 415
    assert "compressed" in answer["error"]["message"]


async def test_a_body_that_says_it_is_too_large_is_413(shared: Daemon) -> None:
    data = request(body=b"").removesuffix(b"\r\n")
    data += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1)
    status, error = await refusal(shared, data)
    assert status == 413
    assert str(LIMIT) in error["message"]


async def test_a_chunked_body_that_grows_too_large_is_413(shared: Daemon) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 65536 + 2):
            yield b" " * 65536

    async with (
        aiohttp.ClientSession() as session,
        session.post(
            shared.url + "/v1/chat/completions",
            data=chunks(),
            headers={"Content-Type": "application/json"},
        ) as response,
    ):
        assert response.status == 413
        assert str(LIMIT) in (await response.json())["error"]["message"]


async def test_a_chunked_body_is_taken(shared: Daemon) -> None:
    data = request(body=b"").removesuffix(b"\r\n") + b"Content-Type: application/json\r\n"
    data += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    [(status, _, _)] = await answers(shared, data)
    assert status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "localhost.evil.example",
     "evil.example@localhost", "[::1].evil.example", "localhost:evil.example", "\xff", ""],
)  # fmt: skip
async def test_a_host_that_a_web_page_made_up_is_refused(shared: Daemon, host: str) -> None:
    status, error = await refusal(shared, request(host=f"Host: {host}"))
    assert status in (400, 403)
    assert error["code"] == "bad_host"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "[::1]:9"]
)
async def test_addresses_and_localhost_are_taken_as_host(shared: Daemon, host: str) -> None:
    [(status, _, _)] = await answers(shared, request(host=f"Host: {host}"))
    assert status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:1", "null", "x"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/livez", "/metrics", "/nope"])
async def test_a_page_of_another_site_is_refused_everywhere(
    shared: Daemon, origin: str, path: str
) -> None:
    status, error = await refusal(shared, request(path, f"Origin: {origin}"))
    assert status == 403
    assert error["code"] == "bad_origin"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"FOO /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        request("/livez", "Host: localhost", method="GET", body=b""),
        request("/livez", "no colon", method="GET", body=b""),
        request("/livez", "Space : before", method="GET", body=b""),
        request("/livez", "A: b\r\n folded", method="GET", body=b""),
        request("/livez", "A: nul\x00", method="GET", body=b""),
        request("/livez", "A: " + "a" * 40_000, method="GET", body=b""),
        request("/livez", *(f"A{i}: b" for i in range(500)), method="GET", body=b""),
        request("/" + "a" * 40_000, method="GET", body=b""),
        request("/\xff", method="GET", body=b""),
        request("http://[/livez", method="GET", body=b""),
        request().replace(b"\r\n", b"\n"),
        request("/v1/chat/completions", "Transfer-Encoding: chunked"),
        request("/v1/chat/completions", f"Content-Length: {len(BODY) - 1}"),
        request("/v1/chat/completions", "Content-Length: -1", body=b""),
        request("/v1/chat/completions", "Content-Length: +5", body=b""),
        request("/v1/chat/completions", "Content-Length: " + "9" * 30, body=b""),
        request("/v1/chat/completions", "Expect: the-unexpected"),
        request("/v1/chat/completions", "Transfer-Encoding: chunked", body=b"") + b"zz\r\n\r\n",
    ],
    ids=lambda data: repr(data[:20] + b".." + data[-20:]),
)
async def test_a_broken_request_is_refused_in_the_openai_shape(shared: Daemon, data: bytes) -> None:
    status, _ = await refusal(shared, data)
    assert 400 <= status < 500


async def test_a_head_request_has_no_body(shared: Daemon) -> None:
    data = request("/v1/models", method="HEAD", body=b"")
    follow = request("/livez", method="GET", body=b"")
    first, second = await answers(shared, data, 1), await answers(shared, follow)
    assert (first[0][0], first[0][2]) == (200, b"")
    assert second[0][0] == 200


async def test_pipelined_requests_are_answered_in_order(shared: Daemon) -> None:
    texts = ["one", "two", "three"]
    data = b"".join(request(body=json.dumps(chat("echo", text)).encode()) for text in texts)
    got = await answers(shared, data, 3)
    contents = [json.loads(body)["choices"][0]["message"]["content"] for _, _, body in got]
    assert contents == texts


async def test_the_body_of_a_refused_request_is_not_read_as_the_next(shared: Daemon) -> None:
    smuggled = request("/v1/nope", method="GET", body=b"")
    for data in (request("/nope", body=smuggled), request("/v1/models", body=smuggled)):
        got = await answers(shared, data + request("/livez", method="GET", body=b""), 2)
        assert got[0][0] in (404, 405)
        assert (got[1][0], json.loads(got[1][2])) == (200, {"status": "ok"})


async def test_a_request_that_says_continue_is_answered(shared: Daemon) -> None:
    parts = urlsplit(shared.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head, _, body = request("/v1/chat/completions", "Expect: 100-continue").partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    assert (await reader.readline()) == b"HTTP/1.1 100 Continue\r\n"
    await reader.readline()
    writer.write(body)
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    await writer.wait_closed()

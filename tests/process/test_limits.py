"""Bounds on what one connection may cost, with the bounds set low."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.support import chat, echo, post, running, write_config

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(url)
    return await asyncio.open_connection(where.hostname, where.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes."""
    return await asyncio.wait_for(reader.read(), 30)


async def test_headers_that_do_not_come_in_time_end_the_connection(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo(), extra="[limits]\nheader_time = 0.3")
    async with running(config) as daemon:
        for sent in (b"", b"GET /livez HT", GET[:-2]):
            reader, writer = await connect(daemon.url)
            writer.write(sent)
            assert await ended(reader) == b""
            writer.close()


async def test_slow_headers_of_a_later_request_end_the_connection_too(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo(), extra="[limits]\nheader_time = 0.3")
    async with running(config) as daemon:
        reader, writer = await connect(daemon.url)
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /livez HT")
        assert b"HTTP/1.1" not in await ended(reader)
        writer.close()


async def test_an_idle_connection_outlives_the_bound_on_headers(tmp_path: Path) -> None:
    slow = echo("slow", options={"rate": 20})
    config = write_config(tmp_path, slow, extra="[limits]\nheader_time = 0.3")
    async with running(config) as daemon:
        reader, writer = await connect(daemon.url)
        writer.write(GET)
        await reader.readuntil(b'{"status": "ok"}')
        # A whole other answer, which takes longer than the bound, passes meanwhile.
        await post(daemon.url + "/v1/chat/completions", chat("slow", "some twenty letters"))
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_body_that_does_not_come_in_time_is_a_408(tmp_path: Path) -> None:
    config = write_config(tmp_path, echo(), extra="[limits]\nbody_time = 0.3")
    async with running(config) as daemon:
        reader, writer = await connect(daemon.url)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = await ended(reader)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 0.3 s" in answer
        writer.close()


async def test_a_client_that_stops_reading_is_cut_off_and_frees_its_slot(tmp_path: Path) -> None:
    models = echo("flood", slots=1, context=1 << 22)
    config = write_config(tmp_path, models, extra="[limits]\nwrite_stall = 0.3")
    async with running(config) as daemon:
        where = urlsplit(daemon.url)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((where.hostname, where.port))
            body = json.dumps(chat("flood", "x", stream=True, ignore_eos=True)).encode()
            deaf.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            # The only slot serves somebody else once the deaf one has lost it.
            status, _, _ = await post(
                daemon.url + "/v1/chat/completions", chat("flood", "next", max_tokens=4)
            )
            assert status == 200


async def test_a_model_that_cannot_be_served_answers_503_with_the_reason(tmp_path: Path) -> None:
    models = echo() + "[models.gone]\nsource = 'nowhere.gguf'\nrequired = false"
    async with running(write_config(tmp_path, models)) as daemon:
        status, body, headers = await post(daemon.url + "/v1/chat/completions", chat("gone", "hi"))
        assert status == 503
        assert "no such file" in body["error"]["message"]
        assert int(headers["Retry-After"]) >= 1


async def test_hxctl_prints_json_wherever_the_option_stands(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, echo())):
        hxctl = str(Path(sys.executable).with_name("hxctl"))
        for arguments in (["--json", "status"], ["status", "--json"]):
            done = await asyncio.to_thread(
                subprocess.run,
                [hxctl, "--socket", str(tmp_path / "run/admin.sock"), *arguments],
                capture_output=True,
                timeout=60,
            )
            assert json.loads(done.stdout)["models"][0]["model"] == "echo"

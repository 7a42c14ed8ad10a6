"""A daemon whose address changes while clients are connected: nobody is cut off."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import psutil

from tests.reconfiguring import over, pids, proposed
from tests.support import chat, echo, get, post, run_hxctl, running, write_config

WORDS = "a stream that goes on while the box moves to another address"


def free() -> int:
    """A port that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def move(file: Path, address: str) -> None:
    """The next address in the file."""
    before = next(line for line in file.read_text().splitlines() if line.startswith("http = "))
    (file.parent / "part").write_text(file.read_text().replace(before, f'http = "{address}"'))
    (file.parent / "part").rename(file)


async def said(response: aiohttp.ClientResponse) -> str:
    answer = ""
    async for line in response.content:
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                answer += choice["delta"].get("content") or ""
    return answer


async def test_who_is_connected_stays_and_who_comes_finds_the_new_address(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(options={"rate": 20}) + echo("fast"))
    port = free()
    async with (
        running(file) as daemon,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as idle,
        aiohttp.ClientSession() as session,
    ):
        before = await pids(daemon)
        async with idle.get(daemon.url + "/livez") as response:
            assert response.headers.get("Connection") != "close"
        stream = await session.post(
            daemon.url + "/v1/chat/completions", json=chat("echo", WORDS, stream=True)
        )
        move(file, f"127.0.0.1:{port}")
        code, out, err = await run_hxctl(daemon, "config", "check")
        assert (code, out.splitlines()[-1]) == (0, "2 workers stay"), err
        assert f'listen.http: "127.0.0.1:0" → "127.0.0.1:{port}"' in out
        assert (await run_hxctl(daemon, "reload"))[0] == 0
        old, daemon.url = daemon.url, f"http://127.0.0.1:{port}"
        assert (await get(daemon.url + "/livez"))[0] == 200
        # Over the connection that was there, once more; and then no more.
        async with idle.get(old + "/livez") as response:
            assert (response.status, response.headers["Connection"]) == (200, "close")
        try:
            await get(old + "/livez")
        except aiohttp.ClientConnectorError:
            pass
        else:
            raise AssertionError("the old address is still open")
        assert await said(stream) == WORDS
        assert await pids(daemon) == before
        await daemon.wait_log(f"now listening on {daemon.url}")


async def test_no_connection_is_reset_however_often_the_address_changes(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    ports = free(), free()
    move(file, f"127.0.0.1:{ports[0]}")
    failed: list[object] = []
    answered = 0
    done = asyncio.Event()

    async def ask(number: int) -> None:
        """A new connection each time, to either address; one of them refuses it."""
        nonlocal answered
        while not done.is_set():
            for port in ports:
                words = f"words of {number}"
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                try:
                    status, body, _ = await post(url, chat("echo", words))
                except aiohttp.ClientConnectorError:
                    continue
                except aiohttp.ClientError as error:
                    failed.append(error)
                    continue
                if status != 200 or body["choices"][0]["message"]["content"] != words:
                    failed.append(body)
                answered += 1

    async with running(file) as daemon, asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(ask(number))
        for turn in range(1, 9):
            move(file, f"127.0.0.1:{ports[turn % 2]}")
            code, _, err = await run_hxctl(daemon, "reload")
            assert code == 0, err
        done.set()
    assert failed == []
    assert answered > 20


async def test_one_port_goes_from_loopback_to_everywhere_and_back(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(), auth=True)
    port = free()
    move(file, f"127.0.0.1:{port}")
    others = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family is socket.AF_INET and not address.address.startswith("127.")
    ]
    async with running(file, ready=False) as daemon:
        move(file, f"0.0.0.0:{port}")
        assert (await run_hxctl(daemon, "reload"))[0] == 0
        assert (await get(daemon.url + "/v1/models"))[0] == 401
        async with aiohttp.ClientSession() as session:
            for other in others[:1]:
                async with session.get(f"http://{other}:{port}/livez") as response:
                    assert response.status == 200
            # In one change: whoever is connected from elsewhere needs a key as before.
            file.write_text(file.read_text().replace("required = true", "required = false"))
            move(file, f"127.0.0.1:{port}")
            assert (await run_hxctl(daemon, "reload"))[0] == 0
            assert (await get(daemon.url + "/v1/models"))[0] == 200
            for other in others[:1]:
                async with session.get(f"http://{other}:{port}/v1/models") as response:
                    assert (response.status, response.headers["Connection"]) == (401, "close")


async def test_an_address_that_is_taken_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo(queue=1))
    as_it_was = file.read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        said = f"{file}: listen.http: can't listen on {taken}: Address already in use\n"
        async with running(file) as daemon:
            before = await pids(daemon)
            new = tmp_path / "new.toml"
            new.write_text(as_it_was.replace("queue = 1", "queue = 2"))
            move(new, taken)
            for command in ("check", "apply"):
                code, _, err = await run_hxctl(daemon, "config", command, str(new))
                assert (code, err) == (78, said.replace(str(file), str(new)))
            assert file.read_text() == as_it_was
            file.write_text(new.read_text())
            code, _, err = await run_hxctl(daemon, "reload")
            assert (code, err) == (78, said)
            assert await pids(daemon) == before
            _, rows = await get(daemon.url + "/admin/v1/models")
            assert [row["queue"] for row in rows] == [1]  # type: ignore[index]


async def test_a_change_that_is_taken_back_takes_the_address_along(tmp_path: Path) -> None:
    file = write_config(tmp_path, echo())
    first, second = free(), free()
    move(file, f"127.0.0.1:{first}")
    as_it_was = file.read_text()
    bad = echo("bad", options={"fault": "crash", "fault_after": 3})
    async with running(file) as daemon:
        moved = (as_it_was + bad).replace(f":{first}", f":{second}")
        status, answer = await proposed(daemon, "apply", moved, watch=600)
        assert status == 202, answer
        await daemon.wait_log(f"now listening on http://127.0.0.1:{second}")
        url = f"http://127.0.0.1:{second}/v1/chat/completions"
        await breaks(url)
        await daemon.wait_log(f"now listening on http://127.0.0.1:{first}")
        assert (await over(daemon))["phase"] == "rolled back"
        assert file.read_text() == as_it_was


async def breaks(url: str) -> None:
    words = 0
    while True:
        words += 1
        try:
            await post(url, chat("bad", f"the words number {words}"))
        except aiohttp.ClientError:
            return

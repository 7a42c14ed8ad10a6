"""The client's half of scripts/demo: finds a port, waits for the daemon, asks, shows how to ask.

Needs the standard library only. Says what is wrong on stderr and exits with status 1.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "hxd-demo"
FIRST_PORT = 8420
PORTS_TRIED = 20
SPEED_TOKENS = 20


class DemoError(Exception):
    """The demo can't go on; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)

    port = commands.add_parser("port", help="print a free port of 127.0.0.1")
    port.add_argument("--port", type=int, help="this one or none")

    wait = commands.add_parser("wait", help="wait until every model can answer")
    wait.add_argument("--url", required=True)
    wait.add_argument("--pid", type=int, required=True, help="the daemon: its end ends the wait")
    wait.add_argument("--within", type=float, required=True, help="seconds")

    ask = commands.add_parser("ask", help="ask, and print the answer as it comes")
    ask.add_argument("--url", required=True)
    ask.add_argument("--temperature", type=float)
    ask.add_argument("question")

    show = commands.add_parser("show", help="print how to ask with curl and with openai")
    show.add_argument("--url", required=True)
    show.add_argument("question")

    args = parser.parse_args()
    try:
        match args.command:
            case "port":
                print(free_port(args.port))
            case "wait":
                wait_ready(args.url, args.pid, args.within)
            case "ask":
                answer(args.url, args.question, args.temperature)
            case "show":
                print(ways_to_ask(args.url, args.question))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def free_port(wanted: int | None) -> int:
    """The wanted port if it is free, else DemoError; with none wanted, the first free one."""
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if wanted and error.errno == errno.EADDRINUSE:
                    raise DemoError(
                        f"port {port} is taken; choose another, or leave --port out"
                    ) from error
                if wanted:
                    raise DemoError(f"port {port}: {error.strerror}") from error
            else:
                return port
    last = FIRST_PORT + PORTS_TRIED - 1
    raise DemoError(f"ports {FIRST_PORT} to {last} are all taken; choose one with --port")


def wait_ready(url: str, pid: int, within: float) -> None:
    """Returns when /readyz says 200; says what the daemon waits for, whenever that changes."""
    began = time.monotonic()
    shown, shown_at = "", began
    while True:
        phase, ready = progress(url)
        now = time.monotonic()
        if phase != shown or now - shown_at >= 5:
            print(f"  {now - began:5.1f} s  {phase}", file=sys.stderr)
            shown, shown_at = phase, now
        if ready:
            return
        if not running(pid):
            raise DemoError("the daemon ended before it was ready")
        if now - began > within:
            raise DemoError(f"not ready after {within:.0f} s: {phase}")
        time.sleep(0.1)


def progress(url: str) -> tuple[str, bool]:
    """What the daemon is doing, in words, and whether it is ready."""
    try:
        if get(url, "/readyz")[0] == 200:
            return "ready", True
        health = json.loads(get(url, "/health")[1])
    except ConnectionRefusedError:
        return "the daemon starts", False
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"no answer yet ({str(error) or type(error).__name__})", False
    problems = health.get("problems") if isinstance(health, dict) else None
    return "; ".join(problems) if problems else "not ready yet", False


def running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False
    # The state follows the command's name, which stands in parentheses and may contain any.
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def connect(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)


def get(url: str, path: str) -> tuple[int, bytes]:
    connection = connect(url, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def request_body(question: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
    }


def answer(url: str, question: str, temperature: float | None) -> None:
    """Prints the answer as it comes, then its first token's delay and its speed."""
    body = request_body(question) | {"stream_options": {"include_usage": True}}
    if temperature is not None:
        body["temperature"] = temperature
    print(f"\nQ: {question}\nA: ", end="", flush=True)
    began = time.monotonic()
    first = last = None
    tokens = 0
    for chunk in chunks(url, body):
        for choice in chunk.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                last = time.monotonic()
                first = first or last
                print(text, end="", flush=True)
        if usage := chunk.get("usage"):
            tokens = usage["completion_tokens"]
    print(flush=True)
    if first is None or last is None:
        raise DemoError("the answer is empty")
    line = f"   first token after {(first - began) * 1000:.0f} ms"
    # The first token comes at the end of the prompt's own pass, so it isn't part of the speed;
    # and the speed of a few tokens means nothing.
    if tokens >= SPEED_TOKENS and last > first:
        line += f", then {(tokens - 1) / (last - first):.0f} tokens/s ({tokens} tokens)"
    print(line, file=sys.stderr)


def chunks(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer; DemoError for a refusal or a stream that breaks off."""
    connection = connect(url, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = response.read(2000).decode(errors="replace")
            raise DemoError(f"the daemon answered {response.status}: {said}")
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise DemoError(f"the answer broke off: {event['error'].get('message')}")
            yield event
        raise DemoError("the answer broke off without its end mark")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DemoError(f"the answer broke off: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()


def ways_to_ask(url: str, question: str) -> str:
    """A curl command and five lines of Python that put the same question, to copy."""
    body = shlex.quote(json.dumps(request_body(question)))
    return f"""
Ask it yourself, with curl:

curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}

or with the openai package (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="unused")
messages = [{{"role": "user", "content": {json.dumps(question)}}}]
for chunk in client.chat.completions.create(model="{MODEL}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        # Whoever read the answer has gone; the interpreter must not try to flush to them again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

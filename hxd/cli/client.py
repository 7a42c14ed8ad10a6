"""How `hxctl` asks a daemon, and how it shows and ends."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

EXIT_UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h
EXIT_REFUSED = 77  # EX_NOPERM
EXIT_NOT_NOW = 75  # EX_TEMPFAIL
EXIT_ERROR = 1
# Conflicts with how things are that no waiting mends.
_FOR_GOOD = frozenset({"already_served", "no_canary", "nothing_to_roll_back_to"})
TIMEOUT = 30.0
DRILL_TIMEOUT = 180.0  # seconds; the daemon gives up before
SWAP_DRILL_TIMEOUT = 3600.0  # a version may have to be loaded twice, and a file copied


class Client:
    """One call at a time; prints and exits when the daemon can't be asked or says no."""

    def __init__(self, socket: Path | None, url: str | None, key: str | None, as_json: bool):
        self._socket, self._url, self._key = socket, url, key
        self.as_json = as_json

    def call(self, method: str, path: str, body: Any = None, *, seconds: float = TIMEOUT) -> Any:
        """The daemon's answer; `seconds` is how long it may take."""
        return self.checked(*self.ask(method, path, body, seconds=seconds))

    def ask(
        self, method: str, path: str, body: Any = None, *, seconds: float = TIMEOUT
    ) -> tuple[int, Any]:
        """Status and answer, whether it says yes or no."""
        return asyncio.run(self._call(method, path, body, seconds))

    def checked(self, status: int, answer: Any) -> Any:
        """The answer; prints and exits when it says no."""
        error = answer.get("error", {}) if isinstance(answer, dict) else {}
        if status >= 400 and (status != 503 or error):
            code = EXIT_ERROR if error.get("code") in _FOR_GOOD else exit_code(status)
            fail(error.get("message", f"the daemon answered {status}"), code)
        return answer

    async def _call(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, Any]:
        import aiohttp

        where = self._url or str(self._socket)
        connector = None if self._url else aiohttp.UnixConnector(str(self._socket))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(
                    method,
                    (self._url or "http://localhost").rstrip("/") + path,
                    json=body,
                    headers=headers,
                ) as response,
            ):
                return response.status, await response.json(content_type=None)
        except aiohttp.ClientConnectorError as error:
            why = error.os_error.strerror or error.os_error
            fail(f"no daemon answers at {where}: {why}", EXIT_UNREACHABLE)
        except (aiohttp.ClientError, OSError) as error:
            fail(f"no daemon answers at {where}: {error}", EXIT_UNREACHABLE)
        except (TimeoutError, ValueError) as error:
            fail(f"no sensible answer from {where}: {error}", EXIT_UNREACHABLE)

    def show(self, answer: Any, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """The answer as it came with --json, else the rows as a table."""
        if self.as_json:
            click.echo(json.dumps(answer, indent=2))
            return
        table = Table(*(column.replace("_", " ") for column in columns), box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def exit_code(status: int) -> int:
    """Of a refusal with this HTTP status."""
    if status in (401, 403):
        return EXIT_REFUSED
    return EXIT_NOT_NOW if status in (409, 503) else EXIT_ERROR


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def printable(text: str, *, lines: bool = False) -> str:
    """Text with names in it that others have given, as a terminal may get it: control characters
    are spelled out, so that no file and no description moves the cursor or looks like an answer.
    `lines`: it may have several."""
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
        for one in text
    )


def date(seconds: float | None) -> str | None:
    """Local time of Unix seconds, for people."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"hxctl: {printable(message, lines=True)}", err=True)
    sys.exit(code)


def default_socket() -> Path:
    from hxd.config import Paths
    from hxd.daemon.lock import ADMIN_SOCKET

    return Paths().runtime / ADMIN_SOCKET


def _print_json(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        context.obj.as_json = True


# `hxctl --json status` and `hxctl status --json` are the same.
json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_print_json,
    help="Print the daemon's answer as JSON.",
)

"""What the commands that work on the store have in common: whose store, and how answers look."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hxd.cli.client import EXIT_ERROR, Client, date, fail, json_option, printable
from hxd.cli.main import DEFAULT_CONFIG
from hxd.cli.store import Body, Offline, Online, Store

FileOrFolder = click.Path(path_type=Path)
wait_option = click.option(
    "--wait/--no-wait", default=True, help="Wait for the end, or print the job and go."
)


def with_store(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets a `Store` first: the daemon's."""

    @json_option
    @click.pass_obj
    @functools.wraps(command)
    def run(client: Client, *args: Any, **kwargs: Any) -> None:
        command(Online(client), *args, **kwargs)

    return run


def also_offline(command: Callable[..., None]) -> Callable[..., None]:
    """The same, or with --offline the one that no daemon has."""

    @click.option(
        "--offline",
        is_flag=True,
        help="Work on the store itself, while no daemon runs.",
    )
    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        show_default=True,
        help="With --offline: whose store.",
    )
    @json_option
    @click.pass_obj
    @functools.wraps(command)
    def run(client: Client, offline: bool, config: Path, *args: Any, **kwargs: Any) -> None:
        store: Store = Offline(client, config) if offline else Online(client)
        command(store, *args, **kwargs)

    return run


def read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        fail(f"can't read {file}: {error.strerror}", EXIT_ERROR)
    except UnicodeDecodeError:
        fail(f"{file} is not text in UTF-8", EXIT_ERROR)


def said(key: str, value: Any) -> str:
    return str(date(value)) if key == "when" else str(value)


def print_table(rows: list[tuple[str, str | None]]) -> None:
    for name, said in rows:
        if said:
            click.echo(f"  {name.replace('_', ' '):<26} {printable(said)}")


def print_answer(store: Store, answer: Body, text: str) -> None:
    click.echo(json.dumps(answer, indent=2) if store.client.as_json else printable(text))


def print_job(store: Store, job: Body) -> None:
    print_answer(store, job, f"job {job['id']}: {job['kind']} {job['subject']}".rstrip())

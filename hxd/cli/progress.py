"""How `hxctl` shows long work: a bar with bytes, speed and time left on a terminal, else a line for
each step. On standard error only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hxd.cli.client import Client, printable

# Seconds between two looks: short work is not waited for longer than it takes.
FIRST_POLL, POLL = 0.02, 0.2
EXIT_INTERRUPTED = 130
_OVER = ("done", "failed", "cancelled")
# A job stops within a second or so; one whose disk hangs must not keep the terminal.
_STOPS = 30.0


class Meter:
    """`told` as `Work` has it. `quiet` shows nothing."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._quiet = quiet
        self._step = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._title, total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def told(self, step: str, done: int, total: int) -> None:
        if self._quiet or not step:
            return
        step = printable(step)
        if self._bar is not None:
            (task,) = self._bar.task_ids
            if step != self._step:
                self._bar.reset(task, description=f"{self._title}: {step}", total=total or None)
            self._bar.update(task, completed=done, total=total or None)
        elif step != self._step:
            click.echo(f"{self._title}: {step}", err=True)
        self._step = step


def follow(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job at its end. Ctrl-C asks the daemon to stop it, and ends the process with 130."""
    title = f"{job['kind']} {job['subject']}".rstrip()
    with Meter(title, quiet=client.as_json) as meter:
        try:
            pause = FIRST_POLL
            while job["state"] not in _OVER:
                meter.told(job["step"], job["done"], job["total"])
                time.sleep(pause)
                pause = min(POLL, 1.5 * pause)
                job = look(client, job["id"])
        except KeyboardInterrupt:
            cancel(client, job["id"])
            sys.exit(EXIT_INTERRUPTED)
    return job


def look(client: Client, id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.call("GET", f"/admin/v1/jobs/{id}")
    return job


def cancel(client: Client, id: str) -> dict[str, Any]:
    """Asks for its end, and waits for it."""
    job: dict[str, Any] = client.call("DELETE", f"/admin/v1/jobs/{id}")
    deadline = time.monotonic() + _STOPS
    while job["state"] not in _OVER and time.monotonic() < deadline:
        time.sleep(POLL)
        job = look(client, id)
    click.echo(f"hxctl: job {id} of {job['kind']}: {job['state']}", err=True)
    return job

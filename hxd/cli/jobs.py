"""`hxctl jobs` and `hxctl job`: long work in the daemon."""

from __future__ import annotations

import json

import click
from rich.filesize import decimal

from hxd.cli.client import Client, date, json_option
from hxd.cli.progress import cancel
from hxd.cli.store import Body


@click.command()
@json_option
@click.pass_obj
def jobs(client: Client) -> None:
    """Long work in the daemon: what runs, and what has ended since its start."""
    found = client.call("GET", "/admin/v1/jobs")
    rows = [
        {
            **job,
            "began": date(job["began"]),
            "done": _share(job),
            "why": job["error"] and job["error"]["message"],
        }
        for job in found
    ]
    client.show(found, ("id", "kind", "subject", "state", "step", "done", "began", "why"), rows)


def _share(job: Body) -> str | None:
    if job["state"] != "running" or not job["total"]:
        return None
    return f"{job['done'] / job['total']:.0%} of {decimal(job['total'])}"


@click.group()
def job() -> None:
    """One piece of long work in the daemon."""


@job.command("cancel")
@click.argument("id")
@json_option
@click.pass_obj
def job_cancel(client: Client, id: str) -> None:
    """Stop the job ID; what it has begun is undone."""
    found = cancel(client, id)
    if client.as_json:
        click.echo(json.dumps(found, indent=2))


COMMANDS = (jobs, job)

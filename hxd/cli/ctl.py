"""`hxctl`: ask a running daemon, over its admin socket or over HTTP with a key."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hxd import __version__
from hxd.cli.client import (
    DRILL_TIMEOUT,
    EXIT_ERROR,
    SWAP_DRILL_TIMEOUT,
    Client,
    date,
    default_socket,
    json_option,
)
from hxd.cli.config import COMMANDS as CONFIG
from hxd.cli.config import told
from hxd.cli.jobs import COMMANDS as JOBS
from hxd.cli.model import COMMANDS as MODEL
from hxd.cli.plugin import COMMANDS as PLUGIN
from hxd.cli.rollout import COMMANDS as ROLLOUT


@click.group()
@click.version_option(__version__, prog_name="hxctl")
@click.option("--socket", type=click.Path(path_type=Path), help="Admin socket of the daemon.")
@click.option("--url", envvar="HXD_URL", help="Address of the daemon, such as http://box:8420.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.pass_context
def hxctl(context: click.Context, socket: Path | None, url: str | None, as_json: bool) -> None:
    """Ask and steer a running hxd. With --url, the key is taken from HXD_API_KEY."""
    key = os.environ.get("HXD_API_KEY") if url else None
    context.obj = Client(socket or default_socket(), url, key, as_json)


@hxctl.command()
@json_option
@click.pass_obj
def status(client: Client) -> None:
    """Models, and what is wrong, at a glance."""
    answer = client.call("GET", "/admin/v1/status")
    client.show(
        answer,
        ("model", "state", "version", "variant", "ready", "replicas", "running", "waiting"),
        answer["models"],
    )
    if not client.as_json:
        for rollout in answer["rollouts"]:
            if rollout["running"]:
                click.echo(
                    f"{rollout['model']}: {rollout['kind']} to {rollout['to']} is "
                    f"{rollout['phase']}"
                )
        if (change := answer.get("change")) and change["phase"] not in ("applied", "refused"):
            click.echo(told(change))
        for model in answer["models"]:
            if (left := model.get("former_kept_seconds")) is not None:
                click.echo(f"{model['model']}: {_way_back(model)} is instant for {left:.0f} s more")
        for problem in answer["problems"]:
            click.echo(f"! {problem}")


def _way_back(model: dict[str, Any]) -> str:
    """What leads to the workers that are kept: a rollback, or after one, a swap."""
    kept = next((one for one in model["releases"] if one["role"] == "warm"), None)
    if model["rollback_is_instant"] or kept is None:
        return "hxctl rollback"
    return f"hxctl swap {model['model']} {kept['variant']}@{kept['version']}"


@hxctl.command()
@json_option
@click.pass_obj
def models(client: Client) -> None:
    """Served models."""
    answer = client.call("GET", "/admin/v1/models")
    columns = ("model", "state", "version", "variant", "plugin", "ready", "slots", "queue")
    client.show(answer, columns, answer)


@hxctl.command()
@json_option
@click.pass_obj
def replicas(client: Client) -> None:
    """Workers behind the models."""
    answer = client.call("GET", "/admin/v1/replicas")
    columns = ("replica", "state", "since_seconds", "pid", "running", "restarts")
    more = ("breaker", "health", "weight", "problem", "note")
    rows = [
        {
            **row,
            "breaker": row["breaker"]["state"],
            "health": row["health"]["score"],
            "weight": row["health"]["weight"],
        }
        for row in answer
    ]
    client.show(answer, (*columns, *more), rows)


@hxctl.command()
@json_option
@click.pass_obj
def conditions(client: Client) -> None:
    """What is wrong with the box; exits 1 when something is."""
    answer = client.call("GET", "/admin/v1/conditions")
    client.show(answer, ("severity", "code", "subject", "detail"), answer)
    sys.exit(EXIT_ERROR if answer else 0)


@hxctl.command()
@click.argument("fault", type=click.Choice(["kill", "stall", "slow", "garbage", "swap", "corrupt"]))
@click.argument("model", required=False)
@click.option(
    "--force",
    is_flag=True,
    help="Even if fewer than two replicas would be left; for swap, even if requests have to wait.",
)
@json_option
@click.pass_obj
def drill(client: Client, fault: str, model: str | None, force: bool) -> None:
    """Do FAULT to MODEL on purpose, and report what requests notice.

    \b
    kill     SIGKILL to the busiest worker
    stall    SIGSTOP to it
    slow     stop it more than half of the time, for 8 seconds
    garbage  bytes that are no frame come from it
    swap     another version or variant in service, and back
    corrupt  SIGKILL to it, and a copy of its file with a flipped byte to load again

    hxd makes a light load of its own meanwhile. Without MODEL it is the one with the most replicas.
    Exits 0 when no request failed and none paused for over half a second more than usual, 1 when
    that promise was broken, and 75 when the drill was refused.
    """
    body = {"fault": fault, "model": model, "force": force}
    seconds = SWAP_DRILL_TIMEOUT if fault in ("swap", "corrupt") else DRILL_TIMEOUT
    with Console(stderr=True).status(f"drill: {fault}"):
        answer = client.call("POST", "/admin/v1/drill", body, seconds=seconds)
    if client.as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _show_drill(answer)
    sys.exit(0 if answer["promise_kept"] else EXIT_ERROR)


def _show_drill(report: dict[str, Any]) -> None:
    what = f"{report['fault']} of {report['victim']}"
    if "target" in report:
        what += f" to {report['target'] or 'nothing'}"
    if "spoiled" in report:
        what += f": {report['spoiled']} flipped"
    promised = report["promised_pause_seconds"]
    more = f"promised {promised * 1e3:.0f} ms more at most" if promised else "none promised"
    rows = [
        ("fault", what),
        ("requests", f"{report['requests']} sent, {report['failed']} failed"),
        ("answers", f"{report['different']} changed; {report['failovers']} went on elsewhere"),
        *_versions(report),
        (
            "longest pause",
            f"{report['longest_pause_seconds'] * 1e3:.0f} ms, usual "
            f"{report['usual_pause_seconds'] * 1e3:.0f} ms, {more}",
        ),
        ("full strength", _after(report["full_strength_seconds"])),
        ("promise", "kept" if report["promise_kept"] else "BROKEN"),
    ]
    for name, said in rows:
        click.echo(f"{name:<14} {said}")
    for problem in report["problems"]:
        click.echo(f"! {problem}")


def _versions(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What only some drills tell of."""
    rows = [
        ("answered by", f"{row['answers']}: {row['serves']}, {row['release']}")
        for row in report.get("answered_by", ())
    ]
    if "mixed" in report:
        rows.append(("of one version", f"all but {report['mixed']}" if report["mixed"] else "each"))
    if "swap_seconds" in report:
        rows += [
            ("swap", _after(report["swap_seconds"])),
            ("rollback", _after(report["rollback_seconds"])),
        ]
        rows += [("passed over", why) for why in report["passed_over"]]
    if "refusal" in report:
        refused = _after(report["refused_seconds"])
        rows.append(("refused", f"{refused}: {report['refusal']}" if report["refusal"] else "NO"))
        rows.append(("quarantine", report["quarantine"] or "none: the version went on serving"))
    if "as_before" in report:
        rows.append(("afterwards", "as before" if report["as_before"] else "NOT as before"))
    return rows


def _after(seconds: float | None) -> str:
    return "not seen" if seconds is None else f"after {seconds:g} s"


@hxctl.group()
def key() -> None:
    """API keys."""


@key.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["inference", "metrics", "operator", "admin"]),
    default="inference",
    show_default=True,
    help="What the key may do.",
)
@json_option
@click.pass_obj
def key_create(client: Client, name: str, role: str) -> None:
    """Make a key for NAME and print it; it is never shown again."""
    answer = client.call("POST", "/admin/v1/keys", {"name": name, "role": role})
    if client.as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(answer["key"])
        click.echo(f"id {answer['id']}, role {answer['role']}; not shown again", err=True)


@key.command("list")
@json_option
@click.pass_obj
def key_list(client: Client) -> None:
    """Keys, without their secrets."""
    answer = client.call("GET", "/admin/v1/keys")
    rows = [
        {**key, "created": date(key["created"]), "revoked": date(key["revoked"])} for key in answer
    ]
    client.show(answer, ("id", "name", "role", "created", "revoked"), rows)


@key.command("revoke")
@click.argument("id")
@json_option
@click.pass_obj
def key_revoke(client: Client, id: str) -> None:
    """Make the key ID worthless, at once."""
    answer = client.call("DELETE", f"/admin/v1/keys/{id}")
    if client.as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(f"revoked {answer['id']} ({answer['name']})")


for command in (*ROLLOUT, *MODEL, *JOBS, *PLUGIN, *CONFIG):
    hxctl.add_command(command)

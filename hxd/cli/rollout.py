"""`hxctl swap`, `rollback`, `promote`, `rollouts`, `events`: which version of a model serves."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from hxd.cli.client import EXIT_ERROR, Client, date, json_option
from hxd.cli.progress import EXIT_INTERRUPTED

POLL = 0.2  # seconds
# What is said once it is there; a trial goes on by itself.
_OVER = ("done", "rolled_back")

_wait_option = click.option(
    "--wait/--no-wait", default=None, help="Wait for the end; the default for all but trials."
)


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@click.option("--plugin", help="NAME@VERSION of the plugin that serves it from now on.")
@click.option("--canary", metavar="SHARE", help="Try it first with a share of the clients: 10%.")
@click.option("--ab", metavar="SHARE", help="Keep both side by side at this share; decide nothing.")
@click.option("--for", "time_", default="10m", show_default=True, help="How long a trial lasts.")
@click.option("--at-least", default=0, help="Requests that the new version must have had.")
@click.option(
    "--sticky",
    type=click.Choice(["key", "conversation"]),
    default="key",
    show_default=True,
    help="What stays with one version: all of a client's key, or one conversation. Requests "
    "without a key go by conversation.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "availability", "resource"]),
    default="auto",
    show_default=True,
    help="Load it beside the old version, or end that first while new requests wait; auto goes "
    "by the memory.",
)
@_wait_option
@json_option
@click.pass_obj
def swap(
    client: Client,
    model: str,
    version: str | None,
    plugin: str | None,
    canary: str | None,
    ab: str | None,
    time_: str,
    at_least: int,
    sticky: str,
    mode: str,
    wait: bool | None,
) -> None:
    """Serve VERSION of MODEL from now on, without a failed request.

    VERSION is a number, a label, a variant such as q8_0, or VARIANT@VERSION; what is not named
    stays as it is. The version before stays ready for a while: hxctl rollback MODEL.

    With --canary, a part of the clients gets it first; hxd compares both and promotes it or takes
    it back by itself.

    Exits 0 when it is in service (or the trial has begun), 1 when it was taken back, 75 when
    another rollout is running.
    """
    if canary is not None and ab is not None:
        raise click.UsageError("give --canary or --ab: hxd decides, or it does not")
    if canary is None and ab is None and (alone := _of_a_trial()):
        raise click.UsageError(f"{alone} is of a trial; give --canary SHARE or --ab SHARE with it")
    if "" in (version, plugin):
        raise click.UsageError("what to serve is empty; name a version, a variant or a plugin")
    body: dict[str, Any] = {"model": model, "mode": mode, "time": time_, "sticky": sticky}
    body |= {"at_least": at_least, "ab": ab is not None}
    if version is not None:
        body["version"] = version
    if plugin is not None:
        body["plugin"] = plugin
    if canary is not None or ab is not None:
        body["canary"] = _share(canary or ab or "")
    rollout = client.call("POST", "/admin/v1/rollouts", body)
    trial = "canary" in body
    follow(client, rollout, until_trial=trial and not wait, wait=wait is not False)


def _of_a_trial() -> str | None:
    """An option that was given, and says nothing of a swap at once."""
    given = click.get_current_context().get_parameter_source
    for name, option in (("time_", "--for"), ("at_least", "--at-least"), ("sticky", "--sticky")):
        if given(name) is not ParameterSource.DEFAULT:
            return option
    return None


def _share(text: str) -> float | str:
    """A number as such; what is none is for the daemon to refuse in its words."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


@click.command()
@click.argument("model")
@_wait_option
@json_option
@click.pass_obj
def rollback(client: Client, model: str, wait: bool | None) -> None:
    """Serve what MODEL served before: at once while that is kept ready, else by loading it.

    A rollout that is running is taken back; one that leads back by itself goes on.
    """
    rollout = client.call("POST", "/admin/v1/rollback", {"model": model})
    # What is on its way back by itself goes on.
    expected = "done" if rollout["back"] else "rolled_back"
    follow(client, rollout, wait=wait is not False, expected=expected)


@click.command()
@click.argument("model")
@_wait_option
@json_option
@click.pass_obj
def promote(client: Client, model: str, wait: bool | None) -> None:
    """End the trial of MODEL's new version in its favour."""
    rollout = client.call("POST", "/admin/v1/promote", {"model": model})
    follow(client, rollout, wait=wait is not False)


@click.command()
@json_option
@click.pass_obj
def rollouts(client: Client) -> None:
    """Rollouts that run, and each model's last one."""
    answer = client.call("GET", "/admin/v1/rollouts")
    rows = [{**row, "began": date(row["began"])} for row in answer]
    client.show(answer, ("model", "kind", "from", "to", "phase", "began", "reason"), rows)
    if not client.as_json:
        for row in answer:
            _show_comparison(row)


@click.command()
@click.argument("subject", required=False)
@click.option("--since", default=0, help="Only events after this number.")
@json_option
@click.pass_obj
def events(client: Client, subject: str | None, since: int) -> None:
    """What has happened to versions, plugins and the configuration, oldest first."""
    found = client.call("GET", f"/admin/v1/events?since={since}")
    found = [event for event in found if subject in (None, event["subject"])]
    rows = [
        {
            **event,
            "at": date(event["at"]),
            "detail": ", ".join(f"{key}: {value}" for key, value in event["detail"].items()),
        }
        for event in found
    ]
    client.show(found, ("number", "at", "kind", "subject", "step", "detail"), rows)


def follow(
    client: Client,
    rollout: dict[str, Any],
    *,
    until_trial: bool = False,
    wait: bool = True,
    expected: str = "done",
) -> None:
    """Show a rollout's steps until it is over; ends the process with 1 when it went otherwise than
    `expected`."""
    quiet = client.as_json
    try:
        if wait:
            rollout = _watched(client, rollout, until_trial)
    except KeyboardInterrupt:
        model = rollout["model"]
        click.echo(
            f"hxctl: the rollout of {model} goes on; hxctl rollouts shows it, hxctl rollback "
            f"{model} takes it back",
            err=True,
        )
        sys.exit(EXIT_INTERRUPTED)
    if quiet:
        click.echo(json.dumps(rollout, indent=2))
    else:
        _say(rollout)
    if not wait or rollout["phase"] not in _OVER or _compared(rollout):
        return
    if rollout["phase"] != expected:
        sys.exit(EXIT_ERROR)


def _compared(rollout: dict[str, Any]) -> bool:
    """Whether it was a comparison that has had its time: to go back is its end."""
    decision = (rollout.get("verdict") or {}).get("decision")
    return bool(rollout["kind"] == "ab" and decision == "inconclusive")


def _watched(client: Client, rollout: dict[str, Any], until_trial: bool) -> dict[str, Any]:
    """The rollout when it is over; its steps are shown as they come."""
    shown = 0
    with Console(stderr=True).status(f"{rollout['model']}: {rollout['to']}") as status:
        while True:
            for step in rollout["steps"][shown:]:
                if not client.as_json:
                    click.echo(f"{step['phase']:<13} {step['detail']}".rstrip(), err=True)
            shown = len(rollout["steps"])
            status.update(f"{rollout['model']}: {rollout['phase']}")
            if rollout["phase"] in _OVER or (until_trial and rollout["phase"] == "trial"):
                return rollout
            time.sleep(POLL)
            rollout = _again(client, rollout)


def _again(client: Client, rollout: dict[str, Any]) -> dict[str, Any]:
    for row in client.call("GET", "/admin/v1/rollouts"):
        if row["id"] == rollout["id"]:
            return dict(row)
    return rollout | {"phase": "rolled_back", "reason": "the daemon knows nothing of it any more"}


def _say(rollout: dict[str, Any]) -> None:
    match rollout["phase"]:
        case "done":
            click.echo(f"{rollout['model']} serves {rollout['to']}")
        case "rolled_back" if _compared(rollout):
            click.echo(f"{rollout['model']}: {rollout['reason']}, {rollout['from']} serves")
            _show_comparison(rollout)
        case "rolled_back":
            click.echo(f"{rollout['model']} was rolled back: {rollout['reason']}")
        case "trial":
            click.echo(
                f"{rollout['to']} gets {rollout['share']:.0%} of the clients for "
                f"{rollout['seconds']:g} s; hxctl rollouts shows how it does"
            )
        case phase:
            click.echo(f"{rollout['model']}: {phase}")
    for note in rollout["notes"]:
        click.echo(f"  {note}")


def _show_comparison(rollout: dict[str, Any]) -> None:
    rows = rollout.get("comparison")
    if not rows:
        return
    click.echo(f"\n{rollout['model']}: {rollout['from']} against {rollout['to']}")
    for row in rows:
        ours, theirs = (_number(row[side]) for side in ("stable", "canary"))
        click.echo(f"  {row['metric']:<16} {ours:>12} {theirs:>12}  {row['unit']}")
    if verdict := rollout.get("verdict"):
        click.echo(f"  {verdict.get('words', '')}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


COMMANDS = (swap, rollback, promote, rollouts, events)

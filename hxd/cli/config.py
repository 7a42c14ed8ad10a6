"""`hxctl config` and `hxctl reload`: what a configuration would mean, putting it in place, going
back."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hxd.cli.client import EXIT_ERROR, EXIT_UNREACHABLE, Client, date, fail, json_option
from hxd.cli.main import DEFAULT_CONFIG
from hxd.errors import ConfigError

POLL = 0.2  # seconds
GOES_ON = (
    "Without hxctl the change goes on, and without this daemon it is the next one that finishes it "
    "or takes it back: hxctl status and hxctl config history say what has become of it."
)
CONFIG = "/admin/v1/config"
# A configuration names models, and looking at those takes as long as hashing them.
LONG = 600.0

_path = click.argument("path", type=click.Path(path_type=Path), required=False)
_watch = click.option(
    "--watch",
    default="30s",
    show_default=True,
    help="How long the box is watched; what makes it worse is taken back.",
)
_yes = click.option("--yes", is_flag=True, help="Don't ask.")
_force = click.option(
    "--force", is_flag=True, help="Overwrite edits on the disk that were never applied."
)


@click.command("reload")
@json_option
@click.pass_obj
def reload_(client: Client) -> None:
    """Make the files on the daemon's disk hold, without a restart.

    Exits 0 when they hold, 1 when the change was taken back, 75 when another one is under way, and
    78 when the files are at fault; then nothing has changed.
    """
    _follow(client, _call(client, "POST", "/admin/v1/reload"))


@click.group()
def config() -> None:
    """The configuration: check, compare, apply, go back.

    PATH is a file, which takes the place of hxd.toml while conf.d stays, or a folder with a
    hxd.toml and perhaps a conf.d, which is a whole configuration. Without PATH it is what lies on
    the daemon's disk.
    """


@config.command()
@_path
@click.option("--offline", is_flag=True, help="Ask no daemon; look at the models from here.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="With --offline: the configuration that PATH is for.",
)
@json_option
@click.pass_obj
def check(client: Client, path: Path | None, offline: bool, config_file: Path) -> None:
    """Say what PATH would change, or every fault in it (exit 78); changes nothing."""
    if offline:
        _check_offline(client, path, config_file)
        return
    answer = _call(client, "POST", f"{CONFIG}/check", _candidate(path))
    _show(client, answer, "\n".join(answer["lines"]))


@config.command()
@_path
@json_option
@click.pass_obj
def diff(client: Client, path: Path | None) -> None:
    """Compare PATH with what holds now, line by line, secrets covered; and say what it means."""
    answer = _call(client, "POST", f"{CONFIG}/diff", _candidate(path))
    _show(client, answer, answer["diff"] + "\n".join(answer["lines"]))


@config.command()
@_path
@_watch
@_force
@_yes
@json_option
@click.pass_obj
def apply(client: Client, path: Path | None, watch: str, force: bool, yes: bool) -> None:
    """Put PATH in place and make it hold, without a restart.

    Exits 0 when it holds, 1 when it was taken back (a step failed, or the box got worse), 75 when
    another change or a rollout is under way, and 78 when it is at fault. The change goes on though
    hxctl ends.
    """
    _change(client, "apply", _candidate(path), watch, force, yes)


@config.command()
@click.argument("number", type=int, required=False)
@_watch
@_force
@_yes
@json_option
@click.pass_obj
def rollback(client: Client, number: int | None, watch: str, force: bool, yes: bool) -> None:
    """Apply revision NUMBER, or the last good one that differs from what holds."""
    _change(client, "rollback", {"back": True, "number": number}, watch, force, yes)


@config.command()
@click.argument("number", type=int, required=False)
@json_option
@click.pass_obj
def history(client: Client, number: int | None) -> None:
    """Configurations that were applied, oldest first; or one, and how it differs from now."""
    if number is not None:
        answer = client.call("GET", f"{CONFIG}/history/{number}")
        files = "\n".join(f"# {name}\n{text}" for name, text in answer["files"].items())
        _show(client, answer, f"{files}\n{answer['diff']}".rstrip())
        return
    answer = client.call("GET", f"{CONFIG}/history")
    rows = [
        {
            **row,
            "time": date(row["time"]),
            "holds": "*" if row["number"] == answer["holds"] else "",
            "files": len(row["sha256"]),
        }
        for row in answer["revisions"]
    ]
    client.show(answer, ("number", "holds", "time", "who", "why", "outcome", "reason"), rows)
    if not client.as_json:
        for problem in answer["unreadable"]:
            click.echo(f"! {problem}", err=True)


def _change(
    client: Client, what: str, asked: dict[str, Any], watch: str, force: bool, yes: bool
) -> None:
    if not client.as_json:
        plan = _call(client, "POST", f"{CONFIG}/diff", asked)
        for line in plan["lines"]:
            click.echo(line, err=True)
        if plan["edited"]:
            click.echo(f"edited by hand and never applied:\n{plan['edits']}", err=True)
        if not yes and sys.stdin.isatty():
            click.confirm("Apply this?", abort=True, err=True)
        # What was shown is what is applied, though somebody writes there meanwhile.
        asked = asked | {"expected": plan["sha256"]}
    body = asked | {"watch": watch, "force": force}
    _follow(client, _call(client, "POST", f"{CONFIG}/{what}", body))


def _candidate(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from hxd.config.files import snapshot
    from hxd.config.load import MAIN, read

    try:
        if path.is_dir():
            files, at = snapshot(path / MAIN), path / MAIN
        else:
            # A file may lie beside a conf.d that has nothing to do with it.
            files, at = {MAIN: read(path, wait=True)}, path
        texts = {}
        for name, data in files.items():
            try:
                texts[name] = data.decode("utf-8")
            except UnicodeDecodeError as error:
                where = at if name == MAIN else at.parent / name
                raise ConfigError([f"{where}: not UTF-8 at byte {error.start}"]) from None
    except ConfigError as error:
        _at_fault(str(error))
    return {"files": texts, "whole": path.is_dir(), "at": str(at)}


def _check_offline(client: Client, path: Path | None, config_file: Path) -> None:
    from hxd.config.files import as_called, snapshot, stage
    from hxd.config.load import MAIN, load_as
    from hxd.daemon.inspection import inspect

    origin = config_file.absolute()
    main, names = origin, [MAIN]
    try:
        files = snapshot(config_file) if path is None else stage(path, config_file)
        if path is not None:
            main, names = (path / MAIN, list(files)) if path.is_dir() else (path, [MAIN])
        loaded = load_as(files, config_file)
        inspection = inspect(loaded)
        if findings := inspection.findings(loaded):
            raise ConfigError(findings)
    except ConfigError as error:
        _at_fault("\n".join(as_called(error.findings, origin, main, names)))
    count = len(inspection.sources)
    models = f"{count} model{'' if count == 1 else 's'}"
    _show(client, {"models": sorted(inspection.sources)}, f"{path or config_file}: OK, {models}")


def _call(client: Client, method: str, path: str, body: Any = None) -> Any:
    status, answer = client.ask(method, path, body, seconds=LONG)
    if status == 400 and answer.get("error", {}).get("code") == "bad_config":
        _at_fault(answer["error"]["message"])
    return client.checked(status, answer)


def _at_fault(findings: str) -> Any:
    click.echo(findings, err=True)
    sys.exit(ConfigError.EXIT_CODE)


def _follow(client: Client, change: dict[str, Any]) -> None:
    """Show the steps until it is over; ends the process with 1 when it was taken back."""
    shown = 0
    began = change["began"]
    with Console(stderr=True).status(change["phase"]) as status:
        while change["running"]:
            shown = _say_steps(client, change, shown)
            status.update(change["phase"])
            time.sleep(POLL)
            try:
                change = client.call("GET", f"{CONFIG}/change?began={began!r}") or {}
            except SystemExit as gone:
                if gone.code == EXIT_UNREACHABLE:
                    click.echo(GOES_ON, err=True)
                raise
            if change.get("began") != began:
                fail("the daemon knows nothing of this change any more", EXIT_ERROR)
    _say_steps(client, change, shown)
    if client.as_json:
        click.echo(json.dumps(change, indent=2))
    elif change["phase"] == "applied":
        # Another daemon than the one that has made the plan does not know it.
        plan = change["plan"] or {"sentence": "applied", "needs_restart": []}
        click.echo(f"revision {change['revision']} holds: {plan['sentence']}")
        for setting in plan["needs_restart"]:
            click.echo(f"  {setting} holds from the next start of the daemon on")
    else:
        click.echo(f"revision {change['revision']} {change['phase']}: {change['reason']}", err=True)
    sys.exit(0 if change["phase"] == "applied" else EXIT_ERROR)


def told(change: dict[str, Any]) -> str:
    """One change of the configuration in a line."""
    number = "a change" if change["revision"] is None else f"revision {change['revision']}"
    what = f"configuration: {number} ({change['why']} by {change['who']})"
    if not change["running"]:
        return f"{what}: {change['reason'] or change['phase']}"
    left = "" if change["until"] is None else f" for {max(0, change['until'] - time.time()):.0f} s"
    phase = {"checking": "is checked", "changing": "is put in place", "watching": "is watched"}
    return f"{what} {phase.get(change['phase'], 'is taken back')}{left}"


def _say_steps(client: Client, change: dict[str, Any], shown: int) -> int:
    """Those that are done and were not said yet."""
    done = [step for step in change["steps"] if step["state"] == "done"]
    if not client.as_json:
        for step in done[shown:]:
            click.echo(f"{step['act']:<8} {step['name']}".rstrip(), err=True)
    return len(done)


def _show(client: Client, answer: Any, text: str) -> None:
    click.echo(json.dumps(answer, indent=2) if client.as_json else text)


COMMANDS = (reload_, config)

"""`hxctl plugin`: what is installed, what is trusted, what is as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hxd.cli.client import EXIT_ERROR, Client, fail, json_option, printable

# Seconds. Making an environment may download and build packages; hashing one takes its time too.
LONG = 3600.0
PLUGINS = "/admin/v1/plugins"


@click.group()
def plugin() -> None:
    """Backends from elsewhere: install, trust, verify, remove."""


@plugin.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Let it run as it is, at once.")
@json_option
@click.pass_obj
def install(client: Client, path: Path, trust: bool) -> None:
    """Copy the plugin at PATH into the store.

    PATH is a folder, a wheel, a .zip or a .tar.gz on the daemon's machine. It does not run before
    it is trusted: compare the digest with the one that its author published.
    """
    body = {"path": str(path.absolute()), "trust": trust}
    answer = _slowly(client, f"installing {path}", f"{PLUGINS}/install", body)
    done = "installed" if answer["added"] else "was installed already"
    _tell(client, answer, f"{answer['plugin']} {done}")


@plugin.command("list")
@json_option
@click.pass_obj
def list_(client: Client) -> None:
    """Every version of every plugin, who trusts it, and what keeps it from running."""
    answer = client.call("GET", PLUGINS)
    rows = [
        {
            **row,
            "plugin": f"{row['name']}@{row['version']}" if row["version"] else row["name"],
            "formats": " ".join(row["formats"]),
            "models": " ".join(row["models"]),
            "digest": (row["digest"] or "")[:12],
        }
        for row in answer["plugins"]
    ]
    client.show(
        answer,
        ("plugin", "source", "trusted", "formats", "models", "digest", "problem"),
        rows,
    )


@plugin.command()
@click.argument("reference", metavar="[NAME@VERSION|FILE]")
@click.option("--key", metavar="NAME", help="Trust the public key in FILE under this name.")
@json_option
@click.pass_obj
def trust(client: Client, reference: str, key: str | None) -> None:
    """Let NAME@VERSION run as it is now; or, with --key, whatever the key's owner has signed.

    FILE is a public Ed25519 key, as PEM or as base64.
    """
    if key is None:
        answer = _slowly(client, f"trusting {reference}", f"{PLUGINS}/trust", {"plugin": reference})
        _tell(client, answer, f"{answer['plugin']} is trusted")
        return
    try:
        text = Path(reference).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{reference} can't be read: {error}", EXIT_ERROR)
    answer = client.call("POST", f"{PLUGINS}/trust", {"key": key, "text": text})
    _say(
        client,
        answer,
        f"what the key {key} has signed is trusted from now on",
        f"key      {answer['public']}",
        "next     hxctl plugin install PATH",
    )


@plugin.command()
@click.argument("reference", metavar="[NAME@VERSION]", required=False)
@click.option("--key", metavar="NAME", help="The key of this name.")
@json_option
@click.pass_obj
def untrust(client: Client, reference: str | None, key: str | None) -> None:
    """Trust NAME@VERSION, or a key, no longer. What runs goes on until its workers end."""
    if (reference is None) == (key is None):
        raise click.UsageError("give NAME@VERSION or --key NAME")
    answer = client.call("POST", f"{PLUGINS}/untrust", {"plugin": reference, "key": key})
    _say(
        client,
        answer,
        f"{reference or f'the key {key}'} is not trusted any more",
        "next     hxctl conditions shows what is still running",
    )


@plugin.command()
@json_option
@click.pass_obj
def keys(client: Client) -> None:
    """Trusted public keys."""
    found = client.call("GET", PLUGINS)["keys"]
    client.show(found, ("name", "key"), found)


@plugin.command()
@click.argument("reference", metavar="[NAME[@VERSION]]", required=False)
@json_option
@click.pass_obj
def verify(client: Client, reference: str | None) -> None:
    """Hash every file again, those of environments too; exits 1 when anything is wrong."""
    answer = _slowly(client, "verifying", f"{PLUGINS}/verify", {"plugin": reference})
    problems = answer["problems"]
    _say(
        client,
        answer,
        *(f"{one['plugin']}: {one['problem']}" for one in problems),
        *([] if problems else ["all as they should be"]),
    )
    sys.exit(EXIT_ERROR if problems else 0)


@plugin.command()
@click.argument("reference", metavar="NAME@VERSION")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@click.pass_obj
def rm(client: Client, reference: str, yes: bool) -> None:
    """Remove NAME@VERSION with its trust; refused (75) while a model needs it."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Remove {reference}?", abort=True, err=True)
    answer = client.call("POST", f"{PLUGINS}/rm", {"plugin": reference})
    _say(client, answer, f"{reference} removed")


def _slowly(client: Client, what: str, path: str, body: dict[str, Any]) -> Any:
    with Console(stderr=True, markup=False).status(what):
        return client.call("POST", path, body, seconds=LONG)


def _tell(client: Client, answer: dict[str, Any], first: str) -> None:
    """What was done, and what an operator does next."""
    reference = answer["plugin"]
    trusted = answer["trusted"] != "no"
    lines = [first, f"digest   {answer['digest']}", f"trusted  {answer['trusted']}"]
    if answer["environment"]:
        lines.append(f"packages {answer['environment']}")
    lines.append(
        f'next     hxctl swap MODEL --plugin {reference}, or plugin = "{reference}" in its table '
        "and hxctl reload"
        if trusted
        else f"next     hxctl plugin trust {reference}"
    )
    _say(client, answer, *lines)


def _say(client: Client, answer: Any, *lines: str) -> None:
    if client.as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for line in lines:
        click.echo(printable(line))


COMMANDS = (plugin,)

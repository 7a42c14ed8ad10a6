"""`hxctl model` and `hxctl label`: models on disk, in whole versions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.filesize import decimal

from hxd.cli import arrive, care
from hxd.cli.client import EXIT_ERROR
from hxd.cli.rollout import follow as follow_rollout
from hxd.cli.store import Body, Store
from hxd.cli.store_options import (
    FileOrFolder,
    also_offline,
    print_answer,
    print_job,
    print_table,
    read_text,
    said,
    wait_option,
    with_store,
)


@click.group()
def model() -> None:
    """Models on disk: whole versions, with labels that point at them.

    REF is NAME[:VARIANT][@VERSION-OR-LABEL]; a bare NAME is NAME@stable.
    """


@click.command("list")
@also_offline
def list_(store: Store) -> None:
    """All models and versions, and who serves them."""
    found = store.models()
    rows = []
    for one in found:
        for version in one["versions"]:
            rows.append(
                {
                    "model": one["name"],
                    "version": version["version"],
                    "labels": ", ".join(version["labels"]),
                    "variants": ", ".join(version.get("variants", ())),
                    "size": decimal(version["bytes"]) if "bytes" in version else None,
                    "created": (version.get("created") or "")[:16].replace("T", " "),
                    "serves": ", ".join(version["serves"]),
                    "problem": _problem(version) or one["problem"],
                }
            )
    columns = ("model", "version", "labels", "variants", "size", "created", "serves", "problem")
    store.client.show(found, columns, rows)


def _problem(version: Body) -> str | None:
    if version.get("quarantined"):
        return f"in quarantine: {version['quarantined']}"
    problem: str | None = version.get("problem")
    return problem


@click.command()
@click.argument("ref")
@also_offline
def show(store: Store, ref: str) -> None:
    """One version: its files and digests, where it came from, and what its validation found."""
    found = store.show(ref)
    if store.client.as_json:
        click.echo(json.dumps(found, indent=2))
        return
    serves = ", ".join(found["serves"])
    kept = ", ".join(found["kept_for"])
    print_table(
        [
            ("model", f"{found['name']}@{found['version']}"),
            ("labels", ", ".join(found["labels"])),
            ("serves", serves or (kept and f"nothing now; a rollback of {kept} would take it")),
            ("problem", _problem(found)),
            ("description", found["description"]),
            ("from", found["origin"]),
            ("created", found["created"]),
            ("golden", "the model has golden prompts" if found["golden"] else ""),
            ("folder", found["folder"]),
        ]
    )
    for file in found["files"]:
        click.echo(f"\n{file['file']}")
        _file(file)
    for variant, made in found["derived"].items():
        for file in made["files"]:
            click.echo(f"\nvariants/{variant}/{file['file']}")
            _file(file)
            print_table([("made by", made["made_by"]), ("problem", made["quarantined"])])
    if found["validation"]:
        click.echo("\nvalidation")
        print_table([(key, said(key, value)) for key, value in sorted(found["validation"].items())])


def _file(file: Body) -> None:
    print_table(
        [
            ("variant", file["variant"]),
            ("bytes", f"{file['bytes']} ({decimal(file['bytes'])})"),
            ("sha256", file["sha256"]),
            ("url", file["url"]),
        ]
    )


@click.command()
@click.argument("ref", required=False)
@wait_option
@also_offline
def verify(store: Store, ref: str | None, wait: bool) -> None:
    """Read every file again and compare it with its manifest; changes nothing.

    REF is a name, for all its versions, or NAME@VERSION; without it everything is read. Exits 1
    when something differs; hxctl model doctor mends it.
    """
    done = store.work("verify", {} if ref is None else {"ref": ref}, wait=wait)
    if not wait:
        print_job(store, done)
        return
    rows = [{**one, "model": f"{one['name']}@{one['version']}"} for one in done["findings"]]
    if store.client.as_json or rows:
        store.client.show(done, ("model", "file", "what", "detail"), rows)
    else:
        click.echo(f"{ref or 'everything'}: every file is as its manifest says")
    sys.exit(0 if done["ok"] else EXIT_ERROR)


@click.command()
@click.argument("ref")
@click.option("--all", "all_", is_flag=True, help="REF is a name: all its versions.")
@click.option("--force", is_flag=True, help="Also what hxctl rollback would come back to.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@also_offline
def rm(store: Store, ref: str, all_: bool, force: bool, yes: bool) -> None:
    """Delete NAME@VERSION, or NAME:VARIANT@VERSION for a variant that was made here.

    What serves stays, and so does what a label points at. Exits 75 when REF is in use.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete {ref}{' with all its versions' if all_ else ''}?", abort=True)
    done = store.now("rm", {"ref": ref, "all": all_, "force": force})
    print_answer(store, done, f"removed {', '.join(done['removed'])}")


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("label")
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Take the label away.")
@click.option(
    "--wait/--no-wait", default=True, help="Wait for the end of the swap, if there is one."
)
@also_offline
def label(
    store: Store, name: str, label: str, version: str | None, remove: bool, wait: bool
) -> None:
    """Point LABEL of MODEL, a name in the store, at VERSION, a number or another label.

    Where a served model follows the label, hxd swaps it to that version without a failed request,
    and the label moves at the end; a version that does not do leaves it where it was.

    Exits 0 when it points there, 1 when the swap was taken back, 75 when another rollout runs.
    """
    if remove == (version is not None):
        raise click.UsageError("give a VERSION, or --remove")
    body: Body = {"name": name, "label": label}
    if version is not None:
        body["version"] = int(version) if version.isdecimal() else version
    done = store.now("label", body)
    for rollout in done.get("rollouts", ()):
        follow_rollout(store.client, rollout, wait=wait)
    if not done.get("rollouts"):
        where = "was removed" if remove else f"points at {done['version']}"
        print_answer(store, done, f"{name}: {label} {where}")


@click.command()
@click.argument("ref")
@click.argument("variant")
@wait_option
@with_store
def quantize(store: Store, ref: str, variant: str, wait: bool) -> None:
    """Make VARIANT, such as q4_k_m, of a version, and keep it with the version.

    A model whose settings name the variant takes it from there; so does hxctl swap MODEL VARIANT.
    """
    done = store.work("quantize", {"ref": ref, "variant": variant}, wait=wait)
    if not wait:
        print_job(store, done)
        return
    at = f"{done['name']}:{done['variant']}@{done['version']}"
    text = f"{at}: {decimal(done['bytes'])}" + (", there already" if done["already"] else "")
    print_answer(store, done, text)


@click.command()
@click.argument("name")
@click.argument("file", type=FileOrFolder)
@also_offline
def golden(store: Store, name: str, file: Path) -> None:
    """Set the golden prompts of NAME: what its versions are asked before they serve."""
    done = store.now("golden", {"name": name, "golden": read_text(file)})
    print_answer(
        store, done, f"{name}: {done['prompts']} golden prompts, floor {done['floor']:.0%}"
    )


for _command in (*arrive.COMMANDS, list_, show, verify, rm, quantize, golden, *care.COMMANDS):
    model.add_command(_command)
COMMANDS = (model, label)

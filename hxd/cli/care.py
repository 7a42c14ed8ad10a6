"""`hxctl model backup`, `restore` and `doctor`: the store against what disks do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from hxd.cli.client import EXIT_ERROR, printable
from hxd.cli.store import Body, Store
from hxd.cli.store_options import FileOrFolder, also_offline, print_answer, print_job, wait_option


@click.command()
@click.argument("folder", type=FileOrFolder)
@click.option("--name", "names", multiple=True, help="This model only; may be given again.")
@click.option("--verify", is_flag=True, help="Read what is there already, and replace bad files.")
@wait_option
@also_offline
def backup(store: Store, folder: Path, names: tuple[str, ...], verify: bool, wait: bool) -> None:
    """Copy the store's models to FOLDER, on another disk; what is there already is not copied.

    Each run adds a snapshot. One that was cut off adds none, and the next one completes it. What is
    copied is read back; what is there already counts by its size, unless --verify.
    """
    body: Body = {"path": os.path.abspath(folder), "verify": verify}  # noqa: PTH100 (a link stays)
    if names:
        body["names"] = list(names)
    done = store.work("backup", body, wait=wait)
    if not wait:
        print_job(store, done)
        return
    text = (
        f"snapshot {done['snapshot']}: {len(done['versions'])} versions, {done['copied']} files "
        f"copied ({decimal(done['copied_bytes'])}), {done['kept']} there already"
    )
    if done["replaced"]:
        text += f"; of the copied, {done['replaced']} had gone bad in the backup"
    print_answer(store, done, text)
    for problem in done["problems"]:
        click.echo(f"! {printable(problem)}", err=True)
    sys.exit(EXIT_ERROR if done["problems"] else 0)


@click.command()
@click.argument("folder", type=FileOrFolder)
@click.option("--snapshot", help="Not the newest one; --list shows them.")
@click.option("--list", "list_", is_flag=True, help="Show the snapshots, and restore nothing.")
@click.option("--name", "names", multiple=True, help="This model only; may be given again.")
@click.option("--labels", is_flag=True, help="Labels are as in the snapshot, also those set here.")
@wait_option
@also_offline
def restore(
    store: Store,
    folder: Path,
    snapshot: str | None,
    list_: bool,
    names: tuple[str, ...],
    labels: bool,
    wait: bool,
) -> None:
    """Bring back from the backup in FOLDER what the store lacks or has damaged.

    What is whole stays as it is. Everything is checked before the first of it gets its place.
    """
    path = os.path.abspath(folder)  # noqa: PTH100 (a link stays a link)
    if list_:
        found = store.snapshots(path)
        rows = [
            {**one, "versions": len(one["versions"]), "size": decimal(one["bytes"])}
            for one in found
        ]
        store.client.show(found, ("id", "created", "versions", "size", "fault"), rows)
        return
    body: Body = {"path": path, "labels": labels}
    if names:
        body["names"] = list(names)
    if snapshot is not None:
        body["snapshot"] = snapshot
    done = store.work("restore", body, wait=wait)
    if not wait:
        print_job(store, done)
        return
    came = [*done["versions"], *done["variants"], *done["files"]]
    text = f"from {done['snapshot']}: {', '.join(came) or 'nothing was missing'}"
    print_answer(store, done, text)
    if not store.client.as_json:
        for line in (*done["labels"], *done["kept"]):
            click.echo(f"  {printable(line)}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what is wrong, and mend nothing.")
@click.option("--backup", type=FileOrFolder, help="A backup to take good files from.")
@click.option("--pull", is_flag=True, help="Fetch damaged files again from where they came.")
@click.option("--quick", is_flag=True, help="Believe the sizes of files; don't read them.")
@wait_option
@also_offline
def doctor(
    store: Store, dry_run: bool, backup: Path | None, pull: bool, quick: bool, wait: bool
) -> None:
    """Look through the whole store for what is wrong with it, and mend that.

    Nothing is deleted: what does not belong is taken out to the store's quarantine folder. Good
    bytes come from the built-in model, a backup, or the network, and count by their sha256 only.

    Exits 0 when all is well at the end, else 1.
    """
    body: Body = {"dry_run": dry_run, "pull": pull, "quick": quick}
    if backup is not None:
        body["backup"] = os.path.abspath(backup)  # noqa: PTH100 (a link stays a link)
    done = store.work("doctor", body, wait=wait)
    if not wait:
        print_job(store, done)
        return
    cured = {_key(cure["trouble"]): cure for cure in done["cures"]}
    extra = [cure["trouble"] for cure in done["cures"]]
    rows = []
    for trouble in {_key(one): one for one in (*done["troubles"], *extra)}.values():
        cure = cured.get(_key(trouble))
        rows.append(
            {
                **trouble,
                "trouble": trouble["detail"],
                "mended": "-" if cure is None else "yes" if cure["done"] else "NO",
                "cure": None if cure is None else cure["what"],
            }
        )
    if store.client.as_json or rows:
        store.client.show(done, ("kind", "path", "trouble", "mended", "cure"), rows)
    else:
        click.echo("the store is whole")
    sys.exit(0 if done["whole"] else EXIT_ERROR)


def _key(trouble: Body) -> tuple[Any, ...]:
    return trouble["kind"], trouble["path"], trouble["detail"]


COMMANDS = (backup, restore, doctor)

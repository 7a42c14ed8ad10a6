"""`hxctl model`, `hxctl label`, `hxctl jobs`, `hxctl job`: models on disk, in whole versions."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from hxd.cli.client import EXIT_ERROR, Client, date, fail, json_option
from hxd.cli.main import DEFAULT_CONFIG
from hxd.cli.progress import cancel
from hxd.cli.rollout import follow as follow_rollout
from hxd.cli.store import Body, Offline, Online, Store

HUB = "https://huggingface.co"
DEMO = "hxd-demo"
_FileOrFolder = click.Path(path_type=Path)
_wait_option = click.option(
    "--wait/--no-wait", default=True, help="Wait for the end, or print the job and go."
)
_label_option = click.option(
    "--label",
    "labels",
    multiple=True,
    help="Point this label at it; may be given again. Without any, a model's first version gets "
    "stable.",
)
_golden_option = click.option(
    "--golden", type=_FileOrFolder, help="The model's golden prompts, asked now and at each swap."
)
_description_option = click.option("--description", default="", help="A note for people.")
_validate_option = click.option(
    "--no-validate", is_flag=True, help="Don't load it; its header and digests are checked."
)
_force_option = click.option(
    "--force", is_flag=True, help="Take it though its golden prompts are answered wrong."
)


def _with_store(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets a `Store` first: the daemon's."""

    @json_option
    @click.pass_obj
    @functools.wraps(command)
    def run(client: Client, *args: Any, **kwargs: Any) -> None:
        command(Online(client), *args, **kwargs)

    return run


def _also_offline(command: Callable[..., None]) -> Callable[..., None]:
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


@click.group()
def model() -> None:
    """Models on disk: whole versions, with labels that point at them.

    REF is NAME[:VARIANT][@VERSION-OR-LABEL]; a bare NAME is NAME@stable.
    """


@model.command("import")
@click.argument("path", type=_FileOrFolder)
@click.option("--name", help="The model's name in the store.")
@_label_option
@_golden_option
@_description_option
@_validate_option
@_force_option
@_wait_option
@_also_offline
def import_(
    store: Store,
    path: Path,
    name: str | None,
    labels: tuple[str, ...],
    golden: Path | None,
    description: str,
    no_validate: bool,
    force: bool,
    wait: bool,
) -> None:
    """Take a model file into the store, as the next version of NAME.

    PATH is a file, or a folder with the files of one model, as the daemon sees it. Its header is
    checked, every byte is hashed, and a worker loads it and answers: golden prompts, speed and
    perplexity are kept with the version. A file that kills its worker, or fails a golden prompt
    that is required, does not get in. Files are linked or cloned where the file system can.

    Content that the model has already is not taken twice, and that is no error.

    builtin:demo as PATH brings back what was removed of the demo model; builtin:demo@1 one version.
    """
    builtin = str(path).startswith("builtin:")
    if name is None:
        if not builtin:
            raise click.UsageError("give the model a --name")
        name = DEMO
    if isinstance(store, Offline) and not no_validate and not builtin:
        fail("without a daemon nobody can try it; add --no-validate", EXIT_ERROR)
    where = str(path) if builtin else os.path.abspath(path)  # noqa: PTH100 (a link stays a link)
    body = {"path": where, "name": name}
    body |= _incoming(labels, golden, description, no_validate, force)
    _came(store, store.work("import", body, wait=wait), wait)


@model.command()
@click.argument("url")
@click.option("--name", help="The model's name in the store; after the file where it is not given.")
@click.option("--sha256", help="What the file must have, in hex; of several shards with commas.")
@click.option("--allow-http", is_flag=True, help="Let everyone on the way read it and change it.")
@_label_option
@_golden_option
@_description_option
@_validate_option
@_force_option
@_wait_option
@_with_store
def pull(
    store: Store,
    url: str,
    name: str | None,
    sha256: str | None,
    allow_http: bool,
    labels: tuple[str, ...],
    golden: Path | None,
    description: str,
    no_validate: bool,
    force: bool,
    wait: bool,
) -> None:
    """Fetch a model file and take it into the store.

    URL is https://… or hf:OWNER/REPO/FILE[@REVISION]. Of a split model name any shard. HF_ENDPOINT
    and HF_TOKEN are taken from here or, where they are not set, from the daemon.

    A pull that was cut off, by the line, by Ctrl-C or by a crash, goes on where it was when it is
    asked for again. What arrives is checked as hxctl model import does.
    """
    body: Body = {"url": url, "allow_http": allow_http}
    body |= _for_hub(url)
    body |= {key: one for key, one in (("name", name), ("sha256", sha256)) if one is not None}
    body |= _incoming(labels, golden, description, no_validate, force)
    _came(store, store.work("pull", body, wait=wait), wait)


@model.command("list")
@_also_offline
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


@model.command()
@click.argument("ref")
@_also_offline
def show(store: Store, ref: str) -> None:
    """One version: its files and digests, where it came from, and what its validation found."""
    found = store.show(ref)
    if store.client.as_json:
        click.echo(json.dumps(found, indent=2))
        return
    serves = ", ".join(found["serves"])
    kept = ", ".join(found["kept_for"])
    _table(
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
            _table([("made by", made["made_by"]), ("problem", made["quarantined"])])
    if found["validation"]:
        click.echo("\nvalidation")
        _table([(key, _said(key, value)) for key, value in sorted(found["validation"].items())])


def _file(file: Body) -> None:
    _table(
        [
            ("variant", file["variant"]),
            ("bytes", f"{file['bytes']} ({decimal(file['bytes'])})"),
            ("sha256", file["sha256"]),
            ("url", file["url"]),
        ]
    )


@model.command()
@click.argument("ref", required=False)
@_wait_option
@_also_offline
def verify(store: Store, ref: str | None, wait: bool) -> None:
    """Read every file again and compare it with its manifest; changes nothing.

    REF is a name, for all its versions, or NAME@VERSION; without it everything is read. Exits 1
    when something differs; hxctl model doctor mends it.
    """
    done = store.work("verify", {} if ref is None else {"ref": ref}, wait=wait)
    if not wait:
        _print_job(store, done)
        return
    rows = [{**one, "model": f"{one['name']}@{one['version']}"} for one in done["findings"]]
    if store.client.as_json or rows:
        store.client.show(done, ("model", "file", "what", "detail"), rows)
    else:
        click.echo(f"{ref or 'everything'}: every file is as its manifest says")
    sys.exit(0 if done["ok"] else EXIT_ERROR)


@model.command()
@click.argument("ref")
@click.option("--all", "all_", is_flag=True, help="REF is a name: all its versions.")
@click.option("--force", is_flag=True, help="Also what hxctl rollback would come back to.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@_also_offline
def rm(store: Store, ref: str, all_: bool, force: bool, yes: bool) -> None:
    """Delete NAME@VERSION, or NAME:VARIANT@VERSION for a variant that was made here.

    What serves stays, and so does what a label points at. Exits 75 when REF is in use.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete {ref}{' with all its versions' if all_ else ''}?", abort=True)
    done = store.now("rm", {"ref": ref, "all": all_, "force": force})
    _print(store, done, f"removed {', '.join(done['removed'])}")


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("label")
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Take the label away.")
@click.option(
    "--wait/--no-wait", default=True, help="Wait for the end of the swap, if there is one."
)
@_also_offline
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
        _print(store, done, f"{name}: {label} {where}")


model.add_command(label)


@model.command()
@click.argument("ref")
@click.argument("variant")
@_wait_option
@_with_store
def quantize(store: Store, ref: str, variant: str, wait: bool) -> None:
    """Make VARIANT, such as q4_k_m, of a version, and keep it with the version.

    A model whose settings name the variant takes it from there; so does hxctl swap MODEL VARIANT.
    """
    done = store.work("quantize", {"ref": ref, "variant": variant}, wait=wait)
    if not wait:
        _print_job(store, done)
        return
    at = f"{done['name']}:{done['variant']}@{done['version']}"
    text = f"{at}: {decimal(done['bytes'])}" + (", there already" if done["already"] else "")
    _print(store, done, text)


@model.command()
@click.argument("path", type=_FileOrFolder)
@click.option("--name", help="The model's name in the store; without it nothing is converted.")
@click.option(
    "--as",
    "variant",
    metavar="VARIANT",
    help="f32, f16, bf16, or a quantization such as q4_k_m; without it bf16 or f16, as the model "
    "has it.",
)
@_label_option
@_golden_option
@_description_option
@_validate_option
@_force_option
@_wait_option
@_with_store
def convert(
    store: Store,
    path: Path,
    name: str | None,
    variant: str | None,
    labels: tuple[str, ...],
    golden: Path | None,
    description: str,
    no_validate: bool,
    force: bool,
    wait: bool,
) -> None:
    """Make GGUF of PATH, a folder with a model in safetensors, and take it into the store.

    PATH is what the Hugging Face Hub has of a model: tensors in one file or several, config.json
    and the tokenizer, as the daemon sees it. What is made goes the way of hxctl model import.
    Architectures: Llama, Mistral, Qwen2, Qwen3, BERT. Of anything else this says what it is, and
    what converts it, and exits 1.

    Without --name, say what PATH is and what would be done.
    """
    body: Body = {"path": os.path.abspath(path)}  # noqa: PTH100 (a link stays a link)
    if name is None:
        found = store.now("look", body)
        _print(store, found, found["message"])
        return
    body |= {"name": name} if variant is None else {"name": name, "variant": variant}
    body |= _incoming(labels, golden, description, no_validate, force)
    _came(store, store.work("convert", body, wait=wait), wait)


@model.command()
@click.argument("name")
@click.argument("file", type=_FileOrFolder)
@_also_offline
def golden(store: Store, name: str, file: Path) -> None:
    """Set the golden prompts of NAME: what its versions are asked before they serve."""
    done = store.now("golden", {"name": name, "golden": _text(file)})
    _print(store, done, f"{name}: {done['prompts']} golden prompts, floor {done['floor']:.0%}")


@model.command()
@click.argument("folder", type=_FileOrFolder)
@click.option("--name", "names", multiple=True, help="This model only; may be given again.")
@_wait_option
@_also_offline
def backup(store: Store, folder: Path, names: tuple[str, ...], wait: bool) -> None:
    """Copy the store's models to FOLDER, on another disk; what is there already is not copied.

    Each run adds a snapshot. One that was cut off adds none, and the next one completes it.
    """
    body: Body = {"path": os.path.abspath(folder)}  # noqa: PTH100 (a link stays a link)
    if names:
        body["names"] = list(names)
    done = store.work("backup", body, wait=wait)
    if not wait:
        _print_job(store, done)
        return
    text = (
        f"snapshot {done['snapshot']}: {len(done['versions'])} versions, {done['copied']} files "
        f"copied ({decimal(done['copied_bytes'])}), {done['kept']} there already"
    )
    _print(store, done, text)
    for problem in done["problems"]:
        click.echo(f"! {problem}", err=True)
    sys.exit(EXIT_ERROR if done["problems"] else 0)


@model.command()
@click.argument("folder", type=_FileOrFolder)
@click.option("--snapshot", help="Not the newest one; --list shows them.")
@click.option("--list", "list_", is_flag=True, help="Show the snapshots, and restore nothing.")
@click.option("--name", "names", multiple=True, help="This model only; may be given again.")
@click.option("--labels", is_flag=True, help="Labels are as in the snapshot, also those set here.")
@_wait_option
@_also_offline
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
        _print_job(store, done)
        return
    came = [*done["versions"], *done["variants"], *done["files"]]
    text = f"from {done['snapshot']}: {', '.join(came) or 'nothing was missing'}"
    _print(store, done, text)
    if not store.client.as_json:
        for line in (*done["labels"], *done["kept"]):
            click.echo(f"  {line}")


@model.command()
@click.option("--dry-run", is_flag=True, help="Say what is wrong, and mend nothing.")
@click.option("--backup", type=_FileOrFolder, help="A backup to take good files from.")
@click.option("--pull", is_flag=True, help="Fetch damaged files again from where they came.")
@click.option("--quick", is_flag=True, help="Believe the sizes of files; don't read them.")
@_wait_option
@_also_offline
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
        _print_job(store, done)
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


def _for_hub(url: str) -> Body:
    """HF_ENDPOINT and HF_TOKEN, where they are set here. A token goes nowhere without need."""
    endpoint, token = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN")
    found: Body = {"endpoint": endpoint} if endpoint else {}
    if token and url.startswith(("hf:", endpoint or HUB)):
        found["token"] = token
    return found


def _incoming(
    labels: tuple[str, ...], golden: Path | None, description: str, no_validate: bool, force: bool
) -> Body:
    body: Body = {"description": description, "validate": not no_validate, "force": force}
    if labels:
        body["labels"] = list(labels)
    if golden is not None:
        body["golden"] = _text(golden)
    return body


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        fail(f"can't read {file}: {error.strerror}", EXIT_ERROR)
    except UnicodeDecodeError:
        fail(f"{file} is not text in UTF-8", EXIT_ERROR)


def _came(store: Store, done: Body, wait: bool) -> None:
    if not wait:
        _print_job(store, done)
        return
    at = f"{done['name']}@{done['version']}"
    if done["already"]:
        _print(store, done, f"nothing to do: {done['message']}")
        return
    labels = "".join(f", {label}" for label in done["labels"])
    _print(store, done, f"{at}{labels}: {decimal(done['bytes'])}")
    if not store.client.as_json:
        for key, value in sorted(done["validation"].items()):
            click.echo(f"  {key.replace('_', ' '):<26} {_said(key, value)}")
    for note in done.get("notes", ()):
        click.echo(f"! {note}", err=True)
    if not store.client.as_json:
        for rollout in done.get("rollouts", ()):
            follow_rollout(store.client, rollout)


def _said(key: str, value: Any) -> str:
    return str(date(value)) if key == "when" else str(value)


def _table(rows: list[tuple[str, str | None]]) -> None:
    for name, said in rows:
        if said:
            click.echo(f"  {name.replace('_', ' '):<26} {said}")


def _print(store: Store, answer: Body, text: str) -> None:
    click.echo(json.dumps(answer, indent=2) if store.client.as_json else text)


def _print_job(store: Store, job: Body) -> None:
    _print(store, job, f"job {job['id']}: {job['kind']} {job['subject']}".rstrip())


COMMANDS = (model, label, jobs, job)

"""`hxctl model import`, `pull` and `convert`: ways for a version to come into the store."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from hxd.cli.client import EXIT_ERROR, fail, printable
from hxd.cli.rollout import follow as follow_rollout
from hxd.cli.store import Body, Offline, Store
from hxd.cli.store_options import (
    FileOrFolder,
    also_offline,
    print_answer,
    print_job,
    read_text,
    said,
    wait_option,
    with_store,
)

HUB = "https://huggingface.co"
DEMO = "hxd-demo"


def incoming(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets what is said of the new version as `asked`, a part of a body."""

    @click.option(
        "--label",
        "labels",
        multiple=True,
        help="Point this label at it; may be given again. Without any, a model's first version "
        "gets stable.",
    )
    @click.option(
        "--golden",
        type=FileOrFolder,
        help="The model's golden prompts, asked now and at each swap.",
    )
    @click.option("--description", default="", help="A note for people.")
    @click.option(
        "--no-validate",
        is_flag=True,
        help="Don't load it; its header and digests are checked.",
    )
    @click.option(
        "--force", is_flag=True, help="Take it though its golden prompts are answered wrong."
    )
    @functools.wraps(command)
    def run(
        *args: Any,
        labels: tuple[str, ...],
        golden: Path | None,
        description: str,
        no_validate: bool,
        force: bool,
        **kwargs: Any,
    ) -> None:
        asked: Body = {"description": description, "validate": not no_validate, "force": force}
        if labels:
            asked["labels"] = list(labels)
        if golden is not None:
            asked["golden"] = read_text(golden)
        command(*args, asked=asked, **kwargs)

    return run


@click.command("import")
@click.argument("path", type=FileOrFolder)
@click.option("--name", help="The model's name in the store.")
@incoming
@wait_option
@also_offline
def import_(
    store: Store,
    path: Path,
    name: str | None,
    wait: bool,
    asked: Body,
) -> None:
    """Take a model file into the store, as the next version of NAME.

    PATH is a file, or a folder with the files of one model, as the daemon sees it. Its header is
    checked, every byte is hashed, and a worker loads it and answers: golden prompts, speed and
    perplexity are kept with the version. A file that kills its worker, or fails a golden prompt
    that is required, does not get in. Files are linked or cloned where the file system can.

    Content that the model has already is not taken twice, and that is no error; labels move to it.

    builtin:demo as PATH brings back what was removed of the demo model; builtin:demo@1 one version.
    """
    builtin = str(path).startswith("builtin:")
    if name is None:
        if not builtin:
            raise click.UsageError("give the model a --name")
        name = DEMO
    if isinstance(store, Offline) and asked["validate"] and not builtin:
        fail("without a daemon nobody can try it; add --no-validate", EXIT_ERROR)
    where = str(path) if builtin else os.path.abspath(path)  # noqa: PTH100 (a link stays a link)
    body = {"path": where, "name": name}
    _came(store, store.work("import", body | asked, wait=wait), wait)


@click.command()
@click.argument("url")
@click.option("--name", help="The model's name in the store; after the file where it is not given.")
@click.option("--sha256", help="What the file must have, in hex; of several shards with commas.")
@click.option("--allow-http", is_flag=True, help="Let everyone on the way read it and change it.")
@incoming
@wait_option
@with_store
def pull(
    store: Store,
    url: str,
    name: str | None,
    sha256: str | None,
    allow_http: bool,
    wait: bool,
    asked: Body,
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
    _came(store, store.work("pull", body | asked, wait=wait), wait)


@click.command()
@click.argument("path", type=FileOrFolder)
@click.option("--name", help="The model's name in the store; without it nothing is converted.")
@click.option(
    "--as",
    "variant",
    metavar="VARIANT",
    help="f32, f16, bf16, or a quantization such as q4_k_m; without it bf16 or f16, as the model "
    "has it.",
)
@incoming
@wait_option
@with_store
def convert(
    store: Store,
    path: Path,
    name: str | None,
    variant: str | None,
    wait: bool,
    asked: Body,
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
        print_answer(store, found, found["message"])
        return
    body |= {"name": name} if variant is None else {"name": name, "variant": variant}
    _came(store, store.work("convert", body | asked, wait=wait), wait)


def _for_hub(url: str) -> Body:
    """HF_ENDPOINT and HF_TOKEN, where they are set here. A token goes nowhere without need."""
    endpoint, token = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN")
    found: Body = {"endpoint": endpoint} if endpoint else {}
    if token and url.startswith(("hf:", endpoint or HUB)):
        found["token"] = token
    return found


def _came(store: Store, done: Body, wait: bool) -> None:
    if not wait:
        print_job(store, done)
        return
    at = f"{done['name']}@{done['version']}"
    if done["already"]:
        print_answer(store, done, f"nothing to do: {done['message']}")
        _besides(store, done)
        return
    labels = "".join(f", {label}" for label in done["labels"])
    print_answer(store, done, f"{at}{labels}: {decimal(done['bytes'])}")
    if not store.client.as_json:
        for key, value in sorted(done["validation"].items()):
            click.echo(f"  {key.replace('_', ' '):<26} {printable(said(key, value))}")
    _besides(store, done)


def _besides(store: Store, done: Body) -> None:
    """What else has happened: notes, and swaps that labels wait for."""
    for note in done.get("notes", ()):
        click.echo(f"! {printable(note)}", err=True)
    if not store.client.as_json:
        for rollout in done.get("rollouts", ()):
            follow_rollout(store.client, rollout)


COMMANDS = (import_, pull, convert)

"""What can be asked of the store: bodies that `hxctl model` sends and the admin API takes.

Paths are absolute, and are the daemon's own view of the file system.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from hxd.daemon.store.faults import BadName
from hxd.daemon.store.reference import shown


class Ask(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Incoming(Ask, kw_only=True):
    """`labels` None: `stable`, if it is the model's first version. `golden` is the text of the
    model's golden prompts. Without `validate` no worker tries it; with `force` it is taken whatever
    it answers."""

    labels: list[str] | None = None
    golden: str | None = None
    description: str = ""
    validate: bool = True
    force: bool = False


class Import(Incoming, kw_only=True):
    """`path`: a model file, a folder with the files of one model, or `builtin:demo[@VERSION]`."""

    path: str
    name: str


class Pull(Incoming, kw_only=True):
    """`name` None: after the file. `sha256` in hex, with commas between those of several shards.
    `endpoint` and `token` are HF_ENDPOINT and HF_TOKEN of whoever asks."""

    url: str
    name: str | None = None
    sha256: str | None = None
    allow_http: bool = False
    endpoint: str | None = None
    token: str | None = None


class Verify(Ask, kw_only=True):
    """`ref` is a name, for all its versions, or NAME@VERSION; None is everything."""

    ref: str | None = None


class Quantize(Ask, kw_only=True):
    ref: str
    variant: str


class Look(Ask, kw_only=True):
    """`path`: a file or folder in whatever format."""

    path: str


class Convert(Incoming, kw_only=True):
    """`path`: a folder with a model in safetensors. `variant` None: as close to it as can be."""

    path: str
    name: str
    variant: str | None = None


class Backup(Ask, kw_only=True):
    """`path`: the folder that has the backup, or will. `names` None: all models. `verify`: read
    what is there already, too, and replace what has rotted."""

    path: str
    names: list[str] | None = None
    verify: bool = False


class Restore(Ask, kw_only=True):
    """`snapshot` None: the newest. `labels`: those of the snapshot replace the store's."""

    path: str
    names: list[str] | None = None
    snapshot: str | None = None
    labels: bool = False


class Doctor(Ask, kw_only=True):
    """`backup`: a folder to take good bytes from; `pull`: ask the servers that they came from.
    `quick`: believe the sizes of files. `dry_run`: mend nothing."""

    dry_run: bool = False
    backup: str | None = None
    pull: bool = False
    quick: bool = False


class Remove(Ask, kw_only=True):
    """`ref` is NAME@VERSION, NAME:VARIANT@VERSION for a variant that was made here, or, with `all`,
    a name. `force`: also what a rollback would come back to."""

    ref: str
    all: bool = False
    force: bool = False


class SetLabel(Ask, kw_only=True):
    """`version` is a number or another label; None takes the label away."""

    name: str
    label: str
    version: int | str | None = None


class SetGolden(Ask, kw_only=True):
    name: str
    golden: str


def absolute(text: str, param: str = "path") -> Path:
    """Raises `BadName`."""
    path = Path(text)
    if not path.is_absolute() or "\0" in text or len(text) > 4096:
        raise BadName(f"{param}: {shown(text)} is not an absolute path", param=param)
    return path

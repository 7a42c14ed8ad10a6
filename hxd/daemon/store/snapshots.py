"""A backup's table of contents: manifests, labels and golden prompts at one moment.

`TARGET/snapshots/TIME.toml`; the files that it names by digest are in `TARGET/objects/`. It may
come from a foreign or damaged disk: it is read within bounds, and every name and digest in it is
checked before anything is done.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from hxd.daemon.store import manifest as manifests
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Corrupt, NotThere
from hxd.daemon.store.manifest import FileEntry, Manifest
from hxd.daemon.store.reference import MAX_VERSION, Digest, Label, ModelName, shown
from hxd.daemon.store.shelf import MAX_GOLDEN
from hxd.daemon.store.version import belongs

FOLDER = "snapshots"
OBJECTS = "objects"
FORMAT = 1
MAX_BYTES = 32 << 20
_NAME = r"[0-9]{8}T[0-9]{6}Z(-[0-9]{1,4})?"


class _Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifest: dict[str, Any]
    variants: dict[str, dict[str, Any]] = {}
    quarantined: str = ""
    marks: dict[str, str] = {}


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    next: int = 1
    labels: dict[str, int] = {}
    golden: str = ""
    versions: list[_Version] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hxd_backup: int
    created: str
    models: list[_Model] = []


class SavedVersion(msgspec.Struct, frozen=True):
    """`quarantined` is why it was, else empty; `marks` says the same of its variants that were."""

    manifest: Manifest
    variants: dict[str, Manifest]
    quarantined: str
    marks: dict[str, str] = {}

    @property
    def entries(self) -> list[FileEntry]:
        parts = [self.manifest, *self.variants.values()]
        return [entry for part in parts for entry in part.files.values()]


class SavedModel(msgspec.Struct, frozen=True):
    name: ModelName
    next: int
    labels: dict[str, int]
    golden: bytes | None
    versions: dict[int, SavedVersion]


class Snapshot(msgspec.Struct, frozen=True):
    created: str
    models: dict[str, SavedModel]


class SnapshotInfo(msgspec.Struct, frozen=True):
    """One line of a list; `fault` says why it can't be restored from."""

    id: str
    created: str
    versions: tuple[str, ...]
    bytes: int
    fault: str | None = None

    def to_body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "versions": list(self.versions),
            "bytes": self.bytes,
            "fault": self.fault,
        }


def object_path(target: Path, digest: Digest) -> Path:
    return target / OBJECTS / digest[:2] / digest


def ids(target: Path) -> list[str]:
    """Names of the snapshots, oldest first."""
    folder = target / FOLDER
    with guarded(f"read the backups in {target}"):
        if not folder.is_dir():
            return []
        return sorted(
            (
                path.stem
                for path in folder.iterdir()
                if path.suffix == ".toml" and _is_id(path.stem)
            ),
            key=_order,
        )


def infos(target: Path) -> list[SnapshotInfo]:
    """Unreadable ones too, with their fault."""
    found = []
    for id in ids(target):
        try:
            snapshot = load(target, id)
        except Corrupt as error:
            found.append(SnapshotInfo(id, "", (), 0, error.message))
            continue
        versions = [one for model in snapshot.models.values() for one in model.versions.values()]
        sizes = {entry.sha256: entry.bytes for one in versions for entry in one.entries}
        names = tuple(f"{one.manifest.name}@{one.manifest.version}" for one in versions)
        found.append(SnapshotInfo(id, snapshot.created, names, sum(sizes.values())))
    return found


def load(target: Path, id: str | None = None) -> Snapshot:
    """The newest one without `id`. Raises `NotThere`, and `Corrupt` when anything in it is off."""
    there = ids(target)
    if not there:
        raise NotThere(f"no backup in {shown(str(target))}; hxctl model backup makes one")
    wanted = there[-1] if id is None else id
    if wanted not in there:
        raise NotThere(
            f"no snapshot {shown(wanted)} in {target}; there are {', '.join(there[-10:])}"
        )
    file = target / FOLDER / f"{wanted}.toml"
    with guarded(f"read {file}"):
        data = Beneath(target).read(file, MAX_BYTES)
    return read(data, str(file))


def read(data: bytes, where: str) -> Snapshot:
    """Raises `Corrupt`."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        found = msgspec.convert(tomllib.loads(data.decode("utf-8")), _File)
        if found.hxd_backup != FORMAT:
            raise ValueError(f"of the format {found.hxd_backup}; this hxd reads {FORMAT}")
        models = [_model(model, where) for model in found.models]
    except (msgspec.ValidationError, ValueError, RecursionError, BadName) as error:
        raise Corrupt(f"{where} is not a snapshot: {str(error)[:300]}") from None
    if len({model.name for model in models}) < len(models):
        raise Corrupt(f"{where} is not a snapshot: a model is in it twice")
    return Snapshot(found.created, {model.name: model for model in models})


def write(snapshot: Snapshot) -> bytes:
    models = []
    for model in snapshot.models.values():
        table: dict[str, Any] = {"name": str(model.name), "next": model.next}
        if model.golden is not None:
            table["golden"] = base64.b64encode(model.golden).decode()
        table["labels"] = dict(model.labels)
        table["versions"] = [_table(one) for one in model.versions.values()]
        models.append(table)
    return tomli_w.dumps(
        {"hxd_backup": FORMAT, "created": snapshot.created, "models": models}
    ).encode()


def _table(one: SavedVersion) -> dict[str, Any]:
    table: dict[str, Any] = {
        "quarantined": one.quarantined,
        "manifest": manifests.to_table(one.manifest),
        "variants": {str(name): manifests.to_table(made) for name, made in one.variants.items()},
    }
    if one.marks:
        table["marks"] = dict(one.marks)
    return table


def _model(model: _Model, where: str) -> SavedModel:
    name = ModelName(model.name)
    versions: dict[int, SavedVersion] = {}
    for one in model.versions:
        manifest = manifests.from_table(one.manifest, where)
        variants = {
            variant: manifests.from_table(table, where) for variant, table in one.variants.items()
        }
        number = manifest.version
        if manifest.name != name or number in versions:
            raise ValueError(f"{manifest.name}@{number} stands below {name}, or twice")
        for variant, made in variants.items():
            if not belongs(made, manifest, variant):
                raise ValueError(f"{shown(variant)} is no variant of {name}@{number}")
        versions[number] = SavedVersion(manifest, variants, one.quarantined, one.marks)
    for label, at in model.labels.items():
        word = Label(label)
        if at not in versions:
            raise ValueError(f"{word} of {name} points at {at}, which is not there")
    if not 1 <= model.next <= MAX_VERSION + 1:
        raise ValueError(f"a next version of {model.next}")
    golden = _golden(model.golden) if model.golden else None
    return SavedModel(name, model.next, model.labels, golden, versions)


def _golden(text: str) -> bytes:
    try:
        golden = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"golden prompts: {error}") from None
    if len(golden) > MAX_GOLDEN:
        raise ValueError(f"{len(golden)} bytes of golden prompts")
    return golden


def _is_id(name: str) -> bool:
    return bool(re.fullmatch(_NAME, name))


def _order(id: str) -> tuple[str, int]:
    time, _, number = id.partition("-")
    return time, int(number or 0)

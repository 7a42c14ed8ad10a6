"""Reading the store: which models and versions there are, and what a reference means.

Knows nothing of how they came there, and changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from hxd.daemon.store import demo
from hxd.daemon.store import labels as labelling
from hxd.daemon.store import manifest as manifests
from hxd.daemon.store import version as versioning
from hxd.daemon.store.beneath import Beneath
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, NotThere, StoreError
from hxd.daemon.store.labels import STABLE, Labels
from hxd.daemon.store.reference import Label, ModelName, Reference, shown, version_number
from hxd.daemon.store.version import Version
from hxd.errors import nearest

MODELS = "models"
GOLDEN = "golden.toml"
MAX_GOLDEN = 1 << 20
_MAX_DEPTH = 64  # parts of a name: 128 letters with a '/' after each


class Shelf:
    """`root/models/NAME/VERSION`; a name with '/' is folders in folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / MODELS
        self.tree = Beneath(root)

    def folder(self, name: ModelName) -> Path:
        return self.models / name

    def names(self) -> list[str]:
        """Of all models that have a version."""
        with guarded("list the models"):
            return sorted(name for name in self._folders(self.models, "", _MAX_DEPTH))

    def versions(self, name: str) -> list[int]:
        """Numbers of those with a manifest, readable or not; none for an unknown model."""
        with guarded(f"list the versions of {shown(name)}"):
            return self._numbers(self.folder(ModelName(name)))

    def labels(self, name: str) -> dict[str, int]:
        """Raises `Corrupt` where the file can't be read."""
        return dict(self.labelled(ModelName(name)).labels)

    def labelled(self, name: ModelName) -> Labels:
        file = self.folder(name) / labelling.FILE
        with guarded(f"read the labels of {name}"):
            try:
                data = self.tree.read(file, labelling.MAX_BYTES)
            except FileNotFoundError:
                return Labels()
        return labelling.read(data, str(file))

    def version(self, name: str, number: int) -> Version:
        """Raises `NotThere`, and `Corrupt` for an unreadable manifest."""
        model = ModelName(name)
        version_number(str(number))
        folder = self.folder(model) / str(number)
        with guarded(f"read {model}@{number}"):
            try:
                return versioning.read(self.tree, model, number, folder)
            except FileNotFoundError:
                there = self._numbers(self.folder(model))
        if not there:
            raise self.unknown(model)
        raise NotThere(
            f"no version {number} of {model}; there are {_listed(there)}", param="version"
        )

    def resolve(self, reference: Reference) -> Version:
        """The version that is meant; whether it has the reference's variant is not looked at. A
        bare name is `@stable` and, without that label, the highest version."""
        name, selector = reference.name, reference.selector
        if isinstance(selector, int):
            return self.version(name, selector)
        there = self.versions(name)
        if not there:
            raise self.unknown(name)
        labels = self.labels(name)
        label = STABLE if selector is None else selector
        if label in labels:
            return self.version(name, labels[label])
        if selector is None:
            return self.version(name, there[-1])
        raise NotThere(
            f"{name} has no label {label}.{nearest(label, labels)} There are: "
            f"{', '.join(sorted(labels)) or 'none'}; hxctl label {name} {label} VERSION sets it",
            param="label",
        )

    def golden(self, name: str) -> bytes | None:
        """The model's golden prompts, as they were set."""
        file = self.folder(ModelName(name)) / GOLDEN
        with guarded(f"read {file}"):
            try:
                data = self.tree.read(file, MAX_GOLDEN)
            except FileNotFoundError:
                return None
        if len(data) > MAX_GOLDEN:
            raise StoreError(f"{file} is larger than {MAX_GOLDEN} bytes; set it again")
        return data

    def unknown(self, name: ModelName) -> NotThere:
        names = self.names()
        return NotThere(
            f"no model {shown(name)} in the store.{nearest(name, names)} "
            f"There are: {_listed(names) or 'none'}; hxctl model import {_from(name)} adds it",
            param="name",
        )

    def _folders(self, folder: Path, prefix: str, depth: int) -> list[str]:
        found = []
        try:
            with os.scandir(folder) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        for part in below:
            name = f"{prefix}{part}"
            try:
                ModelName(name)
            except BadName:
                continue
            if self._numbers(folder / part):
                found.append(name)
            if depth > 1:
                found += self._folders(folder / part, f"{name}/", depth - 1)
        return found

    def _numbers(self, folder: Path) -> list[int]:
        return [
            number
            for number in numbered(folder)
            if (folder / str(number) / manifests.FILE).is_file()
        ]


def numbered(folder: Path) -> list[int]:
    """Folders that may be versions, manifest or not, in order."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        try:
            found.append(version_number(name))
        except BadName:
            continue
    return sorted(found)


def stable_label(label: str) -> bool:
    return Label(label) == STABLE


def _from(name: str) -> str:
    return "builtin:demo" if name == demo.NAME else f"PATH --name {name}"


def _listed(items: list[int] | list[str]) -> str:
    some = ", ".join(str(item) for item in items[:20])
    return f"{some} …" if len(items) > 20 else some

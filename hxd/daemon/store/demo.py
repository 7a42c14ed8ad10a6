"""The built-in demo model: where its versions lie, and whether their bytes are the ones shipped."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hxd.daemon.store.faults import NotThere
from hxd.daemon.store.reference import Reference
from hxd.gguf import ModelFileError

NAME = "hxd-demo"
STABLE = 2
_SOURCE = re.compile(r"builtin:([a-z-]+)(?:@(.+))?")


@dataclass(frozen=True)
class DemoVersion:
    number: int
    file: Path
    sha256: str


def folder() -> Path:
    return Path(__file__).parents[2] / "demo"


def numbers() -> list[int]:
    """Of the versions that the package has."""
    found = (path.parent.name for path in folder().glob("*/manifest.toml"))
    return sorted(int(name) for name in found if name.isdecimal())


def owns(file: Path) -> bool:
    """Whether it is one of the package's own model files."""
    return file.resolve().is_relative_to(folder().resolve())


def is_builtin(source: str) -> bool:
    return source.startswith("builtin:")


def reference(source: str) -> Reference:
    """What `builtin:demo`, `builtin:demo@VERSION` or `builtin:demo@LABEL` is called in the store;
    raises `StoreError`."""
    match = _SOURCE.fullmatch(source)
    if not match or match[1] != "demo":
        raise NotThere(f'{source!r} is not built in; "builtin:demo" is')
    return Reference.parse(NAME if match[2] is None else f"{NAME}@{match[2]}")


def find(source: str) -> DemoVersion:
    """The version that `builtin:demo` or `builtin:demo@VERSION` names; raises `ModelFileError`."""
    match = _SOURCE.fullmatch(source)
    if not match or match[1] != "demo":
        raise ModelFileError(f'{source!r} is not built in; "builtin:demo" is')
    label = match[2] or "stable"
    number = STABLE if label == "stable" else int(label) if label.isdecimal() else 0
    manifest = folder() / str(number) / "manifest.toml"
    try:
        files = tomllib.loads(manifest.read_text("utf-8"))["files"]
    except OSError:
        there = sorted(path.parent.name for path in folder().glob("*/manifest.toml"))
        raise ModelFileError(
            f"no version {label!r} of the demo model; there are stable, {', '.join(there)}"
        ) from None
    (name, entry), *_ = files.items()
    return DemoVersion(number, manifest.parent / name, entry["sha256"])


def golden() -> bytes | None:
    """The prompts that tell the demo model's versions apart; None if they are missing."""
    try:
        return (folder() / "golden.toml").read_bytes()
    except OSError:
        return None


def verify(version: DemoVersion) -> None:
    """Raises `ModelFileError` unless the file's sha256 is the manifest's."""
    try:
        with version.file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"can't read {version.file}: {error.strerror}") from None
    if found != version.sha256:
        raise ModelFileError(f"{version.file} is corrupted: its sha256 is not the manifest's")

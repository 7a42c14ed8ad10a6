"""The store as it is shown: rows of JSON about models and their versions, and who serves them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hxd.daemon.store.faults import Corrupt
from hxd.daemon.store.library import Library
from hxd.daemon.store.manifest import Manifest
from hxd.daemon.store.reference import ModelName
from hxd.daemon.store.version import Version


class How(enum.Enum):
    SERVES = enum.auto()
    WORKS = enum.auto()  # has workers beside those that serve: comes up, drains, or is kept ready
    FORMER = enum.auto()  # a rollback would come back to it


@dataclass(frozen=True)
class Use:
    """The served model `model` needs a version of the store, or the one `variant` of it."""

    model: str
    name: str
    number: int
    variant: str | None = None
    how: How = How.SERVES


def models(library: Library, uses: Sequence[Use]) -> list[dict[str, Any]]:
    return [model(library, ModelName(name), uses) for name in library.names()]


def model(library: Library, name: ModelName, uses: Sequence[Use]) -> dict[str, Any]:
    problem = None
    try:
        labels = library.labels(name)
    except Corrupt as error:
        labels, problem = {}, error.message
    rows = [_row(library, name, number, labels, uses) for number in library.versions(name)]
    return {
        "name": str(name),
        "labels": labels,
        "golden": library.golden(name) is not None,
        "problem": problem,
        "versions": rows,
    }


def _row(
    library: Library, name: ModelName, number: int, labels: dict[str, int], uses: Sequence[Use]
) -> dict[str, Any]:
    try:
        version = library.version(name, number)
    except Corrupt as error:
        return {"version": number, "problem": error.message, "labels": [], "serves": []}
    return summary(version, labels, uses)


def summary(version: Version, labels: dict[str, int], uses: Sequence[Use]) -> dict[str, Any]:
    ours = [use for use in uses if (use.name, use.number) == (version.name, version.number)]
    return {
        "version": version.number,
        "labels": sorted(label for label, at in labels.items() if at == version.number),
        "variants": [str(variant) for variant in version.variants()],
        "bytes": version.size,
        "format": version.manifest.format,
        "created": version.manifest.created,
        "quarantined": version.quarantined,
        "serves": sorted({use.model for use in ours if use.how is How.SERVES}),
        "kept_for": sorted({use.model for use in ours if use.how is not How.SERVES}),
        "problem": None,
    }


def detail(library: Library, version: Version, uses: Sequence[Use]) -> dict[str, Any]:
    """All that is known of one version."""
    try:
        labels = library.labels(version.name)
    except Corrupt:
        labels = {}
    manifest = version.manifest
    return {
        "name": str(version.name),
        **summary(version, labels, uses),
        "description": manifest.description,
        "origin": manifest.origin,
        "origin_sha256": manifest.origin_sha256,
        "folder": str(version.folder),
        "files": _files(manifest),
        "validation": manifest.validation,
        "golden": library.golden(version.name) is not None,
        "derived": {
            str(variant): {
                "made_by": made.made_by,
                "created": made.created,
                "files": _files(made),
                "validation": made.validation,
                "quarantined": _mark(version, variant),
            }
            for variant, made in version.derived.items()
        },
    }


def _mark(version: Version, variant: str) -> str | None:
    mark = version.marks.get(variant)
    return None if mark is None else str(mark)


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "file": name,
            "variant": str(entry.variant),
            "bytes": entry.bytes,
            "sha256": str(entry.sha256),
            "url": entry.url or None,
        }
        for name, entry in manifest.files.items()
    ]

"""What can be wrong with the store, and what was done about it; words and records only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Kind(enum.StrEnum):
    LEFTOVER = "leftover"  # a workspace that nobody works in
    CACHE = "cache"  # nonsense where digests are remembered
    EXTRA = "extra"  # what is not the store's
    LINK = "link"  # a symbolic link
    MODE = "mode"  # others may read folders or write files
    OWNER = "owner"
    MANIFEST = "manifest"  # a version without one that can be read
    VARIANT = "variant"  # a derived variant without one, or without its parent
    FILE = "file"  # missing, or not the manifest's
    LABELS = "labels"  # the model's label file can't be read
    LABEL = "label"  # points nowhere
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Trouble:
    """`path` is below the store's root; `name` and `version` say which model it concerns, if
    any, and `what` is the finding's word where it is about a file."""

    kind: Kind
    path: str
    detail: str
    name: str = ""
    version: int = 0
    variant: str = ""
    what: str = ""

    def to_body(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "path": self.path,
            "detail": self.detail,
            "name": str(self.name),
            "version": self.version,
            "variant": str(self.variant),
            "what": self.what,
        }


@dataclass(frozen=True)
class Cure:
    """`done`: it is as it should be. Otherwise `what` says what the operator can do."""

    trouble: Trouble
    done: bool
    what: str

    def to_body(self) -> dict[str, Any]:
        return {"trouble": self.trouble.to_body(), "done": self.done, "what": self.what}

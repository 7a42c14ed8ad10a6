"""What a model, a version or a file's content is called in the store: types, not checked strings.

Whoever holds a `ModelName`, `VariantName`, `Label` or `Digest` may make a path of it: there is no
way to make one from text that leaves its folder. Everything else raises `BadName`, before any file
is touched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from hxd.config.kinds import model_name
from hxd.daemon.store.faults import BadName

MAX_VERSION = 999_999_999
# What lies in a model's or version's folder; a model may not be called so below another one.
RESERVED = frozenset(
    {"variants", "manifest.toml", "labels.toml", "golden.toml", "quarantined.toml"}
)
_SHOWN = 80
_REFERENCE = re.compile(r"([^:@]*)(?::([^:@]*))?(?:@([^:@]*))?", re.DOTALL)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def shown(text: str) -> str:
    """As a message may carry it: escaped, and no longer than a line."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


class ModelName(str):
    """A name that `kinds.model_name` takes, and whose parts no version or file of the store has."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        try:
            model_name(text)
        except ValueError as error:
            raise BadName(f"{shown(text)} is not a model's name: {error}", param="name") from None
        for part in text.split("/")[1:]:
            if part.isdigit():
                raise BadName(
                    f"{shown(text)} is not a model's name here: {part!r} would be taken for a "
                    "version; add a letter",
                    param="name",
                )
            if part.lower() in RESERVED:
                raise BadName(
                    f"{shown(text)} is not a model's name here: the store uses {part!r} itself",
                    param="name",
                )
        return super().__new__(cls, text)


class VariantName(str):
    """One quantization, such as `f16` or `q4_k_m`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", text):
            raise BadName(
                f"{shown(text)} is not a variant's name: that has lower-case letters, digits, '_' "
                "and '-', as in q4_k_m",
                param="variant",
            )
        return super().__new__(cls, text)


class Label(str):
    """Points at a version: `stable`, `canary`, or a word of the operator's."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", text):
            raise BadName(
                f"{shown(text)} is not a label: that starts with a lower-case letter and has "
                "lower-case letters, digits, '_' and '-', at most 32",
                param="label",
            )
        return super().__new__(cls, text)


class Digest(str):
    """A SHA-256 in lower-case hexadecimal."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise BadName(
                f"{shown(text)} is not a sha256: that has 64 digits of 0-9 and a-f", param="sha256"
            )
        return super().__new__(cls, text)

    @property
    def short(self) -> str:
        return self[:12] + "…"


def version_number(text: str) -> int:
    """The number that a folder or a reference spells; raises `BadName`."""
    if not _VERSION.fullmatch(text):
        raise BadName(f"{shown(text)} is not a version: that is 1, 2, 3 …", param="version")
    return int(text)


@dataclass(frozen=True)
class Reference:
    """`name[:variant][@version-or-label]`. No selector means the label `stable`."""

    name: ModelName
    variant: VariantName | None = None
    selector: int | Label | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `BadName`."""
        match = _REFERENCE.fullmatch(text)
        if not match:
            raise BadName(
                f"{shown(text)} is not a reference: write name[:variant][@version-or-label]"
            )
        name, variant, selector = match.groups()
        return cls(
            ModelName(name),
            None if variant is None else VariantName(variant),
            None if selector is None else _selector(selector),
        )

    def __str__(self) -> str:
        variant = "" if self.variant is None else f":{self.variant}"
        selector = "" if self.selector is None else f"@{self.selector}"
        return f"{self.name}{variant}{selector}"


def _selector(text: str) -> int | Label:
    return version_number(text) if text[:1].isdigit() else Label(text)

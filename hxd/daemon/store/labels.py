"""What points at a model's versions, and which number the next one gets."""

from __future__ import annotations

import tomllib
from collections.abc import Collection

import msgspec
import tomli_w

from hxd.daemon.store.faults import Corrupt, StoreError
from hxd.daemon.store.reference import MAX_VERSION, Label

FILE = "labels.toml"
STABLE = Label("stable")
MAX_BYTES = 1 << 18
MAX_LABELS = 1000


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`next` is never given twice, also after the version that had the highest one is removed."""

    next: int = 1
    labels: dict[str, int] = {}


def read(data: bytes, where: str) -> Labels:
    """Raises `Corrupt`."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes; {MAX_BYTES} are possible")
        found = msgspec.convert(tomllib.loads(data.decode("utf-8")), Labels)
        for label, number in found.labels.items():
            Label(label)
            _check(number)
        _check(found.next)
    except (msgspec.ValidationError, ValueError, RecursionError, StoreError) as error:
        raise Corrupt(
            f"{where} can't be read: {str(error)[:300]}. Versions can still be named by number; "
            "run hxctl model doctor"
        ) from None
    return found


def check_count(labels: Collection[str]) -> None:
    """Raises `StoreError` where there are too many to be written."""
    if len(labels) > MAX_LABELS:
        raise StoreError(f"there are {MAX_LABELS} labels already; remove some (hxctl label)")


def write(labels: Labels) -> bytes:
    check_count(labels.labels)
    return tomli_w.dumps(
        {"next": labels.next, "labels": dict(sorted(labels.labels.items()))}
    ).encode()


def _check(number: int) -> None:
    if not 1 <= number <= MAX_VERSION + 1:
        raise ValueError(f"a version of {number}")

"""What config.json says, taken key by key with its type and its bounds; nothing is made up."""

from __future__ import annotations

import math
from typing import Any

from hxd.hookspecs import NotConvertible

FILE = "config.json"
_MISSING = object()


class Settings:
    """`where` is how messages call the object, a prefix of its keys."""

    def __init__(self, found: dict[str, Any], where: str = "") -> None:
        self.found = found
        self._where = where

    def count(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to `most`; null is as good as none."""
        value = self.found.get(key)
        if value is None:
            if default is None:
                raise NotConvertible(f"{FILE} has no {self._where}{key}")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(key, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self.found.get(key)
        if value is None:
            if default is None:
                raise NotConvertible(f"{FILE} has no {self._where}{key}")
            return default
        # A float of llama.cpp has 32 bits.
        if not isinstance(value, int | float) or isinstance(value, bool) or not _fits(value):
            raise self.wrong(key, "a number over 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.found.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Raises unless it is missing or one of `allowed`: with another value the model computes
        what llama.cpp does not."""
        value = self.found.get(key, _MISSING)
        if value is not _MISSING and value not in allowed:
            raise self.wrong(key, " or ".join(str(one) for one in allowed))

    def below(self, key: str) -> Settings:
        """An object inside; an empty one where there is none."""
        value = self.found.get(key)
        if value is None:
            return Settings({}, f"{self._where}{key}.")
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Settings(value, f"{self._where}{key}.")

    def wrong(self, key: str, wanted: str) -> NotConvertible:
        value = repr(self.found.get(key))[:100]
        return NotConvertible(
            f"{FILE}: {self._where}{key} is {value}; what can be converted has {wanted}"
        )


def _fits(value: float) -> bool:
    try:
        return math.isfinite(float(value)) and 1e-37 < value < 3e38
    except OverflowError:
        return False

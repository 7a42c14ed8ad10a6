"""Serves one `Relay`: to be written."""

from __future__ import annotations

from typing import Any


def serve(*_: Any) -> None:
    raise NotImplementedError

"""Serves one loaded `Embedder`: to be written."""

from __future__ import annotations


class Engine:
    pass

"""API keys on disk: hashes only. A key is shown once, when it is made.

`keys.json` in the state folder, read at the start; afterwards the daemon is its only writer. Keys
are random and long, so a plain SHA-256 is enough: there is nothing to guess by dictionary.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

import msgspec

from hxd.config import durable
from hxd.daemon.request.identify import Role

FILE = "keys.json"
PREFIX = "hxd"
MAX_KEYS = 10_000
MAX_NAME = 100


class StoredKey(msgspec.Struct, frozen=True):
    """`created` and `revoked` are Unix seconds."""

    id: str
    name: str
    role: Role
    sha256: str
    created: float
    revoked: float | None = None


class KeyFileError(Exception):
    """The key file can't be read; nobody is let in until it is mended."""


class KeyStore:
    """Kept in memory; `load` and the changing calls touch the disk and block."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE
        self._keys: dict[str, StoredKey] = {}

    def load(self) -> None:
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            self._keys = {}
            return
        except OSError as error:
            raise KeyFileError(f"{self._file}: can't be read: {error.strerror}") from None
        try:
            stored = msgspec.json.decode(data, type=list[StoredKey])
        except (msgspec.DecodeError, RecursionError) as error:
            raise KeyFileError(f"{self._file}: {error}") from None
        self._keys = {key.id: key for key in stored}

    def all(self) -> list[StoredKey]:
        return sorted(self._keys.values(), key=lambda key: key.created)

    def role_of(self, key: str) -> tuple[str, Role] | None:
        _, _, rest = key.partition("-")
        id, _, _ = rest.partition("-")
        stored = self._keys.get(id)
        # An unknown id costs the same comparison as a known one with a wrong secret.
        expected = stored.sha256 if stored is not None else "0" * 64
        equal = hmac.compare_digest(_digest(key), expected)
        if stored is None or not equal or stored.revoked is not None:
            return None
        return stored.id, stored.role

    def create(self, name: str, role: Role, now: float) -> tuple[str, StoredKey]:
        """The key itself, for its owner's eyes, and what is kept of it."""
        if len(self._keys) >= MAX_KEYS:
            raise KeyFileError(f"there are {MAX_KEYS} keys already; revoked ones count")
        id = secrets.token_hex(4)
        while id in self._keys:
            id = secrets.token_hex(4)
        key = f"{PREFIX}-{id}-{secrets.token_urlsafe(32)}"
        stored = StoredKey(id, name[:MAX_NAME], role, _digest(key), now)
        self._save({**self._keys, id: stored})
        return key, stored

    def revoke(self, id: str, now: float) -> StoredKey:
        """Raises `KeyError` for an unknown id."""
        revoked = msgspec.structs.replace(self._keys[id], revoked=now)
        self._save({**self._keys, id: revoked})
        return revoked

    def _save(self, keys: dict[str, StoredKey]) -> None:
        """Whole or not at all: written beside, synced, renamed."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(list(keys.values())), indent=1)
        durable.replace(self._file, data)
        self._keys = keys


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()

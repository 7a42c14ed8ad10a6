"""What the operator trusts: digests of plugins, and keys of those who sign them.

Protects: code that nobody on this box has agreed to is never run, and what was agreed to is known
by its digest, so that a change of any file shows. Does not protect: from who can write the state
folder, since trust.toml lies in it.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from hxd import pluginfile
from hxd.daemon.store import disk, plugin_signature
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.faults import BadName, Conflict, Corrupt, NotThere
from hxd.daemon.store.plugin_disk import Staging
from hxd.pluginfile import MANIFEST, SIGNATURE, PluginError

FILE = "trust.toml"
COPIES = ".trusted"
MAX_KEYS = 100
_MAX_FILE = 1 << 20
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Trusted(msgspec.Struct, forbid_unknown_fields=True):
    """`digests` by NAME@VERSION, `keys` as base64 of the 32 bytes by their names."""

    digests: dict[str, str] = {}
    keys: dict[str, str] = {}


@dataclass(frozen=True)
class Verdict:
    """`digest` is that of the plugin.toml that was judged. `how` is `digest`, `signature by KEY` or
    `no`; with `no`, `why` says what the operator can do about it."""

    digest: str
    how: str
    why: str | None = None

    @property
    def trusted(self) -> bool:
        return self.why is None


class Trust:
    """Read from the disk whenever it is asked, so that what an operator wrote there by hand holds
    as well."""

    def __init__(self, root: Path, staging: Staging) -> None:
        self._file = root / FILE
        self._copies = root / COPIES
        self._staging = staging

    def judge(self, reference: str, folder: Path) -> Verdict:
        """Of the installed plugin in `folder`; raises `PluginError` when its plugin.toml or
        trust.toml can't be read."""
        trusted = self._read()
        data = pluginfile.contents(folder / MANIFEST, pluginfile.MAX_MANIFEST)
        digest = hashlib.sha256(data).hexdigest()
        if wanted := trusted.digests.get(reference):
            if wanted == digest:
                return Verdict(digest, "digest")
            return Verdict(
                digest, "no", f"{self._changed(reference, wanted, folder)}. {_mend(reference)}"
            )
        if not (folder / SIGNATURE).exists():
            return Verdict(
                digest,
                "no",
                f"plugin {reference} is installed, and nobody trusts it yet: its digest is "
                f"{digest}; hxctl plugin trust {reference} lets it run",
            )
        signature = plugin_signature.read(folder / SIGNATURE)
        if signer := plugin_signature.signer(trusted.keys, signature, data):
            return Verdict(digest, f"signature by {signer}")
        known = ", ".join(sorted(trusted.keys)) or "none"
        return Verdict(
            digest,
            "no",
            f"plugin {reference}: {SIGNATURE} is by none of the trusted keys (there are: {known}), "
            f"or {MANIFEST} was changed after it was signed; hxctl plugin trust --key NAME FILE "
            f"adds a key, hxctl plugin trust {reference} trusts these files alone",
        )

    def digest(self, reference: str) -> str | None:
        """The one that the operator trusts; raises `PluginError`."""
        return self._read().digests.get(reference)

    def keys(self) -> dict[str, str]:
        """Raises `PluginError`."""
        return dict(self._read().keys)

    def add(self, reference: str, folder: Path, digest: str) -> None:
        """Trusts the plugin.toml with this digest, which `folder` has. Raises `StoreError`, and
        `PluginError` when it has another one by now."""
        trusted = self._to_change()
        data = pluginfile.contents(folder / MANIFEST, pluginfile.MAX_MANIFEST)
        if hashlib.sha256(data).hexdigest() != digest:
            raise PluginError(f"{folder / MANIFEST} changed meanwhile; nothing was trusted")
        with guarded(f"trust {reference}"):
            disk.make_folder(self._copies)
            self._staging.replace(self._copy(reference), data)
            self._write(trusted, digests={**trusted.digests, reference: digest})

    def drop(self, reference: str) -> bool:
        """Whether it was trusted by its digest before."""
        trusted = self._to_change()
        rest = {key: digest for key, digest in trusted.digests.items() if key != reference}
        with guarded(f"stop trusting {reference}"):
            if rest != trusted.digests:
                self._write(trusted, digests=rest)
            self._copy(reference).unlink(missing_ok=True)
        return rest != trusted.digests

    def add_key(self, name: str, text: str) -> str:
        """The key as base64. `text` is that, or PEM as openssl writes it."""
        if not _KEY_NAME.fullmatch(name):
            raise BadName(f"a key's name has up to 64 letters, digits and . _ -, not {name!r}")
        key = plugin_signature.public_key(text)
        trusted = self._to_change()
        if trusted.keys.get(name, key) != key:
            raise Conflict(
                f"there is another trusted key {name!r}; hxctl plugin untrust --key {name} first"
            )
        if len(trusted.keys) >= MAX_KEYS:
            raise Conflict(f"there are {MAX_KEYS} trusted keys already")
        with guarded(f"trust the key {name}"):
            self._write(trusted, keys={**trusted.keys, name: key})
        return key

    def drop_key(self, name: str) -> None:
        trusted = self._to_change()
        if name not in trusted.keys:
            known = ", ".join(sorted(trusted.keys)) or "none"
            raise NotThere(f"no trusted key {name!r}; there are: {known}")
        rest = {key: text for key, text in trusted.keys.items() if key != name}
        with guarded(f"stop trusting the key {name}"):
            self._write(trusted, keys=rest)

    def _read(self) -> _Trusted:
        if not self._file.exists() and not self._file.is_symlink():
            return _Trusted()
        data = pluginfile.contents(self._file, _MAX_FILE)
        try:
            trusted = msgspec.convert(tomllib.loads(data.decode()), _Trusted)
            for key in trusted.keys.values():
                plugin_signature.key(key)
        except (ValueError, RecursionError) as error:
            raise PluginError(
                f"{self._file}: {error}; no installed plugin is trusted until that is mended"
            ) from None
        return trusted

    def _to_change(self) -> _Trusted:
        try:
            return self._read()
        except PluginError as error:
            raise Corrupt(str(error)) from None

    def _write(
        self,
        trusted: _Trusted,
        *,
        digests: dict[str, str] | None = None,
        keys: dict[str, str] | None = None,
    ) -> None:
        table = {
            "digests": dict(sorted((trusted.digests if digests is None else digests).items())),
            "keys": dict(sorted((trusted.keys if keys is None else keys).items())),
        }
        self._staging.replace(self._file, tomli_w.dumps(table).encode())

    def _copy(self, reference: str) -> Path:
        return self._copies / f"{reference}.toml"

    def _changed(self, reference: str, wanted: str, folder: Path) -> str:
        """Which file is not the trusted one, as far as a copy of the trusted plugin.toml tells."""
        where = folder / MANIFEST
        try:
            data = pluginfile.contents(self._copy(reference), pluginfile.MAX_MANIFEST)
            if hashlib.sha256(data).hexdigest() == wanted:
                pluginfile.verify(folder, pluginfile.parse(data, where))
        except PluginError as error:
            return (
                f"plugin {reference} is not the one that was trusted, nor is its {MANIFEST}: "
                + (str(error))
            )
        return f"{where} is not the one that was trusted: sha256 differs"


def _mend(reference: str) -> str:
    return f"Install it anew, or hxctl plugin rm {reference}"

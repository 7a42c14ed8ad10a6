"""Ed25519 signatures over the bytes of a plugin.toml, which names the digest of every other file.

Protects: from a plugin.toml that the key's owner has not signed. Does not protect: from an old one
that they did sign, since a signature has no date.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from hxd import pluginfile
from hxd.daemon.store.faults import BadName
from hxd.pluginfile import PluginError

_MAX_SIGNATURE = 1 << 10


def signer(keys: Mapping[str, str], signature: bytes, data: bytes) -> str | None:
    """The name of the first of `keys`, base64 by name, whose owner has signed `data`."""
    for name, text in sorted(keys.items()):
        try:
            key(text).verify(signature, data)
        except InvalidSignature:
            continue
        return name
    return None


def public_key(text: str) -> str:
    """As base64, from that or from PEM; raises `BadName`."""
    try:
        if "-----BEGIN" in text:
            found = load_pem_public_key(text.encode())
            if not isinstance(found, Ed25519PublicKey):
                raise ValueError("a key of another kind")
            raw = found.public_bytes(Encoding.Raw, PublicFormat.Raw)
            return base64.b64encode(raw).decode()
        key("".join(text.split()))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadName(
            f"that is no public Ed25519 key ({error}): give the base64 of its 32 bytes, or the "
            "file that openssl pkey -in PRIVATE.pem -pubout writes"
        ) from None
    return "".join(text.split())


def key(text: str) -> Ed25519PublicKey:
    """From base64; raises `ValueError`."""
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


def read(file: Path) -> bytes:
    """The 64 bytes, from a file with them or their base64; raises `PluginError`."""
    data = pluginfile.contents(file, _MAX_SIGNATURE)
    if len(data) == 64:
        return data
    try:
        raw = base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 64:
        raise PluginError(f"{file} is no Ed25519 signature: 64 bytes, or their base64")
    return raw

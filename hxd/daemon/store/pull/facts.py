"""What a server says about a file, and whether two answers are about the same bytes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

import msgspec

_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_NUMBER = re.compile(r"[0-9]{1,18}")
# Digest (RFC 3230) and Repr-Digest (RFC 9530); the latter has colons around the base64.
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:?([A-Za-z0-9+/=]{44}):?\s*(?=$|,)", re.IGNORECASE)


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` as it may be shown; `size` in bytes, None where the server does not say; `etag` only a
    strong one; `linked` is the hub's own word for the file, its sha256 for what is in LFS; `sha256`
    in hex is what the file must have, None where nobody says."""

    url: str
    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    linked: str | None = None
    commit: str | None = None
    sha256: str | None = None

    def same_file(self, other: Facts) -> bool:
        """Whether bytes of one go with bytes of the other, by what both have; never by size
        alone."""
        if self.size != other.size:
            return False
        if self.linked and other.linked:
            return self.linked == other.linked
        if self.url != other.url:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        if self.modified and other.modified:
            return self.modified == other.modified
        return bool(self.sha256) and self.sha256 == other.sha256

    def contradicts(self, headers: Mapping[str, str]) -> str | None:
        """What in the headers of an answer shows that it is about another version."""
        etag, modified = strong_etag(headers), headers.get("Last-Modified")
        if self.etag and etag:
            return None if self.etag == etag else f"its ETag was {self.etag} and is {etag}"
        if self.modified and modified and self.modified != modified:
            return f"it was last changed {self.modified}, and now {modified}"
        return None

    def condition(self) -> str | None:
        """For If-Range: the server sends the range of this version, or the whole of a newer one."""
        return self.etag or self.modified


def strong_etag(headers: Mapping[str, str], name: str = "ETag") -> str | None:
    """None for a weak one: two versions that are alike can share that, not only equal ones."""
    etag = headers.get(name, "").strip()
    return etag if len(etag) <= 512 and _ETAG.fullmatch(etag) else None


def sha256_of(etag: str | None) -> str | None:
    """In hex, where an ETag of the hub is one: so it is for files in LFS."""
    digest = (etag or "").strip('"')
    return digest if _SHA256.fullmatch(digest) else None


def stated_sha256(headers: Mapping[str, str]) -> str | None:
    """In hex, what the server itself says of the whole file."""
    for name in ("Repr-Digest", "Digest"):
        match = _DIGEST.search(headers.get(name, ""))
        if match:
            try:
                digest = base64.b64decode(match[1], validate=True)
            except binascii.Error:
                continue
            if len(digest) == 32:
                return digest.hex()
    return None


def number(text: str | None) -> int | None:
    """A count of bytes in a header."""
    return int(text) if text and _NUMBER.fullmatch(text.strip()) else None


def content_range(headers: Mapping[str, str]) -> tuple[int, int, int | None] | None:
    """First byte, the one after the last, and the size of the whole, None for `*`."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    return int(match[1]), int(match[2]) + 1, number(match[3])

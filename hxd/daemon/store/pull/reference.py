"""What an operator asks for: a URL or `hf:OWNER/REPO/FILE[@REVISION]`, as files to ask for."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from hxd.daemon.store.faults import BadName
from hxd.daemon.store.pull import address
from hxd.daemon.store.pull.address import AddressError, origin, shown
from hxd.daemon.store.reference import Digest

HUB = "https://huggingface.co"
FORM = "https://… or hf:OWNER/REPO/FILE[@REVISION]"
MAX_NAME = 200  # file systems take 255 bytes; `.part.new` has to fit
MAX_SHARDS = 1000

_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"[!-~]+")
_RESOLVED = re.compile(r"(https?://[^/]+(?:/.*?)?/[^/]+/[^/]+/resolve/)[^/]+/")


@dataclass(frozen=True)
class File:
    """`url` may hold secrets in its query. `sha256` is what the operator knows."""

    name: str
    url: str = field(repr=False)
    sha256: str | None = None


@dataclass(frozen=True)
class Wanted:
    """The files of one model. `hub` is the origin of the Hugging Face endpoint when they come from
    there. `authorization` is the Authorization header by origin, and for no other one."""

    shown: str
    files: tuple[File, ...]
    hub: str | None = None
    authorization: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_http: bool = False


def parse(
    text: str,
    *,
    endpoint: str | None,
    token: str | None,
    sha256: str | None,
    allow_http: bool = False,
) -> Wanted:
    """Raises `BadName`. `endpoint` and `token` are HF_ENDPOINT and HF_TOKEN; `sha256` is in hex,
    one for each shard with commas between where there are several."""
    text = text.strip()
    if not text.isprintable():
        raise BadName("the name of a model to pull holds control characters")
    base = (endpoint or HUB).rstrip("/")
    try:
        address.check(base, allow_http=allow_http)
        if text.startswith("hf:"):
            url = _hub_url(base, text)
        else:
            url = _plain(text)
            address.check(url, allow_http=allow_http)
    except AddressError as error:
        raise BadName(str(error)) from None
    url, basic = _without_user(url)
    from_hub = origin(url) == origin(base)
    if from_hub and re.match(r"/[^/]+/[^/]+/blob/", urlsplit(url).path):
        raise BadName(
            f"{shown(url)} is the web page about a file; put /resolve/ instead of /blob/, "
            "or use hf:OWNER/REPO/FILE"
        )
    authorization = {}
    if token and token.strip():
        if not _TOKEN.fullmatch(token.strip()):
            raise BadName("HF_TOKEN holds letters that no token has")
        authorization[origin(base)] = f"Bearer {token.strip()}"
    if basic:
        authorization[origin(url)] = basic
    return Wanted(
        shown=text if text.startswith("hf:") else shown(url),
        files=_files(url, sha256),
        hub=origin(base) if from_hub else None,
        authorization=authorization,
        allow_http=allow_http,
    )


def at_commit(url: str, commit: str | None) -> str:
    """The same file of the hub at `commit`, so that a push in between can't mix two versions."""
    if commit is None or not _COMMIT.fullmatch(commit):
        return url
    return _RESOLVED.sub(rf"\g<1>{commit}/", url, count=1)


def _hub_url(base: str, text: str) -> str:
    path, at, revision = text.removeprefix("hf:").rpartition("@")
    if not at:
        path, revision = revision, "main"
    owner, _, rest = path.partition("/")
    repo, _, file = rest.partition("/")
    for name in (owner, repo):
        if not _REPO.fullmatch(name) or ".." in name:
            raise BadName(f"{text!r}: {name!r} is no owner or repository; the form is {FORM}")
    if any(part in ("", ".", "..") or "\\" in part for part in file.split("/")):
        raise BadName(f"{text!r} names no file in {owner}/{repo}; the form is {FORM}")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise BadName(f"{text!r}: {revision!r} is no branch, tag or commit")
    # One segment, slashes and all: this is how the hub tells refs/pr/1 from a folder.
    return f"{base}/{owner}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}"


def _plain(text: str) -> str:
    if "://" not in text:
        # With an @ in it, it may be a URL with a password that lacks its start.
        named = "this" if "@" in text else repr(text)
        raise BadName(f"{named} is not taken; the form is {FORM}")
    try:
        parts = urlsplit(text)
        # What is ASCII stays as it is: a signed URL is only good byte by byte.
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    except ValueError:
        raise BadName(f"this is not a URL; the form is {FORM}") from None
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _without_user(url: str) -> tuple[str, str | None]:
    """And the Authorization header that user and password stand for."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    name, _, password = user.partition(":")
    pair = f"{unquote(name)}:{unquote(password)}".encode()
    return (
        urlunsplit(parts._replace(netloc=host)),
        f"Basic {base64.b64encode(pair).decode()}",
    )


def _files(url: str, sha256: str | None) -> tuple[File, ...]:
    parts = urlsplit(url)
    folder, _, last = parts.path.rpartition("/")
    name = _name(unquote(last), url)
    names = _shards(name)
    digests = _digests(name, sha256, len(names))
    return tuple(
        File(
            name=one,
            url=url
            if one == name
            else urlunsplit(parts._replace(path=f"{folder}/{quote(one, safe='')}")),
            sha256=digest,
        )
        for one, digest in zip(names, digests, strict=True)
    )


def _digests(name: str, sha256: str | None, count: int) -> Sequence[str | None]:
    if not sha256:
        return [None] * count
    digests = [str(Digest(digest.strip().lower())) for digest in sha256.split(",")]
    if len(digests) != count:
        raise BadName(f"{name}: {len(digests)} sha256 for {count} files")
    return digests


def _shards(name: str) -> list[str]:
    """All files that `name` is one of, as llama.cpp's gguf-split names them."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return [name]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_SHARDS:
        raise BadName(f"{name}: there is no part {number} of {count}")
    return [f"{stem}-{one:05}-of-{count:05}.gguf" for one in range(1, count + 1)]


def _name(name: str, url: str) -> str:
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise BadName(f"{shown(url)} does not end with the name of a file")
    if len(name.encode()) > MAX_NAME:
        raise BadName(f"{shown(url)}: the file's name is longer than {MAX_NAME} bytes")
    return name

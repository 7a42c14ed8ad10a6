"""What a server has under a URL: found out before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hxd.clock import Clock
from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull import beginning
from hxd.daemon.store.pull.address import origin, shown
from hxd.daemon.store.pull.facts import (
    Facts,
    content_range,
    number,
    sha256_of,
    stated_sha256,
    strong_etag,
)
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.reference import File, Wanted, at_commit
from hxd.daemon.store.pull.tries import Again, Tries
from hxd.daemon.store.pull.web import Answer, Web

_ABSENT = Facts("")
# A server of files only, such as a mirror on a plain web server, may not know HEAD.
_NO_HEAD = frozenset({405, 501})


@dataclass
class Source:
    """`ranged`: it answers with parts of the file. `link` is where the redirects ended, None where
    there were none; it may expire."""

    file: File
    url: str
    facts: Facts
    ranged: bool
    link: str | None


async def find(
    web: Web, wanted: Wanted, file: File, commit: str | None, limits: Limits, clock: Clock
) -> Source:
    """`commit`: where the first file of several was found. Raises `SourceFailed`."""
    tries = Tries(limits)
    while True:
        try:
            return await _find(web, wanted, file, commit)
        except Again as again:
            await clock.sleep(tries.failed(again, 0))


async def _find(web: Web, wanted: Wanted, file: File, commit: str | None) -> Source:
    url = at_commit(file.url, commit)
    stated = _ABSENT
    if wanted.hub is not None and origin(url) == wanted.hub:
        stated = await _stated_by_hub(web, url, wanted.hub)
        url = at_commit(url, stated.commit)
    asked = {"Range": f"bytes=0-{beginning.LENGTH - 1}"}
    async with web.ask(url, asked) as answer:
        size, ranged = _size(url, answer)
        start = await beginning.read(answer.body)
        if ranged and len(start) < min(beginning.LENGTH, size or beginning.LENGTH):
            raise Again(f"{shown(url)}: the answer was cut off")
        beginning.refuse(file.name, shown(url), start, answer.headers.get("Content-Type", ""))
        if stated.size is not None:
            if size is not None and size != stated.size:
                raise Again(f"{shown(url)}: the hub says {stated.size} bytes, its server {size}")
            size = stated.size
        facts = Facts(
            url=shown(url),
            size=size,
            etag=strong_etag(answer.headers),
            modified=answer.headers.get("Last-Modified"),
            linked=stated.linked,
            commit=stated.commit,
            sha256=file.sha256 or sha256_of(stated.linked) or stated_sha256(answer.headers),
        )
        if size is None or not (facts.condition() or facts.linked or facts.sha256):
            # Ranges of two versions could not be told apart, neither now nor at the end.
            ranged = False
        return Source(
            file=file,
            url=url,
            facts=facts,
            ranged=ranged,
            link=answer.url if answer.url != url else None,
        )


async def _stated_by_hub(web: Web, url: str, hub: str) -> Facts:
    """What the hub itself knows of the file; its storage elsewhere does not. See
    huggingface_hub's get_hf_file_metadata."""
    async with web.ask(url, method="HEAD", within=hub, takes=_NO_HEAD) as answer:
        headers = answer.headers
    if answer.status in _NO_HEAD:
        return _ABSENT
    linked = headers.get("X-Linked-Etag", "").removeprefix("W/")
    return msgspec.structs.replace(
        _ABSENT,
        size=number(headers.get("X-Linked-Size")),
        linked=linked[:512] or None,
        commit=headers.get("X-Repo-Commit", "")[:64] or None,
    )


def _size(url: str, answer: Answer) -> tuple[int | None, bool]:
    """Of the whole file, and whether ranges of it can be had."""
    if answer.status == 206:
        found = content_range(answer.headers)
        if found is None or found[:2] != (0, min(beginning.LENGTH, found[2] or beginning.LENGTH)):
            raise Again(f"{shown(url)}: asked for the first bytes, the server sent others")
        return found[2], True
    if answer.status == 416 or number(answer.headers.get("Content-Length")) == 0:
        raise SourceFailed(f"{shown(url)}: the file is empty")
    return number(answer.headers.get("Content-Length")), False

"""One file of a version again, from where it came at first; believed by its sha256 only."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from hxd.daemon.store import disk
from hxd.daemon.store.disk import guarded
from hxd.daemon.store.doctor import Fetch
from hxd.daemon.store.library import Library
from hxd.daemon.store.pull.job import fetch
from hxd.daemon.store.pull.proxy import DIRECT, Proxies
from hxd.daemon.store.pull.reference import File, Wanted, parse
from hxd.daemon.store.work import Work
from hxd.daemon.store.workspaces import PULL


def folder_for(library: Library, wanted: Wanted) -> Path:
    """Where its parts lie, for the next one who wants the same."""
    urls = "\n".join(file.url for file in wanted.files)
    return library.workspaces.folder / PULL / hashlib.sha256(urls.encode()).hexdigest()[:32]


def into(
    library: Library,
    endpoint: str | None = None,
    token: str | None = None,
    proxies: Proxies = DIRECT,
) -> Fetch:
    """What the doctor fetches with; `endpoint` and `token` as for `parse`."""

    def one(url: str, sha256: str, target: Path, work: Work) -> None:
        # Whoever listens learns nothing, since no token goes over such a connection, and can
        # change nothing, since the digest is known.
        plain = url.startswith("http://")
        given = (None, None) if plain else (endpoint, token)
        wanted = parse(url, endpoint=given[0], token=given[1], sha256=None, allow_http=plain)
        file = next((one for one in wanted.files if one.url == url), wanted.files[0])
        alone = replace(wanted, files=(File(file.name, url, sha256),))
        folder = folder_for(library, alone)
        with library.workspaces.alone(folder):
            (found,) = fetch(alone, folder, work, proxies=proxies)
            with guarded(f"bring {found.path.name} into the store"):
                found.path.rename(target)
                disk.delete(folder)

    return one

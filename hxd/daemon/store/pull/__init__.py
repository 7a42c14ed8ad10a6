"""Model files from other servers: `parse` what is asked, then `fetch` it.

A pull goes through these, one module each: a reference becomes a `Wanted`; `source` finds out what
the server has; `part` keeps what arrives, through any crash; `transfer` makes it whole over `web`;
`verify` judges it; `job` puts them together. `proxy` says through whom a server is asked; `rate` is
for whoever shows the progress.

Protects: a file gets its name only when it is whole, has the sha256 that the operator, the hub or
the server names, and is on the disk; a token goes to its own server only; nothing is asked over a
connection that others can read, unless the operator says so; certificates are always checked.
Does not protect: where nobody names a sha256, against a server that sends another model.
"""

from __future__ import annotations

from hxd.daemon.store.pull.job import Fetched, fetch
from hxd.daemon.store.pull.limits import LIMITS, Limits
from hxd.daemon.store.pull.proxy import Proxies, proxies
from hxd.daemon.store.pull.rate import Rate
from hxd.daemon.store.pull.reference import File, Wanted, parse

__all__ = [
    "LIMITS",
    "Fetched",
    "File",
    "Limits",
    "Proxies",
    "Rate",
    "Wanted",
    "fetch",
    "parse",
    "proxies",
]

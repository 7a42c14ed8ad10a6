"""What an answer that is not the file means, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull.facts import number
from hxd.daemon.store.pull.proxy import Proxy
from hxd.daemon.store.pull.tries import Again

# Overload and repair pass; of the server errors, 501 and 505 say that it can't at all.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, *range(506, 600)})
NEVER_THERE = frozenset({404, 410})
PROXY_LOGIN = 407


def refused(
    status: int, headers: Mapping[str, str], shown: str, *, hub: bool, token: bool, now: float
) -> Again | SourceFailed:
    """To be raised. `hub`: the hub itself answered, so its own headers are believed; `token`: one
    was sent; `now` in Unix seconds, for a Retry-After that is a date."""
    said = _said(headers) if hub else ""
    if status in PASSING:
        what = "is busy (429)" if status == 429 else f"is in trouble ({status})"
        return Again(f"{shown}: the server {what}{said}", _retry_after(headers, now))
    if status in (401, 403):
        return SourceFailed(f"{shown}: the server refuses it ({status}){said}{_key(hub, token)}")
    if status in NEVER_THERE:
        return SourceFailed(f"{shown}: {_absent(headers, hub)} ({status}){said}")
    return SourceFailed(f"{shown}: the server answered {status}{said}, which is no file")


def refused_by_proxy(status: int, shown: str, proxy: Proxy | None) -> Again | SourceFailed:
    """To be raised where a proxy does not connect to the server of `shown`."""
    which = "the proxy" if proxy is None else f"the proxy {proxy.url}"
    where = "pull.proxy" if proxy is None else proxy.said_by
    if status == PROXY_LOGIN:
        wrong = proxy is not None and proxy.authorization is not None
        what = "refuses the user and password" if wrong else "wants a user and a password"
        return SourceFailed(
            f"{shown}: {which} {what} (407); set them in {where}: http://USER:PASSWORD@HOST:PORT"
        )
    if status in PASSING:
        return Again(f"{shown}: {which} can't reach the server ({status})")
    return SourceFailed(
        f"{shown}: {which} does not let it through ({status}). It is named by {where}; "
        "pull.no_proxy lists servers that are asked directly"
    )


def _key(hub: bool, token: bool) -> str:
    if not hub:
        return "; does it need a user and password, or has a signed URL expired?"
    if token:
        return (
            "; the model may be gated: accept its conditions on its page, with the account that "
            "HF_TOKEN belongs to, and see that the token may read it"
        )
    return "; it does not exist, or is private or gated: set HF_TOKEN to a token that may read it"


def _absent(headers: Mapping[str, str], hub: bool) -> str:
    code = headers.get("X-Error-Code") if hub else None
    return {
        "RepoNotFound": "there is no such repository, or HF_TOKEN may not see it",
        "RevisionNotFound": "there is no such branch, tag or commit in the repository",
        "EntryNotFound": "there is no such file in the repository",
    }.get(code or "", "there is no such file")


def _said(headers: Mapping[str, str]) -> str:
    text = headers.get("X-Error-Message", "")[:200]
    return f": {text!r}" if text.strip() else ""


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    text = headers.get("Retry-After", "").strip()
    seconds = number(text)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None

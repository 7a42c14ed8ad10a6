"""Through which HTTP proxy a URL is asked for, if through any. Pure.

What the checks of `address` are worth with a proxy: names and literal addresses are judged as ever,
here. Which address a name stands for is found out by the proxy, and what it may reach is the
proxy's to say.

Protects: this machine's own services, and the proxy's, from being asked for by a loopback address
through it; the proxy's user and password from being shown. Does not protect: user and password on
the way to the proxy, which is not encrypted. What goes through it to an https:// server is.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from hxd.config import kinds
from hxd.config.settings import Pull
from hxd.daemon.store.faults import StoreError
from hxd.daemon.store.pull.address import PORTS, is_loopback, shown

_SCHEMES = tuple(PORTS)


@dataclass(frozen=True)
class Proxy:
    """`url` is without user and password; they are in `authorization`, for the header
    Proxy-Authorization. `said_by` is what an operator changes to have another one."""

    url: str
    said_by: str
    authorization: str | None = field(default=None, repr=False)


class Proxies:
    """`by_scheme` for `http` and `https`; `direct` as `pull.no_proxy` has them."""

    def __init__(
        self, by_scheme: Mapping[str, Proxy] | None = None, direct: Iterable[str] = ()
    ) -> None:
        self._by_scheme = dict(by_scheme or {})
        self._direct = tuple(direct)

    def for_url(self, url: str) -> Proxy | None:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        port = parts.port or PORTS.get(parts.scheme, 0)
        if is_loopback(host) or any(_covers(item, host, port) for item in self._direct):
            return None
        return self._by_scheme.get(parts.scheme)


DIRECT = Proxies()


def proxies(settings: Pull, environment: Mapping[str, str]) -> Proxies:
    """Raises `StoreError` for a variable that names no proxy."""
    if settings.proxy == "none":
        return DIRECT
    if settings.proxy != "auto":
        one = _proxy(settings.proxy, "pull.proxy")
        return Proxies(dict.fromkeys(_SCHEMES, one), settings.no_proxy)
    found = {}
    for scheme in _SCHEMES:
        for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
            if text := environment.get(variable, "").strip():
                found[scheme] = _from_environment(text, variable)
                break
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return Proxies(found, (*settings.no_proxy, *listed.replace(",", " ").split()))


def _from_environment(text: str, variable: str) -> Proxy:
    # As other programs do, which take a host and a port alone.
    url = text if "://" in text else f"http://{text}"
    try:
        return _proxy(kinds.proxy_url(url), f"{variable} in the daemon's environment")
    except ValueError as error:
        raise StoreError(
            f"{variable} in the daemon's environment: {error}; or set pull.proxy"
        ) from None


def _proxy(url: str, said_by: str) -> Proxy:
    parts = urlsplit(url)
    authorization = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(login).decode()}"
    return Proxy(shown(url).rstrip("/"), said_by, authorization)


def _covers(item: str, host: str, port: int) -> bool:
    item = item.lower()
    if item == "*":
        return True
    network = kinds.network(item)
    if network is not None:
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    name, colon, number = item.rpartition(":")
    if colon:
        if number != str(port):
            return False
        item = name
    item = item.removeprefix("*").strip(".[]")
    return host == item or host.endswith(f".{item}")

"""Who is asking, and may they. Decided from the route table, never from a prefix of the path.

Protects: every route but `/livez` and `/readyz` needs a key with the route's role; browsers on
other sites can't reach a local daemon (Host and Origin are checked). Does not protect: a key that
is sent over plain HTTP on a network that others can read.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Protocol

from hxd.errors import CallerError, Forbidden, Unauthorized


class Role(enum.StrEnum):
    INFERENCE = "inference"
    METRICS = "metrics"
    OPERATOR = "operator"
    ADMIN = "admin"


# What each role may do besides its own.
_INCLUDES: dict[Role, frozenset[Role]] = {
    Role.INFERENCE: frozenset({Role.INFERENCE}),
    Role.METRICS: frozenset({Role.METRICS}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.METRICS}),
    Role.ADMIN: frozenset(Role),
}


class Keys(Protocol):
    def role_of(self, key: str) -> tuple[str, Role] | None:
        """Id and role of a key that is valid, or None."""
        ...


class Headers(Protocol):
    def getall(self, key: str, default: list[str], /) -> list[str]: ...


def identify(headers: Headers, keys: Keys, needed: Role | None) -> str:
    """Id of the caller's key; raises `Unauthorized` or `Forbidden`. `needed` None: any role."""
    found = keys.role_of(_key(headers))
    if found is None:
        raise Unauthorized("This key is not valid here. Ask the operator for one.")
    id, role = found
    if needed is not None and needed not in _INCLUDES[role]:
        raise Forbidden(f"This key has the role {role.value!r}; {needed.value!r} is needed here.")
    return id


def _key(headers: Headers) -> str:
    authorization = headers.getall("Authorization", [])
    api_key = headers.getall("x-api-key", [])
    if len(authorization) > 1 or len(api_key) > 1:
        raise CallerError("one Authorization or x-api-key header, please", code="ambiguous_key")
    if authorization:
        scheme, _, key = authorization[0].partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return key.strip()
        raise Unauthorized('The Authorization header must read "Bearer KEY".')
    if api_key:
        return api_key[0].strip()
    raise Unauthorized('A key is needed: send "Authorization: Bearer KEY" or "x-api-key: KEY".')


def on_loopback(place: str | tuple[Any, ...] | None) -> bool:
    """Whether a connection with this local address, as `getsockname` has it, can't have come from
    another machine. None is one that is gone."""
    if place is None or isinstance(place, str):
        return place is not None
    return _loopback(place[0])


@lru_cache(maxsize=64)
def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """Refuses DNS rebinding and other sites' pages; raises `CallerError` or `Forbidden`.

    A page can make a browser send any request to a name that it controls, so the name must be one
    of ours: an address, `localhost`, or one in `allowed`. API clients send no Origin.
    """
    hosts = headers.getall("Host", [])
    if len(hosts) != 1:
        raise CallerError("exactly one Host header is needed", code="bad_host")
    name = _name(hosts[0])
    if name is None or not (_named(name, allowed) or _is_address(name)):
        raise Forbidden("This server does not answer to that Host.", code="bad_host")
    for origin in headers.getall("Origin", []):
        page = _name(origin.partition("://")[2])
        if page is None or not (_named(page, allowed) or page == name):
            raise Forbidden("Pages of other sites may not call this server.", code="bad_origin")


@lru_cache(maxsize=256)
def _name(host: str) -> str | None:
    """The name or address in `NAME:PORT`, lower case; None when it is neither."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower().rstrip(".") if match else None


def _named(name: str, allowed: Collection[str]) -> bool:
    return name == "localhost" or name in allowed


@lru_cache(maxsize=256)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""What may be asked over the network, and how an address is shown.

Protects: a token from going in the clear, to another host, or into a log; this machine's own
services from a redirect that another server makes up. Does not protect: against names that resolve
to addresses of the LAN (an operator may well keep models there).
"""

from __future__ import annotations

import ipaddress
import socket
import string
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

_ASCII = string.digits + string.ascii_letters + string.punctuation
PORTS = {"http": 80, "https": 443}


class AddressError(ValueError):
    """This address is not asked; the message says why and shows no secrets."""


def shown(url: str) -> str:
    """Without user, password, query and fragment, any of which can be or hold a secret."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "that URL"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def origin(url: str) -> str:
    """Scheme, host and port, in one spelling."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 0)}"


def check(url: str, *, allow_http: bool) -> None:
    """Raises `AddressError` unless `url` may be asked."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"{shown(url)}: {error}") from None
    if parts.scheme not in PORTS:
        raise AddressError(f"{shown(url)}: only https:// is taken, not {parts.scheme or 'this'}:")
    if not host:
        raise AddressError(f"{shown(url)}: there is no host in it")
    if any(ord(letter) <= 0x20 or letter == "\x7f" for letter in url):
        raise AddressError(f"{shown(url)!r}: spaces and control characters have to be encoded")
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise AddressError(
            f"{shown(url)}: http:// shows the model and any token to everyone on the way; "
            "use https://"
        )


def is_loopback(host: str) -> bool:
    """Whether it is this machine in any spelling that needs no name server: `127.1`, `0.0.0.0` and
    `::ffff:127.0.0.1` lead there too."""
    host = host.rstrip(".").lower()
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            # As the resolver reads numbers.
            found = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return host == "localhost" or host.endswith(".localhost")
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback or found.is_unspecified


def redirected(url: str, location: str, *, allow_http: bool) -> str:
    """Where a redirect from `url` leads; raises `AddressError` when it is not followed."""
    try:
        # The header may hold any bytes; what is ASCII stays as it is, as signatures need it.
        target = urljoin(url, quote(location, safe=_ASCII, errors="surrogateescape"))
        parts = urlsplit(target)
    except ValueError:
        raise AddressError("it leads to something that is not a URL") from None
    # Neither is meant for the next server.
    target = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    check(target, allow_http=allow_http)
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise AddressError(f"it leads from https:// to {shown(target)}, which is not encrypted")
    if is_loopback(parts.hostname or "") and not is_loopback(urlsplit(url).hostname or ""):
        raise AddressError(f"it leads from another machine to {shown(target)}, which is this one")
    return target

"""How one value in a config file is read: its TOML type, its range, its spelling.

Every function takes the raw TOML value and returns the setting, or raises `ValueError` with what
is wrong, phrased to follow `key.path: `.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Kind = Callable[[Any], Any]

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)\s*$")
_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
# A name, perhaps with all below it, and perhaps a port.
_HOST = re.compile(r"(?:\*?\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?(?::[0-9]{1,5})?")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Address(NamedTuple):
    """Where to listen; an IPv6 host stands without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def found(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def integer(low: int, high: int) -> Kind:
    def read(value: Any) -> int:
        if type(value) is not int:
            raise ValueError(f"expected an integer, found {found(value)}")
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range; {low} to {high} are possible")
        return value

    return read


def number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"expected a number, found {found(value)}")
    return float(value)


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, found {found(value)}")
    return value


def text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"expected a string, found {found(value)}")
    if not value or "\0" in value:
        raise ValueError("must not be empty")
    return value


def texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise ValueError(f"expected a list of strings, found {found(value)}")
    for i, item in enumerate(value):
        if type(item) is not str or not item:
            raise ValueError(f"item {i + 1} must be a string, found {found(item)}")
    return tuple(value)


def weights(value: Any) -> tuple[float, ...]:
    """Shares of the traffic, in any unit."""
    if type(value) is not list:
        raise ValueError(f"expected a list of numbers, found {found(value)}")
    read = tuple(number(item) for item in value)
    for item in read:
        if not 0 <= item <= 1e6:
            raise ValueError(f"{item:g} is out of range; 0 to 1000000 are possible")
    if read and not any(read):
        raise ValueError("one weight at least must be above 0")
    return read


def table(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"expected a table, found {found(value)}")
    return value


def one_of(*choices: str) -> Kind:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def seconds(low: float, high: float) -> Kind:
    """A number of seconds, or a string such as "250ms", "30s", "10m", "1h"."""

    def read(value: Any) -> float:
        if type(value) is str:
            match = _DURATION.match(value)
            if not match:
                raise ValueError(
                    f'{value!r} is not a duration; write seconds or "30s", "10m", "1h"'
                )
            value = float(match[1]) * _SECONDS[match[2]]
        result = number(value)
        if not low <= result <= high:
            possible = f"{_spelled(low)} to {_spelled(high)}"
            raise ValueError(f"{result:g} s is out of range; {possible} are possible")
        return result

    return read


def _spelled(seconds: float) -> str:
    """As it can be written in a configuration, in the largest unit that fits."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def size(low: int, high: int) -> Kind:
    """Bytes as an integer, or a string such as "4MiB"."""

    def read(value: Any) -> int:
        if type(value) is str:
            match = _SIZE.match(value)
            if not match:
                raise ValueError(f'{value!r} is not a size; write bytes or "512KiB", "4MiB", "2GB"')
            value = int(float(match[1]) * _UNITS[match[2]])
        result = integer(0, 1 << 62)(value)
        if not low <= result <= high:
            raise ValueError(f"{result} bytes is out of range; {low} to {high} are possible")
        return int(result)

    return read


def budget(value: Any) -> int | None:
    """A size, or "auto" (None)."""
    return None if value == "auto" else int(size(1 << 20, 1 << 50)(value))


def address(value: Any) -> Address:
    raw = text(value)
    host, colon, port = raw.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'{raw!r} is not an address; write "127.0.0.1:8420" or "[::1]:8420"')
    return Address(host, int(port))


def proxy(value: Any) -> str:
    """The URL of an HTTP proxy, "auto" or "none". The value is shown in no error: it may hold a
    password."""
    return value if value in ("auto", "none") else proxy_url(text(value))


def proxy_url(raw: str) -> str:
    form = (
        "write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, where in user and password the "
        "letters @ : / ? # % and what is not plain ASCII are percent-encoded"
    )
    scheme, colon, _ = raw.partition("://")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(f"not the URL of a proxy; {form}")
    if scheme.lower() != "http":
        raise ValueError(f"proxies are spoken to by http://, not {scheme.lower()}://; {form}")
    try:
        parts = urlsplit(raw)
        host, _ = parts.hostname, parts.port
        name = unquote(parts.username or "")
    except ValueError:
        raise ValueError(f"not the URL of a proxy; {form}") from None
    if not raw.isascii() or not raw.isprintable() or " " in raw:
        raise ValueError(f"it holds other letters than a URL may; {form}")
    odd = parts.path.strip("/") or parts.query or parts.fragment or parts.netloc.count("@") > 1
    if odd or ":" in name:
        raise ValueError(f"not the URL of a proxy; {form}")
    if not host:
        raise ValueError(f"there is no host in it; {form}")
    return raw


def hosts(value: Any) -> tuple[str, ...]:
    """Names, addresses, networks, or "*"."""
    read = texts(value)
    for item in read:
        if item != "*" and not _HOST.fullmatch(item) and network(item) is None:
            raise ValueError(
                f"{item!r} is no host; write a name, .NAME for all below it, an address, or a "
                "network such as 10.0.0.0/8"
            )
    return read


def network(item: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Of an address itself alone; None for what is neither."""
    try:
        return ipaddress.ip_network(item.removeprefix("[").removesuffix("]"), strict=False)
    except ValueError:
        return None


def model_name(name: str) -> str:
    """A name that a client may send and a folder may carry."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", name):
        raise ValueError(
            "a model's name has letters, digits, '.', '_', '-' and '/', starts with a letter or a "
            "digit, and is at most 128 long"
        )
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("a part of a model's name must not be empty, '.' or '..'")
    return name

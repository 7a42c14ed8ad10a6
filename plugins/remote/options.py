"""What an operator may set in `[models.NAME.options]` of a remote model. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from hxd.config import kinds
from hxd.errors import nearest
from hxd.hookspecs import CAPABILITIES

# Fields that only refine an answer, so that leaving one out is better than no answer.
OMITTABLE = frozenset(
    {"encoding_format", "max_tokens", "min_p", "parallel_tool_calls", "repeat_penalty",
     "repetition_penalty", "seed", "stream_options", "top_k"}
)  # fmt: skip
# Where people put keys; the main config is no place for one.
_KEYS = ("key", "api_key", "apikey", "token", "password", "secret")
_KEY_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "x-auth-token"}
)
# hxd sets these, or the connection does.
_OWN_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-encoding", "content-length", "content-type",
     "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
_KEY_PLACES = (
    'a key never stands in the config: write key_env = "VARIABLE" and list the variable in the '
    'model\'s environment, or key_file = "FILE"'
)


@dataclass(frozen=True)
class Options:
    """`url` is the base, without a slash at its end. `model`: the name there, None for the same as
    here. `connect`, `first_byte` and `stall` in seconds; `retries` per request."""

    url: str
    model: str | None = None
    key_env: str | None = None
    key_file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    connect: float = 5.0
    first_byte: float = 120.0
    stall: float = 30.0
    retries: int = 2
    omit: frozenset[str] = frozenset()
    capabilities: frozenset[str] = CAPABILITIES

    @property
    def root(self) -> str:
        """The base without its `/v1`: where servers have what is not OpenAI's."""
        return self.url.removesuffix("/v1")

    @property
    def place(self) -> str:
        """Host and port, as messages name the server."""
        return urlsplit(self.url).netloc


def read(raw: Mapping[str, Any]) -> Options:
    """Raises `ValueError` with the option at fault and what is possible."""
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _KEYS:
            raise ValueError(f"option {name}: {_KEY_PLACES}")
        if name not in _READERS:
            raise ValueError(
                f"unknown option {name!r}.{nearest(name, _READERS)} "
                f"There are: {', '.join(sorted(_READERS))}"
            )
        try:
            values[name] = _READERS[name](value)
        except ValueError as error:
            raise ValueError(f"option {name}: {error}") from None
    if "url" not in values:
        raise ValueError('option url: it is needed, such as url = "http://127.0.0.1:8000/v1"')
    if "key_env" in values and "key_file" in values:
        raise ValueError("option key_file: give key_env or key_file, not both")
    return Options(**values)


def _url(value: Any) -> str:
    url = kinds.text(value)
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError("has spaces or characters that no URL has")
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if "@" in parts.netloc:
        raise ValueError(f"has a user or password in it; {_KEY_PLACES}")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError(f"must end with its path, without ? and #; {_KEY_PLACES}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f'{url!r} is not like "http://host:8000/v1" or "https://host/v1"')
    return url.rstrip("/")


def _variable(value: Any) -> str:
    name = kinds.text(value)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Not quoted: whoever mistakes the option puts the key itself here.
        raise ValueError("expected the name of an environment variable, not the key itself")
    return name


def _headers(value: Any) -> dict[str, str]:
    headers = {}
    for name, text in kinds.table(value).items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError(f"{name!r} is not the name of a header")
        if name.lower() in _KEY_HEADERS:
            raise ValueError(f"{name}: {_KEY_PLACES}")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name}: hxd sets this one itself")
        if type(text) is not str or not re.fullmatch(r"[ -~]*", text):
            raise ValueError(f"{name}: expected a string of printable ASCII characters")
        headers[name] = text
    return headers


def _file(value: Any) -> Path:
    path = Path(kinds.text(value)).expanduser()
    if not path.is_absolute():
        raise ValueError(f'{str(path)!r} must begin with "/" or "~"')
    return path


def _some_of(known: frozenset[str]) -> Callable[[Any], frozenset[str]]:
    def read(value: Any) -> frozenset[str]:
        names = kinds.texts(value)
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{name!r} is not possible.{nearest(name, known)} "
                    f"There are: {', '.join(sorted(known))}"
                )
        return frozenset(names)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "url": _url,
    "model": kinds.text,
    "key_env": _variable,
    "key_file": kinds.text,
    "headers": _headers,
    "ca_file": _file,
    "connect": kinds.seconds(0.05, 300),
    "first_byte": kinds.seconds(0.05, 3600),
    "stall": kinds.seconds(0.05, 3600),
    "retries": kinds.integer(0, 5),
    "omit": _some_of(OMITTABLE),
    "capabilities": _some_of(CAPABILITIES),
}

"""Every error that a client or an operator can meet, split by whose fault it is.

Each class carries its HTTP status, its OpenAI `type`, a `code` and advice on retrying; `body()` is
the one place that renders them. A message names what was asked, what was found and what mends it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar


class Fault(enum.StrEnum):
    """Who has to change something. Breakers count `BACKEND` only; `HXD` is a bug of ours."""

    CALLER = "caller"
    OPERATOR = "operator"
    BACKEND = "backend"
    HXD = "hxd"


class HxdError(Exception):
    """Base of all. `retry_after` is in seconds and becomes the Retry-After header."""

    fault: ClassVar[Fault] = Fault.HXD
    status: int = 500
    type: str = "internal_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.allow = tuple(allow)
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def body(self) -> dict[str, Any]:
        """The OpenAI error object, as a client reads it."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.allow:
            headers["Allow"] = ", ".join(sorted(self.allow))
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="hxd"'
        return headers


class CallerError(HxdError):
    """The request is wrong; sending it again unchanged will not help."""

    fault = Fault.CALLER
    status = 400
    type = "invalid_request_error"
    code: str | None = None


class ModelNotFound(CallerError):
    status = 404
    code = "model_not_found"

    def __init__(self, asked: str, served: Iterable[str]) -> None:
        names = sorted(served)
        super().__init__(
            f"The model {asked!r} does not exist.{nearest(asked, names)} "
            f"Served here: {', '.join(names) or 'none'}.",
            param="model",
        )


class Unauthorized(CallerError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(CallerError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class QueueFull(CallerError):
    """Every slot is busy and the model's queue has no room. The caller may try again."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ConfigError(HxdError):
    """The operator's file is wrong. `findings` holds one `FILE: key.path: what` per fault."""

    fault = Fault.OPERATOR
    EXIT_CODE: ClassVar[int] = 78  # EX_CONFIG of sysexits.h; systemd units do not restart on it

    def __init__(self, findings: Iterable[str]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(self.findings))


class StorageFailed(HxdError):
    """The disk is full, read-only or failing, or not the daemon's to write on. What was there is
    there."""

    fault = Fault.OPERATOR
    status = 507
    type = "storage_error"
    code = "storage_failed"


class BackendError(HxdError):
    """A worker, its plugin or its model failed. Another replica might do better."""

    fault = Fault.BACKEND
    status = 502
    type = "backend_error"
    code = "backend_error"


class Misconfigured(HxdError):
    """The operator has to change something, such as the key for a remote server."""

    fault = Fault.OPERATOR
    status = 502
    type = "backend_error"
    code = "misconfigured"


class Unavailable(HxdError):
    """Nothing can answer right now: loading, restarting, draining."""

    fault = Fault.HXD
    status = 503
    type = "service_unavailable"
    code = "unavailable"


BY_FAULT: dict[str, type[HxdError]] = {
    Fault.CALLER: CallerError,
    Fault.OPERATOR: Misconfigured,
    Fault.BACKEND: BackendError,
    Fault.HXD: Unavailable,
}


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known word is close."""
    match = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""

"""Whose fault a server's refusal is, and what the client may read of it. Pure.

What a server says is bounded, freed of control characters and of the key, and never passed on
where it speaks of the key.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hxd.errors import Fault
from hxd.hookspecs import RelayFailed, RequestRefused

MESSAGE_LIMIT = 500  # characters of a server's own words
RAW_LIMIT = 4096  # bytes of them that are searched for the names of fields
WORD_LIMIT = 100  # of a code or a parameter's name
WAIT_LIMIT = 3600.0  # seconds; no server's Retry-After is believed beyond it
KEY_REFUSED = "remote_key_refused"
BUSY = "remote_busy"


class Refused(RequestRefused):
    """The server calls the request wrong. `raw` is all that it said, for us and nobody else."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, raw: str = ""
    ) -> None:
        super().__init__(message, param)
        self.code = code
        self.raw = raw


class Failure(RelayFailed):
    """The server, or the way to it, failed. `transient`: another try may do better."""

    def __init__(
        self,
        message: str,
        fault: Fault = Fault.BACKEND,
        code: str | None = None,
        retry_after: float | None = None,
        *,
        transient: bool = False,
    ) -> None:
        super().__init__(message, fault, code, retry_after)
        self.transient = transient


class KeyRefused(Failure):
    """A key that has been changed since may be accepted."""

    def __init__(self, place: str, status: int) -> None:
        super().__init__(
            f"the operator's key for the remote server {place} is not accepted (status {status}); "
            "see key_env and key_file in the options of this model",
            Fault.OPERATOR,
            KEY_REFUSED,
        )


class WrongPlace(Failure):
    """The server has nothing where it was asked."""


@dataclass(frozen=True)
class Words:
    """What a server said of an error, cleaned."""

    message: str = ""
    code: str | None = None
    param: str | None = None
    type: str | None = None


@dataclass(frozen=True)
class Reader:
    """Reads the answers of the server at `place`; `hide` takes the key out of a text."""

    place: str
    model: str
    hide: Callable[[str], str]

    def words(self, body: bytes) -> Words:
        """Of an error's body, in any of the forms that servers give it."""
        try:
            return self.said(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Words()

    def said(self, error: Any) -> Words:
        """OpenAI's object, an object with a message, FastAPI's detail, or a bare text."""
        match error:
            case {"error": inner}:
                return self.said(inner)
            case {"message": str(message)}:
                return Words(
                    self._clean(message, MESSAGE_LIMIT),
                    self._word(error.get("code")),
                    self._word(error.get("param")),
                    self._word(error.get("type")),
                )
            case {"detail": [{"msg": str(message), **rest}, *_]}:
                location = rest.get("loc")
                path = location if isinstance(location, list) else []
                param = ".".join(str(step) for step in path if step != "body")
                return Words(self._clean(message, MESSAGE_LIMIT), None, self._word(param))
            case {"detail": str(message)} | str(message):
                return Words(self._clean(message, MESSAGE_LIMIT))
        return Words()

    def _clean(self, text: str, limit: int) -> str:
        shown = re.sub(r"\s+", " ", self.hide(text)).strip()[:limit]
        return "".join(c if c.isprintable() else "?" for c in shown)

    def _word(self, value: Any) -> str | None:
        if not isinstance(value, str) or not value:
            return None
        return self._clean(value, WORD_LIMIT)

    def refusal(
        self, status: int, headers: Mapping[str, str], body: bytes, now: float
    ) -> Refused | Failure:
        """The error that an answer other than 200 stands for. `now` in seconds since 1970."""
        words = self.words(body)
        wait = retry_after(headers.get("Retry-After"), now)
        said = f": {words.message}" if words.message else ""
        answered = f"the remote server {self.place} answered with status {status}"
        if status in (401, 403):
            return KeyRefused(self.place, status)
        if status == 402 or words.code == "insufficient_quota":
            return Failure(
                f"the operator's account at the remote server {self.place} is used up",
                Fault.OPERATOR,
                "remote_quota",
            )
        if status == 429:
            # Nobody is at fault when a server has enough to do; hxd's own 503 says just that.
            return Failure(
                f"the remote server {self.place} is busy{said}",
                Fault.HXD,
                BUSY,
                wait,
                transient=wait is not None,
            )
        if status == 404 and self._names_model(words):
            return Refused(
                f"the remote server {self.place} does not have the model {self.model!r}{said}",
                "model",
                "model_not_found",
            )
        if status in (400, 413, 422, 501):
            message = words.message or f"{answered}, and does not say why"
            raw = body[:RAW_LIMIT].decode("utf-8", "replace")
            return Refused(message, words.param, words.code, raw)
        if status in (404, 405, 410, 421) or 300 <= status < 400:
            moved = "; redirects are not followed" if status < 400 else ""
            return WrongPlace(
                f"{answered}{moved}; see url in the options of this model",
                Fault.OPERATOR,
                "remote_url",
            )
        return Failure(f"{answered}{said}", retry_after=wait, transient=status in (502, 503, 504))

    def _names_model(self, words: Words) -> bool:
        return words.code == "model_not_found" or "model" in words.message.lower()

    def event(self, error: Any) -> Refused | Failure:
        """The error that an event stands for which came in place of a chunk."""
        words = self.said(error)
        status = error.get("code", error.get("status")) if isinstance(error, dict) else None
        if isinstance(status, str) and status.isdecimal() and len(status) == 3:
            status = int(status)
        if isinstance(status, int) and 400 <= status < 600:
            return self.refusal(status, {}, msgspec.json.encode({"error": error}), 0.0)
        if words.type == "invalid_request_error":
            return Refused(words.message, words.param, words.code)
        return Failure(
            f"the remote server {self.place} broke off"
            + (f": {words.message}" if words.message else " with an error")
        )


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait from a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value.strip()):
        return min(float(value), WAIT_LIMIT)
    try:
        date = email.utils.parsedate_to_datetime(value[:WORD_LIMIT])
    except ValueError:
        return None
    return min(max(0.0, date.timestamp() - now), WAIT_LIMIT)

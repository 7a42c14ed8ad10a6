"""Whose fault a refusal is, when it is worth another try, and what the client reads."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.errors import BY_FAULT
from plugins.remote.faults import Failure, Reader, Refused, Words, retry_after
from plugins.remote.retry import BASE, LEAST, LONGEST, Budget, pause

KEY = "sk-0123456789"
READER = Reader("h:1", "there", lambda text: text.replace(KEY, "[key]"))
ERROR = {"message": "no", "type": "t", "param": "p", "code": "c"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": ERROR}, Words("no", "c", "p", "t")),
        (ERROR, Words("no", "c", "p", "t")),
        ({"error": "no"}, Words("no")),
        ({"error": {"message": "no", "code": 400, "param": None}}, Words("no")),
        ({"detail": "no"}, Words("no")),
        (
            {"detail": [{"loc": ["body", "n", 0], "msg": "no", "type": "t"}]},
            Words("no", None, "n.0"),
        ),
        ({"detail": []}, Words()),
        ({}, Words()),
        ([], Words()),
        (None, Words()),
        ("no", Words("no")),
    ],
)
def test_words_are_found_in_every_form(body: Any, words: Words) -> None:
    assert READER.words(json.dumps(body).encode()) == words


def test_words_are_short_plain_and_without_the_key() -> None:
    body = {"error": {"message": f"a\r\n{KEY}\x1b[0m\u202e {'x' * 9000}", "code": KEY * 50}}
    words = READER.words(json.dumps(body).encode())
    assert words.message.startswith("a [key]?[0m? xxx")
    assert len(words.message) == 500
    assert len(words.code or "") == 100
    assert KEY[:5] not in f"{words}"


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_a_body_without_words_has_none(body: bytes) -> None:
    assert READER.words(body) == Words()


def refusal(status: int, body: Any = None, **headers: str) -> Refused | Failure:
    raw = b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return READER.refusal(status, named, raw, 0.0)


@pytest.mark.parametrize("status", [400, 413, 422, 501])
def test_these_are_the_callers(status: int) -> None:
    refused = refusal(status, {"error": ERROR})
    assert isinstance(refused, Refused)
    assert (str(refused), refused.param, refused.code) == ("no", "p", "c")
    assert f"status {status}" in str(refusal(status))


@pytest.mark.parametrize(
    ("status", "fault", "code"),
    [
        (301, "operator", "remote_url"),
        (308, "operator", "remote_url"),
        (401, "operator", "remote_key_refused"),
        (402, "operator", "remote_quota"),
        (403, "operator", "remote_key_refused"),
        (404, "operator", "remote_url"),
        (405, "operator", "remote_url"),
        (408, "backend", None),
        (429, "hxd", "remote_busy"),
        (500, "backend", None),
        (503, "backend", None),
        (599, "backend", None),
        (206, "backend", None),
    ],
)
def test_these_are_not(status: int, fault: str, code: str | None) -> None:
    failed = refusal(status, {"error": {"message": "no"}})
    assert isinstance(failed, Failure)
    assert (failed.fault, failed.code) == (fault, code)
    assert failed.fault in BY_FAULT
    assert "h:1" in str(failed)


def test_only_what_a_moment_may_mend_is_transient() -> None:
    refusals = {status: refusal(status) for status in range(300, 600)}
    failures = {status: f for status, f in refusals.items() if isinstance(f, Failure)}
    assert [status for status, f in failures.items() if f.transient] == [502, 503, 504]


def test_a_pause_is_the_servers_to_name() -> None:
    failed = refusal(429, Retry_After="7")
    assert isinstance(failed, Failure)
    assert (failed.retry_after, failed.transient) == (7.0, True)
    failed = refusal(503, Retry_After="7")
    assert isinstance(failed, Failure)
    assert failed.retry_after == 7.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("999999999", 3600.0),
        ("99999999999999999999", None),
        ("-1", None),
        ("soon", None),
        ("nan", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 32 Jan 1970 99:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 100.0) == seconds


@given(st.text())
def test_no_retry_after_raises(value: str) -> None:
    seconds = retry_after(value, 100.0)
    assert seconds is None or 0.0 <= seconds <= 3600.0


# The budget.


@given(st.integers(0, 1000))
def test_a_fifth_of_what_is_active_may_be_at_a_second_try_and_three_always(active: int) -> None:
    budget = Budget(active=active)
    taken = 0
    while budget.take():
        taken += 1
    assert taken == max(LEAST, active // 5)
    budget.give()
    assert budget.take()
    assert not budget.take()


@given(st.integers(0, 10), st.none() | st.floats(0, 10), st.integers())
def test_pauses_are_random_from_zero_and_never_shorter_than_asked(
    attempt: int, asked: float | None, seed: int
) -> None:
    seconds = pause(attempt, asked, random.Random(seed))
    if asked is not None and asked > LONGEST:
        assert seconds is None
    else:
        assert seconds is not None
        assert 0.0 <= seconds - (asked or 0.0) <= min(LONGEST, BASE * 2**attempt) + 1e-9

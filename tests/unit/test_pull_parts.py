"""The pure parts of a pull: ranges, retries, rates, headers, addresses and first bytes."""

from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.store.faults import SourceFailed
from hxd.daemon.store.pull import beginning
from hxd.daemon.store.pull.address import AddressError, redirected, shown
from hxd.daemon.store.pull.facts import Facts, content_range, stated_sha256, strong_etag
from hxd.daemon.store.pull.limits import Limits
from hxd.daemon.store.pull.medium import size_text
from hxd.daemon.store.pull.ranges import Ranges
from hxd.daemon.store.pull.rate import Rate
from hxd.daemon.store.pull.refusal import refused
from hxd.daemon.store.pull.tries import Again, Tries

spans = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(spans), spans)
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = Ranges(added)
    there = {at for start, end in added for at in range(start, end)}
    found = list(ranges)
    assert {at for start, end in found for at in range(start, end)} == there
    assert ranges.total == len(there)
    # As short as it can be, and sorted.
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    gaps = ranges.missing(*asked)
    assert [at for start, end in gaps for at in range(start, end)] == [
        at for at in range(*asked) if at not in there
    ]


def test_tries_end_after_six_failures_in_a_row() -> None:
    tries = Tries(Limits(), chance=lambda: 1.0)
    waits = [tries.failed(Again("no"), 5) for _ in range(5)]
    assert waits == [0.5, 1, 2, 4, 8]
    with pytest.raises(SourceFailed, match="no; 6 tries in a row brought nothing"):
        tries.failed(Again("no"), 5)


def test_progress_of_anyone_ends_a_row_of_failures() -> None:
    tries = Tries(Limits(), chance=lambda: 1.0)
    assert {tries.failed(Again("no"), progress) for progress in range(1, 100)} == {0.5}


@pytest.mark.parametrize(("said", "waited"), [(7.0, 7.25), (1e9, 60), (0.0, 0.25), (None, 0.25)])
def test_a_servers_advice_is_a_lower_bound_within_reason(said: float | None, waited: float) -> None:
    assert Tries(Limits(), chance=lambda: 0.5).failed(Again("busy", said), 0) == waited


def test_a_steady_rate_is_found_at_once() -> None:
    rate = Rate()
    assert (rate.speed, rate.left(100)) == (None, None)
    for second in range(4):
        rate.saw(100.0 + second, 1000 * second)
    assert rate.speed == pytest.approx(1000)
    assert rate.left(13_000) == pytest.approx(10)
    assert rate.left(0) is None  # the size is not known
    assert rate.left(10) == 0


def test_a_rate_follows_a_change_and_forgets_what_began_anew() -> None:
    rate = Rate(over=1.0)
    rate.saw(0.0, 0)
    rate.saw(1.0, 1000)
    rate.saw(1.0, 5000)  # no time passed: nothing can be said
    for second in range(2, 20):
        rate.saw(float(second), 1000 + 10 * second)
    assert rate.speed == pytest.approx(10, abs=1)
    rate.saw(20.0, 0)
    assert rate.speed is None


def test_nothing_for_a_while_is_no_division_by_zero() -> None:
    rate = Rate(over=1.0)
    rate.saw(0.0, 0)
    rate.saw(1.0, 0)
    assert (rate.speed, rate.left(10)) == (0.0, None)


ONE = Facts("u", 10, '"one"', "Monday")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ONE, True),
        (Facts("u", 10, '"one"', "Tuesday"), True),
        (Facts("u", 10, '"two"', "Monday"), False),
        (Facts("u", 11, '"one"', "Monday"), False),
        (Facts("v", 10, '"one"', "Monday"), False),
        (Facts("u", 10, None, "Monday"), True),
        (Facts("u", 10, None, "Tuesday"), False),
        (Facts("u", 10), False),
        (Facts("u", None, '"one"'), False),
    ],
)
def test_two_answers_are_about_one_file_only_when_a_validator_says_so(
    other: Facts, same: bool
) -> None:
    assert ONE.same_file(other) is same
    assert other.same_file(ONE) is same


def test_the_hubs_word_counts_more_than_that_of_its_servers() -> None:
    one = Facts("u", 10, '"here"', linked='"x"')
    assert one.same_file(Facts("v", 10, '"there"', linked='"x"'))
    assert not one.same_file(Facts("u", 10, '"here"', linked='"y"'))


def test_a_sha256_holds_together_what_has_no_validator() -> None:
    assert Facts("u", 10, sha256="a").same_file(Facts("u", 10, sha256="a"))
    assert not Facts("u", 10, sha256="a").same_file(Facts("u", 10, sha256="b"))


def test_only_strong_etags_count() -> None:
    assert strong_etag({"ETag": '"a"'}) == '"a"'
    for etag in ('W/"a"', "a", '"a', '"a"b"', "", '"' + "a" * 600 + '"'):
        assert strong_etag({"ETag": etag}) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-9/10", (0, 10, 10)),
        ("bytes 5-5/*", (5, 6, None)),
        ("bytes 9-5/10", None),
        ("bytes */10", None),
        ("items 0-9/10", None),
        ("bytes 0-9/10, bytes 20-29/10", None),
        ("bytes -1-9/10", None),
        ("", None),
    ],
)
def test_a_content_range_is_read_strictly(
    text: str, found: tuple[int, int, int | None] | None
) -> None:
    assert content_range({"Content-Range": text}) == found


def test_a_digest_of_the_server_is_read_in_both_spellings() -> None:
    raw = bytes(range(32))
    text = base64.b64encode(raw).decode()
    for headers in (
        {"Repr-Digest": f"sha-256=:{text}:"},
        {"Digest": f"SHA-256={text}"},
        {"Digest": f"md5=abc, sha-256={text}"},
    ):
        assert stated_sha256(headers) == raw.hex()
    for wrong in ("sha-256=abc", "sha-512=:" + text + ":", "sha-256=" + "=" * 44, ""):
        assert stated_sha256({"Digest": wrong}) is None


@given(st.text())
def test_no_retry_after_breaks_anything(text: str) -> None:
    again = refused(429, {"Retry-After": text}, "u", hub=False, token=False, now=0.0)
    assert isinstance(again, Again)
    assert again.after is None or again.after >= 0


def test_what_the_hub_says_is_shown_in_bounds_and_others_words_are_not() -> None:
    headers = {"X-Error-Message": "x" * 5000}
    assert len(str(refused(403, headers, "u", hub=True, token=True, now=0.0))) < 600
    assert "xx" not in str(refused(403, headers, "u", hub=False, token=True, now=0.0))


START = "https://models.example/a/m.gguf"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?x=%2F#top", "https://models.example/b?x=%2F"),
        ("//cdn.example/b", "https://cdn.example/b"),
        ("https://u:p@cdn.example/b", "https://cdn.example/b"),
        ("/m\udcc3\udca4", "https://models.example/m%C3%A4"),
    ],
)
def test_a_redirect_is_followed_without_users_and_fragments(location: str, target: str) -> None:
    assert redirected(START, location, allow_http=False) == target


@pytest.mark.parametrize(
    "location",
    ["http://models.example/b", "https://localhost/b", "https://127.0.0.1/", "file:///x",
     "https://[::1/", "https://h:x/", "data:,GGUF", "http://127.0.0.1/"],
)  # fmt: skip
@pytest.mark.parametrize("allow_http", [False, True])
def test_a_redirect_to_where_nothing_is_to_be_had_is_not_followed(
    location: str, allow_http: bool
) -> None:
    with pytest.raises(AddressError):
        redirected(START, location, allow_http=allow_http)


@given(st.text(alphabet="htps:/@[]%.a0#?\\ \udc80é").map("//".__add__) | st.text())
def test_no_location_breaks_anything(location: str) -> None:
    try:
        target = redirected(START, location, allow_http=True)
    except AddressError:
        return
    assert target.isascii()
    assert target.startswith("https://")


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://me:pw@h:1/a?sig=x#y") == "https://h:1/a"


GGML = b"tjgg\3\0\0\0"


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("m.gguf", b"GGUF\3", None),
        ("m.GGUF", b"GGUF\3", None),
        ("ggml-m.bin", GGML, None),
        ("m.bin", GGML, None),
        ("m.bin", b"anything", None),
        ("m.gguf", GGML, "no GGUF file"),
        ("ggml-m.bin", b"anything", "no GGML file"),
        ("m.gguf", b"", "nothing"),
        ("m.gguf", b" \n<!DOCTYPE HTML>", "web page"),
        ("m.bin", b"<html>", "web page"),
        ("m.bin", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_the_first_bytes_have_to_go_with_the_name(
    name: str, start: bytes, message: str | None
) -> None:
    if message is None:
        beginning.refuse(name, "u", start, "text/plain")
    else:
        with pytest.raises(SourceFailed, match=message):
            beginning.refuse(name, "u", start, "text/plain")


def test_sizes_are_told_with_three_digits() -> None:
    told = [size_text(size) for size in (0, 999, 1000, 1_500_000, 999_900, 40 * 10**9, 10**16)]
    assert told == ["0 bytes", "999 bytes", "1 kB", "1.5 MB", "1 MB", "40 GB", "1e+04 TB"]

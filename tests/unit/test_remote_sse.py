"""Events out of bytes, however they are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.remote.sse import EventError, Events

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n"
    b"event: message\r\ndata: one\r\n\r\n"
    b"data:two\n\n"
    b"data: three\rdata:  four\r\r"
    b"\n\n\r\n"
    b"id: 7\ndata\ndata: \xc3\xa4\n\n"
    b"retry: 10\n\n"
    b"datum: no\nxdata: no\n\n"
    b"data: last"
)
EVENTS = [b"one", b"two", b"three\n four", b"\n\xc3\xa4"]


def read(*chunks: bytes) -> list[bytes]:
    events = Events()
    return [event for chunk in chunks for event in events.feed(chunk)]


def test_lines_end_with_cr_lf_or_both_and_comments_are_skipped() -> None:
    assert read(STREAM) == EVENTS


def test_every_cut_in_two_gives_the_same_events() -> None:
    for cut in range(len(STREAM) + 1):
        assert read(STREAM[:cut], STREAM[cut:]) == EVENTS


def test_byte_by_byte_gives_the_same_events() -> None:
    assert read(*(STREAM[at : at + 1] for at in range(len(STREAM)))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cuts_give_the_same_events(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[a:b] for a, b in pairwise(places))) == EVENTS


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"))),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_what_is_written_as_events_is_read(texts: list[str], end: str, data: st.DataObject) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    cut = data.draw(st.integers(0, len(stream)))
    assert read(stream[:cut], stream[cut:]) == [text.encode() for text in texts]


@given(st.binary(), st.binary())
def test_no_bytes_raise_anything_below_the_limit(one: bytes, other: bytes) -> None:
    assert read(one, other) == read(one + other)


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 100],
        [b"x" * 60, b"x" * 60],
        [b"data: " + b"x" * 40 + b"\n"] * 3,
        [b"data: x\n"] * 60,
        [b"data\n"] * 110,
    ],
    ids=["one-line", "two-parts", "lines", "short-lines", "empty-lines"],
)
def test_a_line_or_event_over_the_limit_is_refused(chunks: list[bytes]) -> None:
    events = Events(limit=100)
    with pytest.raises(EventError, match="longer than 100 bytes"):
        for chunk in chunks:
            events.feed(chunk)


def test_many_events_below_the_limit_pass() -> None:
    events = Events(limit=100)
    for _ in range(100):
        assert events.feed(b"data: " + b"x" * 80 + b"\n\n") == [b"x" * 80]


def test_an_event_without_its_last_empty_line_is_pending() -> None:
    events = Events()
    assert events.feed(b"data: a\n\ndata: [DO") == [b"a"]
    events.feed(b"NE]")
    assert events.pending == b"[DONE]"
    events.feed(b"\n")
    assert events.pending == b"[DONE]"
    assert events.feed(b"\n") == [b"[DONE]"]
    assert events.pending == b""

"""Vectors out of frames that a worker may have made up, and as a client reads them."""

from __future__ import annotations

import base64
import json
import math
import struct

import pytest

from hxd import wire
from hxd.daemon.request.vectors import FORMATS, Vectors, parts
from hxd.errors import BackendError, CallerError


def pack(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def gathered(*frames: wire.Vectors, count: int, dimensions: int | None = None) -> Vectors:
    vectors = Vectors(count, dimensions)
    for frame in frames:
        vectors.add(frame)
    vectors.check()
    return vectors


TWO = (wire.Vectors(1, 0, 2, pack(0.6, 0.8)), wire.Vectors(1, 1, 2, pack(1, 0, 0, 1)))


def test_frames_join_to_vectors_in_order() -> None:
    assert list(gathered(*TWO, count=3).rows()) == [pack(0.6, 0.8), pack(1, 0), pack(0, 1)]


@pytest.mark.parametrize(
    "frame",
    [
        wire.Vectors(1, 1, 2, pack(1, 2)),
        wire.Vectors(1, 0, 0, b""),
        wire.Vectors(1, 0, 0, pack(1)),
        wire.Vectors(1, 0, -1, pack(1)),
        wire.Vectors(1, 0, 2, pack(1)),
        wire.Vectors(1, 0, 2, b""),
        wire.Vectors(1, 0, 1, pack(1, 2, 3)),
        wire.Tokens(1, [], []),
    ],
)
def test_a_frame_that_does_not_fit_is_the_workers_fault(frame: wire.Vectors) -> None:
    with pytest.raises(BackendError):
        gathered(frame, count=2)


def test_vectors_that_are_missing_or_change_their_size_are_the_workers_fault() -> None:
    with pytest.raises(BackendError):
        gathered(*TWO, count=4)
    with pytest.raises(BackendError):
        gathered(TWO[0], wire.Vectors(1, 1, 1, pack(1)), count=2)


def test_fewer_dimensions_are_the_first_ones_at_length_one() -> None:
    vectors = gathered(wire.Vectors(1, 0, 4, pack(0.3, 0.4, 0.5, 0.7)), count=1, dimensions=2)
    [row] = vectors.rows()
    assert struct.unpack("<2f", row) == pytest.approx((0.6, 0.8))
    assert vectors.floats == 2


def test_a_vector_that_is_zero_where_it_is_kept_stays_so() -> None:
    vectors = gathered(wire.Vectors(1, 0, 3, pack(0, 0, 1)), count=1, dimensions=2)
    assert list(vectors.rows()) == [pack(0, 0)]


def test_more_dimensions_than_there_are_is_the_callers_fault() -> None:
    with pytest.raises(CallerError) as caught:
        gathered(*TWO, count=3, dimensions=3)
    assert (caught.value.param, "3" in caught.value.message) == ("dimensions", True)


@pytest.mark.parametrize("form", FORMATS)
def test_the_answer_is_openais_object(form: str) -> None:
    vectors = gathered(*TWO, count=3)
    answer = json.loads(b"".join(parts(vectors, FORMATS[form], 'a "b"', 9)))
    assert (answer["object"], answer["model"]) == ("list", 'a "b"')
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert {one["object"] for one in answer["data"]} == {"embedding"}
    first = answer["data"][0]["embedding"]
    read = struct.unpack("<2f", base64.b64decode(first)) if form == "base64" else first
    assert list(read) == [struct.unpack("<f", pack(x))[0] for x in (0.6, 0.8)]
    assert math.hypot(*read) == pytest.approx(1)

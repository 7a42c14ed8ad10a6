"""Vectors of two releases are compared by what a search would make of them."""

from __future__ import annotations

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.rollout.likeness import finite, likeness, sound, unpacked

BIG = 2.0**120
numbers = st.floats(-BIG, BIG, width=32)
vectors = st.lists(st.tuples(*[numbers] * 3), min_size=1, max_size=5).filter(sound)


@given(vectors)
def test_a_vector_is_like_itself_whatever_its_length(some: list[tuple[float, ...]]) -> None:
    assert math.isclose(likeness(some, some), 1.0, rel_tol=1e-6)
    turned = [tuple(-number for number in vector) for vector in some]
    assert math.isclose(likeness(some, turned), -1.0, rel_tol=1e-6)


def test_the_mean_counts_and_other_dimensions_are_not_alike_at_all() -> None:
    assert likeness([(1.0, 0.0), (0.0, 2.0)], [(2.0, 0.0), (1.0, 0.0)]) == 0.5
    assert likeness([(1.0, 0.0)], [(1.0, 0.0, 0.0)]) == 0.0
    assert likeness([], []) == 0.0


def test_no_number_and_no_length_are_not_sound() -> None:
    assert not finite([(1.0, math.nan)])
    assert finite([(0.0, 0.0)])
    assert not sound([(1.0,), (0.0,)])
    assert not sound([(math.inf,)])
    assert sound([(0.0, 1e-30)])


def test_rows_are_little_endian_float32() -> None:
    assert unpacked([struct.pack("<2f", 1.5, -2.0)]) == [(1.5, -2.0)]

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd import wire

FRAMES = [
    wire.Generate(id=1, seed=2, messages=[wire.Message("user", "hé")], stop=["x"]),
    wire.Generate(id=1, seed=2, tokens=[1, 2], sampling=wire.Sampling(logit_bias={5: -1.0})),
    wire.Load("m", None, 16, 1, 0, {"a": [1, {"b": None}]}),
    wire.Cancel(7),
    wire.Unload(),
]


def test_frames_come_back_as_they_went() -> None:
    stream = b"".join(map(wire.encode, FRAMES))
    bodies = wire.Splitter(wire.TO_WORKER_LIMIT).feed(stream)
    assert [wire.decode(wire.to_worker, body) for body in bodies] == FRAMES


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 7))
def test_frames_are_found_however_the_stream_is_cut(bodies: list[bytes], size: int) -> None:
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    splitter = wire.Splitter(100)
    found = []
    for at in range(0, len(stream), size):
        found += splitter.feed(stream[at : at + size])
    assert found == bodies


def test_a_length_over_the_limit_is_refused_before_its_body_comes() -> None:
    with pytest.raises(wire.WireError, match="4294967295 bytes"):
        wire.Splitter(wire.TO_DAEMON_LIMIT).feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=200))
def test_bytes_either_decode_to_a_frame_or_raise_wire_error(body: bytes) -> None:
    try:
        frame = wire.decode(wire.to_daemon, body)
    except wire.WireError:
        return
    assert isinstance(frame, wire.Frame)


def test_a_frame_with_an_unknown_field_is_refused() -> None:
    body = msgspec.msgpack.encode({"t": "cancel", "id": 1, "more": 2})
    with pytest.raises(wire.WireError):
        wire.decode(wire.to_worker, body)


def test_a_frame_for_the_other_direction_is_refused() -> None:
    (body,) = wire.Splitter(1000).feed(wire.encode(wire.Unload()))
    with pytest.raises(wire.WireError):
        wire.decode(wire.to_daemon, body)

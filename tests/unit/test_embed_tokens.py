"""Tokenizing in a worker: early on what can't fit, bounded in time, and in frames that fit."""

from __future__ import annotations

from typing import Any

import pytest

from hxd import wire
from hxd.hookspecs import RequestRefused
from hxd.worker import tokens
from hxd.worker.tokens import TooManyTokens, bounded, patient


class Channel:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, frame: wire.Frame) -> None:
        assert len(wire.encode(frame)) <= wire.TO_DAEMON_LIMIT
        self.sent.append(frame)

    def failed(self, id: int, fault: str, message: str, **more: Any) -> None:
        self.sent.append(wire.Failed(id, fault, message, **more))


class Bytes:
    """A tokenizer whose tokens are bytes, of which 256 is none."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        if token > 255:
            raise RequestRefused(f"token {token} is unknown")
        return bytes([token])


def answer(frame: wire.Tokenize | wire.Detokenize) -> list[Any]:
    channel = Channel()
    tokens.answer(channel, Bytes(), frame)  # type: ignore[arg-type]
    return channel.sent


def test_a_text_over_the_limit_is_found_out_by_its_beginning() -> None:
    seen: list[int] = []

    def tokenize(text: str) -> list[int]:
        seen.append(len(text))
        return list(text.encode())

    with pytest.raises(TooManyTokens) as caught:
        bounded(tokenize, "x" * 1_000_000, 512)
    assert caught.value.least > 512
    assert max(seen) < 10_000


def test_a_text_within_the_limit_comes_back_whole() -> None:
    assert bounded(lambda text: list(text.encode()), "héllo" * 90, 1000) == list(
        ("héllo" * 90).encode()
    )


def test_a_text_that_a_tokenizer_is_slow_on_is_refused_before_it_takes_long() -> None:
    clock = [0.0]

    def quadratic(text: str) -> list[int]:
        clock[0] += (len(text) / 100_000) ** 2  # seconds
        return [0]

    with pytest.raises(RequestRefused, match="too long to tokenize"):
        patient(quadratic, "x" * 4_000_000, now=lambda: clock[0])
    assert clock[0] < tokens.MOST_SECONDS


def test_a_long_text_is_no_trouble_for_a_quick_tokenizer() -> None:
    clock = [0.0]

    def linear(text: str) -> list[int]:
        clock[0] += len(text) / 4_000_000
        return [len(text)]

    assert patient(linear, "x" * 4_000_000, now=lambda: clock[0]) == [4_000_000]


def test_tokens_of_a_long_text_come_in_frames_that_the_daemon_takes() -> None:
    text = "a long text " * 30_000
    *parts, done = answer(wire.Tokenize(1, text))
    assert len(parts) > 1
    assert [token for part in parts for token in part.tokens] == list(text.encode())
    assert b"".join(piece for part in parts for piece in part.pieces) == text.encode()
    assert done == wire.Done(1, "stop", len(text), 0)


def test_no_text_has_no_tokens_and_an_answer_all_the_same() -> None:
    assert answer(wire.Tokenize(1, "")) == [wire.Tokens(1, [], []), wire.Done(1, "stop", 0, 0)]
    assert answer(wire.Detokenize(1, [])) == [wire.Done(1, "stop", 0, 0)]


def test_text_comes_back_from_its_tokens_across_frames() -> None:
    text = "né🤗" * 60_000
    *parts, _ = answer(wire.Detokenize(1, list(text.encode())))
    assert len(parts) > 1
    assert "".join(part.deltas[0].text for part in parts) == text


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    part, _ = answer(wire.Detokenize(1, [0x61, 0xFF, 0x62]))
    assert part.deltas[0].text == "a\ufffdb"


def test_a_token_that_there_is_not_is_the_callers_fault() -> None:
    [failed] = answer(wire.Detokenize(1, [300]))
    assert (failed.fault, failed.message) == ("caller", "token 300 is unknown")

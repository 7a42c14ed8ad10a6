"""Text to token ids and back, for both engines; bounded in time whatever the text.

Tokenizers are not linear on every input (llama.cpp's SentencePiece is quadratic in bytes that are
no words: a minute for half a megabyte), so a long text is tried by its beginning first, a longer
one each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from hxd import wire
from hxd.errors import Fault
from hxd.hookspecs import RequestRefused
from hxd.worker.channel import Channel
from hxd.worker.text import TextAssembler

# A cut may split a few characters that would have made one token.
CUT_SLACK = 16
GROWTH = 4
FIRST_LENGTH = 1 << 14  # characters; quick for any tokenizer
MOST_SECONDS = 2.0
FRAME_BYTES = 1 << 19  # half of what the daemon takes
FRAME_CHARACTERS = FRAME_BYTES // 4
_TOKEN_BYTES = 10  # a token id and the length of its piece, in msgpack

Tokenize = Callable[[str], list[int]]


class TooManyTokens(Exception):
    """The text has `least` tokens or more, which is over the limit."""

    def __init__(self, least: int) -> None:
        super().__init__(f"{least} tokens or more")
        self.least = least


class Tokenizer(Protocol):
    """What a backend of either kind has."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def token_bytes(self, token: int, *, special: bool = False) -> bytes: ...


def bounded(tokenize: Tokenize, text: str, limit: int) -> list[int]:
    """Tokens of `text`; raises `TooManyTokens` early when there must be more than `limit`, and may
    return a few more than that."""
    length = max(limit // GROWTH, CUT_SLACK)
    while length < len(text):
        count = len(tokenize(text[:length]))
        if count > limit + CUT_SLACK:
            raise TooManyTokens(count)
        length *= GROWTH
    return tokenize(text)


def patient(tokenize: Tokenize, text: str, now: Callable[[], float] = time.monotonic) -> list[int]:
    """Tokens of `text`, however many; raises `RequestRefused` when they would take too long."""
    length, before = FIRST_LENGTH, 0.0
    while length < len(text):
        started = now()
        tokenize(text[:length])
        took = now() - started
        # What a part four times as long will take: 4 times as much, and 16 times if quadratic.
        factor = min(max(took / before, GROWTH), GROWTH**2) if before > 0 else GROWTH
        if took * factor > MOST_SECONDS:
            raise RequestRefused(
                f"the text of {len(text)} characters would take too long to tokenize; send it in "
                f"parts of at most {length} characters",
                param="content",
            )
        before = took
        length *= GROWTH
    return tokenize(text)


def answer(channel: Channel, tokenizer: Tokenizer, frame: wire.Tokenize | wire.Detokenize) -> None:
    """Sends everything there is to say to one request, its last word included."""
    try:
        frames: Iterator[wire.Frame]
        if isinstance(frame, wire.Tokenize):
            frames, count = _tokenized(tokenizer, frame)
        else:
            frames, count = _detokenized(tokenizer, frame), len(frame.tokens)
        for part in frames:
            channel.send(part)
    except RequestRefused as error:
        channel.failed(frame.id, Fault.CALLER, str(error), param=error.param)
    except OSError:
        raise  # the daemon is gone
    except Exception as error:  # the boundary to a plugin's code: one request fails
        channel.failed(frame.id, Fault.BACKEND, f"{type(error).__name__}: {error}")
    else:
        channel.send(wire.Done(frame.id, "stop", count, 0))


def _tokenized(tokenizer: Tokenizer, frame: wire.Tokenize) -> tuple[Iterator[wire.Tokens], int]:
    def tokenize(text: str) -> list[int]:
        return tokenizer.tokenize(
            text, add_special=frame.add_special, parse_special=frame.parse_special
        )

    tokens = patient(tokenize, frame.text)
    pieces = [tokenizer.token_bytes(token, special=True) for token in tokens]
    return _token_frames(frame.id, tokens, pieces), len(tokens)


def _token_frames(id: int, tokens: list[int], pieces: list[bytes]) -> Iterator[wire.Tokens]:
    """One frame at least, each with room to spare."""
    start = size = 0
    for end, piece in enumerate(pieces):
        if size > FRAME_BYTES:
            yield wire.Tokens(id, tokens[start:end], pieces[start:end])
            start, size = end, 0
        size += len(piece) + _TOKEN_BYTES
    yield wire.Tokens(id, tokens[start:], pieces[start:])


def _detokenized(tokenizer: Tokenizer, frame: wire.Detokenize) -> Iterator[wire.Step]:
    text = joined(tokenizer.token_bytes(token, special=True) for token in frame.tokens)
    for start in range(0, len(text), FRAME_CHARACTERS):
        part = text[start : start + FRAME_CHARACTERS]
        yield wire.Step([wire.Delta(frame.id, [], part)])


def joined(pieces: Iterable[bytes]) -> str:
    """The text that the pieces make; bytes that are no UTF-8 become U+FFFD."""
    assembler = TextAssembler()
    return assembler.feed(b"".join(pieces)) + assembler.finish()

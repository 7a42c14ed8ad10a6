"""Cuts text into the words of a vocabulary, in the four ways that the families have.

The library's own tokenizers are not used: they recurse once per letter of a long word, end the
process on a byte that is no word, and search a text anew for each of its characters. These here
give the same tokens, in time that grows with the text and the logarithm of it at most.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable
from typing import Protocol

from hxd.ggml import Vocabulary

SPACE = "▁".encode()  # SentencePiece's sign for a space

# GPT-2's words, with ASCII's letters and digits, as the library has them for its older families.
_ASCII_WORD = re.compile(
    rb"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
)
# The same with everybody's letters and digits.
_WORD = re.compile(
    r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", re.UNICODE
)


class Cutter(Protocol):
    def cut(self, text: str) -> list[int]:
        """Token ids of a text without control tokens."""
        ...


class Greedy:
    """The longest word that fits, again and again; for GPT-2 and its kin, whose files have lost
    the ranks of the merges. Bytes that are no word are left out."""

    def __init__(self, words: list[bytes]) -> None:
        self._ids = {word: id for id, word in enumerate(words)}
        self._longest = max(map(len, words), default=0)

    def cut(self, text: str) -> list[int]:
        tokens = []
        for match in _ASCII_WORD.finditer(text.encode("utf-8", "replace")):
            word = match[0]
            at = 0
            while at < len(word):
                for end in range(min(len(word), at + self._longest), at, -1):
                    token = self._ids.get(word[at:end])
                    if token is not None:
                        tokens.append(token)
                        at = end
                        break
                else:
                    at += 1
        return tokens


class Merges:
    """Joins the best pair of neighbours until none is left: `rank` says how good a joined piece
    is, the lowest first, or None for a pair that does not join."""

    def __init__(self, rank: Callable[[bytes, bytes], float | None]) -> None:
        self._rank = rank

    def join(self, pieces: list[bytes]) -> list[bytes]:
        before = [at - 1 for at in range(len(pieces))]
        after = [at + 1 for at in range(len(pieces))]
        queue: list[tuple[float, int, bytes, bytes]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < len(pieces):
                rank = self._rank(pieces[left], pieces[right])
                if rank is not None:
                    heapq.heappush(queue, (rank, left, pieces[left], pieces[right]))

        for at in range(1, len(pieces)):
            consider(at - 1, at)
        while queue:
            _, left, first, second = heapq.heappop(queue)
            right = after[left]
            if pieces[left] != first or right >= len(pieces) or pieces[right] != second:
                continue  # one of the two has been joined to another since
            pieces[left] += second
            pieces[right] = b""
            after[left] = after[right]
            if after[left] < len(pieces):
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [piece for piece in pieces if piece]


class SentencePiece:
    """Llama's: pieces join in the order of the joined word's score; a character that is no word
    becomes the tokens of its bytes. `space`: how the words spell one."""

    def __init__(
        self, words: list[bytes], scores: list[float], *, unknown: int, space: str = " "
    ) -> None:
        self._space = space
        self._ids = {word: id for id, word in enumerate(words)}
        self._bytes = [
            self._ids.get(b"<0x%02X>" % byte, self._ids.get(bytes([byte]), unknown))
            for byte in range(256)
        ]
        ids = self._ids

        def rank(left: bytes, right: bytes) -> float | None:
            id = ids.get(left + right)
            return None if id is None else -scores[id]

        self._merges = Merges(rank)

    def cut(self, text: str) -> list[int]:
        tokens: list[int] = []
        text = text.replace(" ", self._space)
        for piece in self._merges.join([one.encode("utf-8", "replace") for one in text]):
            token = self._ids.get(piece)
            tokens += [token] if token is not None else [self._bytes[byte] for byte in piece]
        return tokens


class BytePairs:
    """Falcon's: byte-level BPE. Merges are spelled with a printable character for each byte, words
    are plain bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = {word: id for id, word in enumerate(vocabulary.words)}
        plain = {character: byte for byte, character in enumerate(_printable())}

        def unspell(word: bytes) -> bytes:
            return bytes(plain.get(character, 0) for character in word.decode("utf-8", "replace"))

        ranks: dict[tuple[bytes, bytes], int] = {}
        for left, right in vocabulary.merges:
            ranks.setdefault((unspell(left), unspell(right)), len(ranks))
        self._merges = Merges(lambda left, right: ranks.get((left, right)))

    def cut(self, text: str) -> list[int]:
        tokens: list[int] = []
        for word in _WORD.findall(text):
            data = word.encode("utf-8", "replace")
            for piece in self._merges.join([data[at : at + 1] for at in range(len(data))]):
                token = self._ids.get(piece)
                whole = [token] if token is not None else map(self._ids.get, _single(piece))
                tokens += [id for id in whole if id is not None]
        return tokens


class Unigram:
    """Replit's: of all ways to cut the text, the one whose words have the best scores together."""

    def __init__(self, words: list[bytes], scores: list[float]) -> None:
        self._ids = {word: id for id, word in enumerate(words)}
        self._scores = scores
        self._longest = max(map(len, words), default=0)
        self._worst = min(scores, default=0.0) - 10.0

    def cut(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace").replace(b" ", SPACE)
        # For each place: the best score of a way there, where its last word starts, and which it
        # is. A byte that is no word counts as the unknown one.
        best: list[tuple[float, int, int]] = [(0.0, 0, 0)]
        for end in range(1, len(data) + 1):
            way = (-math.inf, end - 1, 0)
            for start in range(max(0, end - self._longest), end):
                token = self._ids.get(data[start:end])
                if token is not None and best[start][0] + self._scores[token] > way[0]:
                    way = (best[start][0] + self._scores[token], start, token)
            unknown = best[end - 1][0] + self._worst
            best.append(way if way[0] > unknown else (unknown, end - 1, 0))
        tokens = []
        at = len(data)
        while at:
            _, start, token = best[at]
            tokens.append(token)
            at = start
        return tokens[::-1]


def _single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def _printable() -> list[str]:
    """GPT-2's character for each byte: itself if it can be printed, else one from 256 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(spare)) for byte in range(256)]

"""One model's vocabulary: text to token ids, ids to bytes, and which ids end a sequence."""

from __future__ import annotations

import ctypes
import hashlib

import llama_cpp

_CONTROL = 1 << 3
_PIECE_BYTES = 256


class Vocabulary:
    def __init__(self, model: int) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.size
        digest = hashlib.sha256()
        special: dict[str, int] = {}
        ending = []
        for token in range(self.size):
            text = llama_cpp.llama_vocab_get_text(self._vocab, token) or b""
            digest.update(len(text).to_bytes(4, "big") + text)
            if llama_cpp.llama_vocab_get_attr(self._vocab, token) & _CONTROL:
                special.setdefault(text.decode("utf-8", "replace"), token)
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                ending.append(token)
        self.digest = digest.hexdigest()
        special.pop("", None)
        self.special_tokens = special
        self._spelled = {token: text.encode() for text, token in special.items()}
        self.ending = frozenset(ending)
        end = llama_cpp.llama_vocab_eos(self._vocab)
        self.end = end if end >= 0 else min(ending, default=0)
        self.bos = self._text(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos = self._text(llama_cpp.llama_vocab_eos(self._vocab))

    @property
    def infill(self) -> tuple[int, int, int] | None:
        """Ids of the tokens before the prefix, the suffix and the middle, where there are such."""
        prefix = llama_cpp.llama_vocab_fim_pre(self._vocab)
        suffix = llama_cpp.llama_vocab_fim_suf(self._vocab)
        middle = llama_cpp.llama_vocab_fim_mid(self._vocab)
        return (prefix, suffix, middle) if min(prefix, suffix, middle) >= 0 else None

    def pieces(self) -> list[bytes]:
        """The bytes of every token; control tokens are spelled."""
        return [self.piece(token, special=True) for token in range(self.size)]

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; for control tokens b"", or their spelling with `special`."""
        if not 0 <= token < self.size:
            return b""
        if special and token in self._spelled:
            return self._spelled[token]
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

"""From a `Generate` frame to tokens: template, tokenizing, and the check against the context.

Runs in a thread of its own, so that a long prompt delays neither the heartbeat nor a decode step.
"""

from __future__ import annotations

from dataclasses import dataclass

from hxd import hookspecs, wire
from hxd.worker.template import ChatTemplate
from hxd.worker.text import TextAssembler

CUT_SLACK = 16


class Refused(Exception):
    """The request can't be served; `code` is what the client reads."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


@dataclass
class Prepared:
    """A sequence ready to run. `assembler` has seen the tokens of `sequence.produced`."""

    sequence: hookspecs.Sequence
    assembler: TextAssembler
    limit: int
    generated: int = 0


class Preparer:
    def __init__(self, backend: hookspecs.Backend, info: hookspecs.ModelInfo) -> None:
        self._backend = backend
        self._context = info.context
        self._template = ChatTemplate(
            info.chat_template, bos=info.bos, eos=info.eos, special_texts=info.special_tokens
        )
        self._bos = info.bos

    def prepare(self, request: wire.Generate) -> Prepared:
        """Raises `Refused` when the client is at fault."""
        prompt = self._tokens(request)
        if not prompt:
            raise Refused("the prompt is empty", param=_param(request))
        if len(prompt) >= self._context:
            raise self._too_long(f"{len(prompt)} tokens", len(prompt), request)
        assembler = TextAssembler(request.stop)
        for token in request.resume:
            assembler.feed(self._backend.token_bytes(token))
        room = self._context - len(prompt)
        return Prepared(
            hookspecs.Sequence(request.id, prompt, request.seed, request.sampling, request.resume),
            assembler,
            room if request.max_tokens is None else min(room, request.max_tokens),
            generated=len(request.resume),
        )

    def _too_long(self, has: str, tokens: int, request: wire.Generate) -> Refused:
        return Refused(
            f"The prompt has {has}, and the context of this model is {self._context} tokens, "
            "prompt and answer together: shorten the prompt by at least "
            f"{tokens - self._context + 1} tokens.",
            code="context_length_exceeded",
            param=_param(request),
        )

    def _tokens(self, request: wire.Generate) -> list[int]:
        if request.tokens is not None:
            return request.tokens
        if request.text is not None:
            # Raw text is the model's own input: people write templates by hand here.
            return self._tokenize(request.text, request, add_special=True)
        first, *rest = self._template.render(request.messages or [])
        # A template that spells out the start token must not get a second one.
        starts = bool(self._bos) and first.startswith(self._bos)
        tokens = self._tokenize(first, request, add_special=not starts)
        for piece in rest:
            tokens += self._tokenize(piece, request, add_special=False)
            if len(tokens) >= self._context + CUT_SLACK:
                raise self._too_long(f"over {len(tokens)} tokens", len(tokens), request)
        return tokens

    def _tokenize(self, text: str, request: wire.Generate, *, add_special: bool) -> list[int]:
        """Tokens of `text`; gives up early on what can't fit.

        Tokenizers are not linear on every input (llama.cpp's SentencePiece is quadratic in bytes
        that are no words: a minute for half a megabyte), so a long text is tried by its beginning
        first, a longer one each time.
        """
        length = self._context // 4
        while length < len(text):
            tokens = self._backend.tokenize(
                text[:length], add_special=add_special, parse_special=True
            )
            # The cut may have split a few characters that would have made one token.
            if len(tokens) >= self._context + CUT_SLACK:
                raise self._too_long(f"over {len(tokens)} tokens", len(tokens), request)
            length *= 4
        return self._backend.tokenize(text, add_special=add_special, parse_special=True)


def _param(request: wire.Generate) -> str:
    return "prompt" if request.messages is None else "messages"

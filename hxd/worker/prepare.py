"""From a `Generate` frame to tokens: template, tokenizing, and the check against the context.

Runs in a thread of its own, so that a long prompt delays neither the heartbeat nor a decode step.
"""

from __future__ import annotations

from dataclasses import dataclass

from hxd import hookspecs, wire
from hxd.worker.template import ChatTemplate
from hxd.worker.text import TextAssembler


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
            info.chat_template, bos=info.bos, eos=info.eos, special_texts=info.special_texts
        )
        self._bos = info.bos

    def prepare(self, request: wire.Generate) -> Prepared:
        """Raises `Refused` when the client is at fault."""
        prompt = self._tokens(request)
        if not prompt:
            raise Refused("the prompt is empty", param="prompt")
        if len(prompt) >= self._context:
            raise Refused(
                f"The prompt has {len(prompt)} tokens, and the context of this model is "
                f"{self._context} tokens, prompt and answer together: shorten the prompt by at "
                f"least {len(prompt) - self._context + 1} tokens.",
                code="context_length_exceeded",
                param="prompt" if request.messages is None else "messages",
            )
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

    def _tokens(self, request: wire.Generate) -> list[int]:
        if request.tokens is not None:
            return request.tokens
        if request.text is not None:
            return self._backend.tokenize(request.text, add_special=True, parse_special=False)
        first, *rest = self._template.render(request.messages or [])
        # A template that spells out the start token must not get a second one.
        starts = bool(self._bos) and first.startswith(self._bos)
        tokens = self._backend.tokenize(first, add_special=not starts, parse_special=True)
        for piece in rest:
            tokens += self._backend.tokenize(piece, add_special=False, parse_special=True)
        return tokens

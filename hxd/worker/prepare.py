"""From a `Generate` frame to tokens: template, tokenizing, and the check against the context.

Runs in a thread of its own, so that a long prompt delays neither the heartbeat nor a decode step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hxd import hookspecs, wire
from hxd.worker import tokens
from hxd.worker.output import Output
from hxd.worker.template import ChatTemplate
from hxd.worker.tools import constraint as tool_constraint
from hxd.worker.tools.family import detect
from hxd.worker.tools.parse import Parser
from hxd.worker.tools.schema import check_schema, check_tools


class Refused(Exception):
    """The request can't be served; `code` is what the client reads."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.param = message, code, param


@dataclass
class Prepared:
    """A sequence ready to run. `output` has seen the tokens of `sequence.produced`. `echo` is what
    the answer begins with, before anything is generated. `constraint` is still to be compiled, and
    then that of `sequence`."""

    sequence: hookspecs.Sequence
    output: Output
    limit: int
    generated: int = 0
    echo: str = ""
    cached: int = 0
    constraint: wire.Constraint | None = None


class Preparer:
    def __init__(self, backend: hookspecs.Backend, info: hookspecs.ModelInfo) -> None:
        self._backend = backend
        self._info = info
        self._context = info.context
        self._family = detect(info.tool_template or info.chat_template, info.special_tokens)
        self._template = ChatTemplate(
            info.chat_template,
            bos=info.bos,
            eos=info.eos,
            special_texts=info.special_tokens,
            tool_template=info.tool_template,
            family=self._family,
        )
        self._markers = frozenset(
            info.special_tokens[marker]
            for marker in self._family.markers
            if marker in info.special_tokens
        )
        self._bos = info.bos

    def prepare(self, request: wire.Generate) -> Prepared:
        """Raises `Refused` or `RequestRefused` when the client is at fault."""
        self._check(request)
        prompt = self._tokens(request)
        if not prompt:
            raise Refused("the prompt is empty", param=_param(request))
        if len(prompt) >= self._context:
            raise self._too_long(f"{len(prompt)} tokens", len(prompt), request)
        output = self._output(request)
        for token in request.resume:
            output.feed(token)
        output.take()
        room = self._context - len(prompt)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        sequence = hookspecs.Sequence(
            id=request.id,
            prompt=prompt,
            seed=request.seed,
            sampling=request.sampling,
            produced=request.resume,
            limit=limit,
            logprobs=request.logprobs,
            prompt_logprobs=request.echo and request.logprobs is not None and not request.resume,
            cache=request.cache,
        )
        return Prepared(
            sequence,
            output,
            limit,
            generated=len(request.resume),
            echo=self._echo(request, prompt) if request.echo and not request.resume else "",
            constraint=self._constraint(request),
        )

    def _check(self, request: wire.Generate) -> None:
        able = self._info.capabilities
        if request.logprobs is not None and "logprobs" not in able:
            raise _unable("logprobs", "this model's backend does not report logprobs")
        if request.constraint is not None and "constrain" not in able:
            param, _, _ = request.constraint.param.partition(".")
            raise _unable(param, "this model's backend can't hold an answer to a grammar")
        if request.tools is not None:
            check_tools(request.tools)
            forced = request.tools.choice == "required" or request.tools.named
            if forced and "constrain" not in able:
                raise _unable("tool_choice", "this model's backend can't be made to call a tool")

    def _output(self, request: wire.Generate) -> Output:
        tools = request.tools
        if tools is None or (tools.choice == "none" and not tools.named):
            return Output(self._backend.token_bytes, request.stop, None)
        return Output(self._spell_markers, request.stop, Parser(self._family, tools, request.seed))

    def _spell_markers(self, token: int) -> bytes:
        """As text, but with the control tokens that begin and end a tool call spelled out."""
        return self._backend.token_bytes(token, special=token in self._markers)

    def _constraint(self, request: wire.Generate) -> wire.Constraint | None:
        asked = request.constraint
        if asked is not None and asked.kind == "json_schema":
            check_schema(asked.text, asked.param)
        if asked is None and request.tools is not None and "constrain" in self._info.capabilities:
            asked = tool_constraint.constraint(
                self._family, request.tools, self._info.special_tokens
            )
            if asked is not None:
                asked.param = "tools"
        return asked

    def _echo(self, request: wire.Generate, prompt: list[int]) -> str:
        if request.text is not None:
            return request.text
        spelled = b"".join(self._backend.token_bytes(token) for token in prompt)
        return spelled.decode("utf-8", "replace")

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
        tokenize = partial(self._tokenize, request)
        if request.suffix is not None:
            return self._infill(request.text or "", request.suffix, tokenize)
        if request.text is not None:
            # Raw text is the model's own input: people write templates by hand here.
            return tokenize(request.text, add_special=True)
        first, *rest = self._template.render(
            request.messages or [], tools=request.tools, values=request.template
        )
        # A template that spells out the start token must not get a second one.
        starts = bool(self._bos) and first.startswith(self._bos)
        ids = tokenize(first, add_special=not starts)
        for piece in rest:
            ids += tokenize(piece, add_special=False)
            if len(ids) >= self._context + tokens.CUT_SLACK:
                raise self._too_long(f"over {len(ids)} tokens", len(ids), request)
        return ids

    def _infill(self, prefix: str, suffix: str, tokenize: Callable[..., list[int]]) -> list[int]:
        if self._info.infill is None:
            raise _unable("suffix", "this model has no tokens for filling in")
        before, behind, middle = self._info.infill
        start = self._backend.tokenize("", add_special=True, parse_special=False)
        return [
            *start,
            before,
            *tokenize(prefix, add_special=False, parse_special=False),
            behind,
            *tokenize(suffix, add_special=False, parse_special=False),
            middle,
        ]

    def _tokenize(
        self, request: wire.Generate, text: str, *, add_special: bool, parse_special: bool = True
    ) -> list[int]:
        """Tokens of `text`; gives up early on what can't fit."""
        tokenize = partial(
            self._backend.tokenize, add_special=add_special, parse_special=parse_special
        )
        try:
            return tokens.bounded(tokenize, text, self._context)
        except tokens.TooManyTokens as error:
            raise self._too_long(f"over {error.least} tokens", error.least, request) from None


def _unable(param: str, message: str) -> Refused:
    return Refused(f"{param}: {message}", code="unsupported_parameter", param=param)


def _param(request: wire.Generate) -> str:
    return "prompt" if request.messages is None else "messages"

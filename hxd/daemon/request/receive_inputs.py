"""From a request's bytes to inputs: of embeddings, of rankings, of tokenizing and back."""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import Annotated, TypeVar

import msgspec

from hxd.daemon.request import body as body_text
from hxd.errors import CallerError

MAX_INPUTS = 2048  # in one call, as OpenAI has it
MAX_TOKENS = 300_000  # the same; the worker counts those of texts
MAX_DIMENSIONS = 1 << 20

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Input = str | list[int]


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Entry(msgspec.Struct):
    """An input as llama.cpp's server takes it besides: a text under a name, or in parts."""

    prompt_string: str | None = None
    content: list[Part] | None = None


class EmbeddingsRequest(msgspec.Struct):
    input: str | Entry | list[TokenId | str | list[TokenId] | Entry]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class Document(msgspec.Struct):
    text: str


class RerankRequest(msgspec.Struct):
    """`texts` and `return_text` are Text Embeddings Inference's words for `documents` and
    `return_documents`, and ask for its shape of answer."""

    query: str
    model: str | None = None
    documents: list[str | Document] | None = None
    texts: list[str] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    return_text: bool | None = None


class TokenizeRequest(msgspec.Struct):
    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(msgspec.Struct):
    tokens: list[TokenId]
    model: str | None = None


R = TypeVar("R")
_embeddings = msgspec.json.Decoder(EmbeddingsRequest)
_rerank = msgspec.json.Decoder(RerankRequest)
_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


def _decode(decoder: msgspec.json.Decoder[R], body: bytes) -> R:
    """Raises `CallerError`, whose `param` is the field alone: an input may hold thousands."""
    try:
        return body_text.decode(decoder, body)
    except CallerError as error:
        error.param = re.split(r"[.\[]", error.param)[0] if error.param else None
        raise


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    request = _decode(_embeddings, body)
    if request.encoding_format not in (None, "float", "base64"):
        raise CallerError(
            f"encoding_format: {request.encoding_format[:100]!r} is not one of float, base64",
            param="encoding_format",
        )
    _between("dimensions", request.dimensions, 1, MAX_DIMENSIONS)
    return request


def inputs(request: EmbeddingsRequest) -> list[Input]:
    """The inputs, from one of the shapes that they may have: a text, token ids, or a list of
    texts and of lists of token ids."""
    given = request.input
    if not isinstance(given, list):
        return [given if isinstance(given, str) else _text(given, "input")]
    if not given:
        raise CallerError("input: must not be empty", param="input")
    if isinstance(given[0], int):
        _count(given, "input")
        tokens = [item for item in given if isinstance(item, int)]
        if len(tokens) < len(given):
            raise CallerError(
                "input: a list that begins with a token id must hold nothing else", param="input"
            )
        return [tokens]
    if len(given) > MAX_INPUTS:
        raise CallerError(
            f"input: {len(given)} inputs; the limit is {MAX_INPUTS} in one call", param="input"
        )
    return [_one(item, f"input[{i}]") for i, item in enumerate(given)]


def _one(item: int | str | list[int] | Entry, where: str) -> Input:
    if isinstance(item, int):
        raise CallerError(f"{where}: expected a string or a list of token ids", param="input")
    if isinstance(item, Entry):
        return _text(item, where)
    if isinstance(item, list):
        _count(item, where)
    return item


def _count(tokens: Sized, where: str) -> None:
    if not tokens:
        raise CallerError(f"{where}: must not be empty", param="input")
    if len(tokens) > MAX_TOKENS:
        raise CallerError(
            f"{where}: {len(tokens)} token ids; the limit is {MAX_TOKENS} in one call",
            param="input",
            code="too_many_tokens",
        )


def _text(entry: Entry, where: str) -> str:
    if entry.prompt_string is not None:
        return entry.prompt_string
    if entry.content is None:
        raise CallerError(f"{where}: needs prompt_string or content", param="input")
    texts = []
    for i, part in enumerate(entry.content):
        if part.type not in ("text", "input_text") or part.text is None:
            raise CallerError(
                f"{where}.content[{i}]: only parts of type text, with a text, are supported",
                param="input",
                code="unsupported_parameter",
            )
        texts.append(part.text)
    return "".join(texts)


def parse_rerank(body: bytes) -> RerankRequest:
    request = _decode(_rerank, body)
    count = len(documents(request))
    if not count:
        raise CallerError("documents: at least one is needed", param="documents")
    if count > MAX_INPUTS:
        raise CallerError(
            f"documents: {count} documents; the limit is {MAX_INPUTS} in one call",
            param="documents",
        )
    if request.top_n is not None and request.top_n < 1:
        raise CallerError(f"top_n: {request.top_n} is not at least 1", param="top_n")
    return request


def documents(request: RerankRequest) -> list[str]:
    if request.documents is None:
        return request.texts or []
    return [one if isinstance(one, str) else one.text for one in request.documents]


def parse_tokenize(body: bytes) -> TokenizeRequest:
    request = _decode(_tokenize, body)
    if request.content is None and request.prompt is None:
        raise CallerError("content: this field is required", param="content")
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    return _decode(_detokenize, body)


def _between(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise CallerError(f"{name}: {value} is not between {low} and {high}", param=name)

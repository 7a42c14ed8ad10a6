"""Answers held to JSON, to a schema or to a grammar keep to it, whatever the model would say."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, Literal

import aiohttp
import openai
import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from tests.support import Daemon, chat, get, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANIMAL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["cat", "dog"]},
        "big": {"type": "boolean"},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
    },
    "required": ["name", "big", "legs"],
    "additionalProperties": False,
}
PROMPTS = ["What is 2 + 3?", "Tell me a story about a dog named Max.", "hi", "{"]


class Size(Enum):
    small = "small"
    big = "big"


class Pet(BaseModel):
    name: Literal["cat", "dog"]
    size: Size
    legs: list[Literal[1, 2, 3, 4]] = Field(max_length=3)
    mother: Pet | None


@pytest_asyncio.fixture(loop_scope="session")
async def client(shared: Daemon) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=shared.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


async def said(shared: Daemon, prompt: str = PROMPTS[0], **settings: Any) -> tuple[str, str]:
    """Text and finish reason of a chat answer."""
    body = chat("hxd-demo", prompt, **({"temperature": 0, "max_tokens": 200} | settings))
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 200, answer
    [choice] = answer["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def schema(given: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": given}}


def assert_animal(text: str) -> None:
    given = json.loads(text)
    assert given.keys() == {"name", "big", "legs"}
    assert given["name"] in ("cat", "dog")
    assert type(given["big"]) is bool
    assert type(given["legs"]) is int
    assert 0 <= given["legs"] <= 8


@pytest.mark.parametrize("temperature", [0, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_an_answer_fits_its_schema(shared: Daemon, prompt: str, temperature: float) -> None:
    settings = {"response_format": schema(ANIMAL), "temperature": temperature, "seed": 5}
    text, finish = await said(shared, prompt, **settings)
    assert finish == "stop"
    assert_animal(text)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_json_object_parses_unless_it_was_cut(
    shared: Daemon, prompt: str, temperature: float
) -> None:
    settings = {"response_format": {"type": "json_object"}, "temperature": temperature, "seed": 1}
    text, finish = await said(shared, prompt, **settings)
    assert text.lstrip().startswith("{")
    if finish != "length":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": schema(ANIMAL)},
        {"response_format": {"type": "json_schema", "schema": ANIMAL}},
        {"response_format": {"type": "json_object", "schema": ANIMAL}},
        {"json_schema": ANIMAL},
    ],
    ids=["openai", "flat", "llama.cpp object", "llama.cpp field"],
)
async def test_every_way_to_send_a_schema_means_the_same(
    shared: Daemon, field: dict[str, Any]
) -> None:
    assert await said(shared, **field) == await said(shared, response_format=schema(ANIMAL))


async def test_a_text_completion_is_held_too(shared: Daemon) -> None:
    body = {"model": "hxd-demo", "prompt": "An animal:", "max_tokens": 200, "temperature": 0}
    for field in ({"json_schema": ANIMAL}, {"response_format": schema(ANIMAL)}):
        _, answer, _ = await post(shared.url + "/v1/completions", body | field)
        assert_animal(answer["choices"][0]["text"])


async def test_a_stream_of_json_joins_to_the_whole_answer(client: AsyncOpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "hxd-demo",
        "messages": [{"role": "user", "content": PROMPTS[1]}],
        "response_format": schema(ANIMAL),
        "temperature": 0,
    }
    whole = await client.chat.completions.create(**settings)
    stream = await client.chat.completions.create(**settings, stream=True)
    joined = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert joined == whole.choices[0].message.content
    assert_animal(joined)


async def test_the_client_parses_answers_into_pydantic_models(client: AsyncOpenAI) -> None:
    for prompt in PROMPTS[:3]:
        parsed = await client.chat.completions.parse(
            model="hxd-demo",
            messages=[{"role": "user", "content": prompt}],
            response_format=Pet,
            temperature=0,
            max_tokens=400,
        )
        assert isinstance(parsed.choices[0].message.parsed, Pet)


async def test_the_client_streams_into_pydantic_models(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="hxd-demo",
        messages=[{"role": "user", "content": PROMPTS[0]}],
        response_format=Pet,
        temperature=0,
    ) as stream:
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Pet)


async def test_what_was_cut_off_is_no_answer_to_the_client(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(
            model="hxd-demo",
            messages=[{"role": "user", "content": "hi"}],
            response_format=Pet,
            max_tokens=5,
        )


@pytest.mark.parametrize(
    ("grammar", "expression"),
    [
        ('root ::= ("yes" | "no") "."', r"(yes|no)\."),
        ('root ::= [a-c]{3} "é" [0-9]{1,3} "!"', "[a-c]{3}é[0-9]{1,3}!"),
        ('root ::= ("(" root ")") | "x"', r"(\()*x(\))*"),
        ('root ::= word (" " word){2} "."\nword ::= [a-z]{1,5}', r"[a-z]+ [a-z]+ [a-z]+\."),
    ],
)
async def test_an_answer_fits_its_grammar(shared: Daemon, grammar: str, expression: str) -> None:
    for temperature in (0, 1):
        text, finish = await said(shared, grammar=grammar, temperature=temperature, seed=2)
        assert finish == "stop"
        assert re.fullmatch(expression, text)


async def test_a_grammar_ends_an_answer_that_would_go_on(shared: Daemon) -> None:
    assert await said(shared, grammar='root ::= "ab"', ignore_eos=True) == ("ab", "stop")


async def test_choices_of_one_request_are_held_one_by_one(shared: Daemon) -> None:
    body = chat("hxd-demo", "hi", n=4, seed=1, json_schema=ANIMAL, max_tokens=200)
    _, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    for choice in answer["choices"]:
        assert_animal(choice["message"]["content"])


async def test_a_stop_string_ends_a_held_answer(shared: Daemon) -> None:
    text, finish = await said(shared, json_schema=ANIMAL, stop='"big"')
    assert finish == "stop"
    assert text.strip().startswith("{")
    assert "big" not in text


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema",
        ),
        (
            {"response_format": schema({"type": "nonsense"})},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": {"type": 5}}},
         "response_format.schema"),
        ({"response_format": schema([])}, "response_format.json_schema.schema"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"json_schema": {"not": {}}}, "json_schema"),
        ({"json_schema": {"enum": []}}, "json_schema"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema"),
        ({"json_schema": {"$ref": "https://example.com/x"}}, "json_schema"),
        ({"json_schema": {"minimum": 10**30}}, "json_schema"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"json_schema": {}, "grammar": 'root ::= "a"'}, "grammar"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        ({"grammar": "root := a"}, "grammar"),
        ({"grammar": 'start: "a"'}, "grammar"),
        ({"grammar": 'foo ::= "a"'}, "grammar"),
        ({"grammar": 5}, "grammar"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
async def test_a_wrong_constraint_is_refused_by_its_path(
    shared: Daemon, field: dict[str, Any], param: str
) -> None:
    body = chat("hxd-demo", "hi", **field)
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert (
        answer["error"]["message"].startswith(param) or "can't both" in answer["error"]["message"]
    )


def nested(levels: int, *, by: str = "items") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {by: found}
    return found


def referring(levels: int) -> dict[str, Any]:
    inner = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(levels)}
    return {"$defs": {**inner, f"a{levels}": {}}, "$ref": "#/$defs/a0"}


HOSTILE: dict[str, dict[str, Any]] = {
    "circle": {"json_schema": {"$ref": "#"}},
    "circles": {"json_schema": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                                "$ref": "#/$defs/a"}},
    "500 levels": {"json_schema": nested(500)},
    "500 unions": {"json_schema": nested(500, by="not")},
    "10000 properties": {"json_schema": {"properties": {f"p{i}": {} for i in range(10_000)}}},
    "3000 optional properties": {"json_schema": {
        "type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(3_000)}}},
    "100000 cases": {"json_schema": {"enum": list(range(100_000))}},
    "900 kB": {"json_schema": {"enum": ["x" * 900_000]}},
    "pattern of groups": {"json_schema": {"type": "string", "pattern": "(" * 60_000}},
    "remainders": {"json_schema": {"type": "integer", "multipleOf": 123456789}},
    "intersections": {"json_schema": {
        "allOf": [{"type": "string", "pattern": f"a.*b{i}"} for i in range(50)]}},
    "pairs": {"json_schema": {"patternProperties": {f"^p{i}$": {} for i in range(1_000)}}},
    "groups": {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
    "hidden groups": {"grammar": "#" + ")" * 60_000 + "\nroot ::= " + "(" * 60_000 + '"a"'},
    "stars": {"grammar": 'root ::= "a"' + "*" * 60_000},
    "doubling": {"grammar": "root ::= r0\n" + "\n".join(
        f"r{i} ::= r{i + 1} r{i + 1}" for i in range(60)) + '\nr60 ::= "a"'},
    "chain of 5000": {"grammar": "root ::= r0\n" + "\n".join(
        f'r{i} ::= r{i + 1} "x"' for i in range(5_000)) + '\nr5000 ::= "x"'},
    "many repeats": {"grammar": 'root ::= ("a"{1000}){1000}'},
    "megabyte": {"grammar": "x" * 1_000_000},
    "unit circle": {"grammar": "root ::= x\nx ::= x"},
}  # fmt: skip
# Legal, and once enough to end a worker.
HARMLESS: dict[str, dict[str, Any]] = {
    "chain of 2000 references": {"json_schema": referring(2_000)},
    "chain of 3500": {"grammar": "root ::= r0\n" + "\n".join(
        f'r{i} ::= r{i + 1} "x"' for i in range(3_500)) + '\nr3500 ::= "x"'},
    "large pattern": {"json_schema": {"type": "string", "pattern": "(a{1000}){1000}"}},
    "9000 cases": {"json_schema": {"enum": [f"value {i}" for i in range(9_000)]}},
    "star of stars": {"grammar": 'root ::= ("a"*)*'},
    "left recursion": {"grammar": 'root ::= root "a" | "a"'},
    "no text at all": {"grammar": 'root ::= ""'},
}  # fmt: skip


async def pids(shared: Daemon) -> dict[str, int]:
    _, replicas = await get(shared.url + "/admin/v1/replicas")
    return {row["replica"]: row["pid"] for row in replicas}  # type: ignore[call-overload,index]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_constraint_is_refused_in_time_and_harms_nobody(
    shared: Daemon, name: str
) -> None:
    before = await pids(shared)
    started = time.monotonic()
    body = chat("hxd-demo", "hi", max_tokens=4, **HOSTILE[name])
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 400, answer
    # Twice what the slowest takes on two busy cores.
    assert time.monotonic() - started < 5
    [field] = HOSTILE[name]
    assert answer["error"]["param"].split(".")[0] == field
    assert len(answer["error"]["message"]) < 1000
    assert await pids(shared) == before


@pytest.mark.parametrize("name", HARMLESS)
async def test_a_strange_constraint_is_kept_and_harms_nobody(shared: Daemon, name: str) -> None:
    before = await pids(shared)
    body = chat("hxd-demo", "hi", max_tokens=4, **HARMLESS[name])
    status, answer, _ = await post(shared.url + "/v1/chat/completions", body)
    assert status == 200, answer
    assert await pids(shared) == before


@pytest.mark.parametrize("stream", [False, True])
async def test_a_constraint_that_turns_out_too_complex_on_the_way_is_the_callers_fault(
    shared: Daemon, stream: bool
) -> None:
    optional = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1_200)}}
    hidden = {"type": "array", "prefixItems": [{"const": "x" * 20}, optional], "minItems": 2}
    body = chat("hxd-demo", "hi", json_schema=hidden, stream=stream)
    async with (
        aiohttp.ClientSession() as session,
        session.post(shared.url + "/v1/chat/completions", json=body) as response,
    ):
        text = await response.text()
    # A stream has begun by then; its status can't change.
    assert response.status == (200 if stream else 400)
    [error] = re.findall(r'\{"error":.*\}', text)
    assert json.loads(error)["error"]["param"] == "json_schema"
    assert json.loads(error)["error"]["type"] == "invalid_request_error"


async def test_answers_go_on_while_a_grammar_is_found_too_complex(shared: Daemon) -> None:
    url = shared.url + "/v1/chat/completions"
    # Fits no limit that could be checked before, and takes the engine many seconds.
    slow = chat("hxd-demo", "hi", grammar="root ::= " + '("a"|"b"|root)* ' * 4_000)
    refused = asyncio.create_task(post(url, slow))
    answers = []
    while not refused.done():
        _, answer, _ = await post(url, chat("hxd-demo", "What is 2 + 3?", temperature=0))
        answers.append(answer["choices"][0]["message"]["content"])
    status, answer, _ = await refused
    assert (status, answer["error"]["param"]) == (400, "grammar")
    # On both replicas in turn, none of which waits for the two seconds of a compilation.
    assert set(answers) == {"5"}
    assert len(answers) > 10


async def test_300_different_schemas_leave_no_memory_in_the_worker(shared: Daemon) -> None:
    async def grow(start: int) -> int:
        for i in range(start, start + 150):
            given = {
                "type": "object",
                "properties": {f"a{i}": {"enum": [f"{i} {j}" for j in range(20)]}},
            }
            await said(shared, json_schema=given, max_tokens=1)
        workers = [pid for name, pid in (await pids(shared)).items() if "demo" in name]
        return sum(psutil.Process(pid).memory_info().rss for pid in workers)

    before = await grow(0)
    # 10⁴ of them may take 64 MiB at most, in two workers.
    assert await grow(150) - before < 150 * (128 << 20) / 10_000

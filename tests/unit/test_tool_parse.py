import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxd.wire import Tool, Tools
from hxd.worker.tools.body import MAX_HELD
from hxd.worker.tools.family import (
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    PHI,
    Family,
)
from hxd.worker.tools.ids import call_id
from hxd.worker.tools.parse import Parser

TOOLS = Tools([Tool("get_weather"), Tool("now")])
MISTRAL_IDS = replace(MISTRAL_NAMED, call_ids=True)
FAMILIES = [GENERIC, HERMES, LLAMA3, MISTRAL, MISTRAL_IDS, PHI, GRANITE]
ARGUMENTS = r'{"city": "Pa\"}ris \u00e9", "n": [1, -2.5e3, {"a": null}], "b": true}'

Made = list[tuple[str, str]]


def parse(
    family: Family, pieces: list[str], tools: Tools = TOOLS, seed: int = 1
) -> tuple[str, Made]:
    """Joined text and calls; checks that parts come in order and ids with the first one."""
    parser = Parser(family, tools, seed)
    text, calls = "", []
    for piece in [*pieces, None]:
        parsed = parser.finish() if piece is None else parser.feed(piece)
        text += parsed.text
        for delta in parsed.calls:
            if delta.id is None:
                assert delta.index == len(calls) - 1 and delta.name is None and delta.arguments
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + delta.arguments)
            else:
                assert delta.index == len(calls) and delta.arguments == ""
                assert delta.id == call_id(seed, delta.index, short=family.short_ids)
                assert delta.name is not None
                calls.append((delta.name, ""))
    assert parser.called == bool(calls)
    return text, calls


def one(family: Family, text: str) -> tuple[str, Made]:
    whole = parse(family, [text])
    assert parse(family, list(text)) == whole
    return whole


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>\n'
         '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        (HERMES, '<tool_call>{"arguments":%s,"name":"get_weather"}</tool_call>\n\n'
         '<tool_call>{"name":"now"}</tool_call>\n'),
        (LLAMA3, '{"name": "get_weather", "parameters": %s}; {"name": "now", "parameters": {}}'),
        (LLAMA3, '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": %s}\n'
         '{"name": "now"}'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": %s, "id": "abcdefghi"}, '
         '{"name": "now", "arguments": {}, "id": "123456789"}]'),
        (MISTRAL_IDS, "[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]%s[TOOL_CALLS]now[ARGS]{}"),
        (MISTRAL_NAMED, "[TOOL_CALLS]get_weather[ARGS] %s\n[TOOL_CALLS]now{}"),
        (MISTRAL_NAMED, '[TOOL_CALLS][{"name": "get_weather", "arguments": %s}, {"name": "now"}]'),
        (PHI, '<|tool_call|>[{"name": "get_weather", "arguments": %s}, {"name": "now", '
         '"arguments": {}}]<|/tool_call|>'),
        (GRANITE, '<|tool_call|>[{"name": "get_weather", "arguments": %s}, {"name": "now"}]'),
        (GENERIC, '{"tool_calls": [{"name": "get_weather", "arguments": %s}, {"name": "now", '
         '"arguments": {}}]}'),
        (GENERIC, '{"name": "get_weather", "arguments": %s}\n{"name": "now"}'),
    ],
)  # fmt: skip
def test_calls_are_found_with_their_arguments_as_written(family: Family, answer: str) -> None:
    text, calls = one(family, answer % ARGUMENTS)
    assert text == ""
    assert calls == [("get_weather", ARGUMENTS), ("now", "{}")]
    json.loads(calls[0][1])


def test_text_before_between_and_after_calls_is_content() -> None:
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert one(HERMES, f"Well,\n{call} and\n\n{call}\n.") == ("Well,and.", [("now", "{}")] * 2)


@pytest.mark.parametrize("family", [GENERIC, LLAMA3, HERMES], ids=lambda family: family.name)
def test_a_call_is_found_behind_a_thought(family: Family) -> None:
    call = '{"name": "now", "arguments": {}}'
    if family is HERMES:
        call = f"<tool_call>\n{call}\n</tool_call>"
    thought = "<think>\nA {call}? {\n</think>"
    assert one(family, f"{thought}\n\n{call}") == (thought, [("now", "{}")])


def test_arguments_come_as_they_are_written() -> None:
    parser = Parser(HERMES, TOOLS, 1)
    assert parser.feed('<tool_call>\n{"name": "now", "argum').calls == []
    first = parser.feed('ents": {"a"')
    assert [(delta.name, delta.arguments) for delta in first.calls] == [("now", ""), (None, '{"a"')]
    assert parser.feed(': "x}').calls[0].arguments == ': "x}'
    assert parser.feed('y"}').calls[0].arguments == 'y"}'
    assert parser.feed("}\n</tool_call>").calls == []


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        (HERMES, '<tool_call>{"name": "nothing", "arguments": {}}</tool_call>'),
        (HERMES, "<tool_call>get_weather</tool_call>"),
        (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "now", "arguments": [{}]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "now", "why": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "no\\u0077"}</tool_call>'),
        (HERMES, '<tool_call>{"name" "now"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "%s"}' % ("n" * 500)),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, "<tool_call> and <tool_ca"),
        (HERMES, '<tool_call>\n{"name": "now", "argume'),
        (LLAMA3, '{"city": "Paris"}'),
        (LLAMA3, '{"name": "Ann", "parameters": {}}'),
        (LLAMA3, '{"name": "now", "age": 1}'),
        (LLAMA3, 'As JSON: {"name": "now", "parameters": {}}'),
        (LLAMA3, "<|python_tag|>print(1)"),
        (LLAMA3, "<|python"),
        (MISTRAL, "[TOOL_CALLS] now {}"),
        (MISTRAL_IDS, "[TOOL_CALLS]nothing[ARGS]{}"),
        (MISTRAL_IDS, "[TOOL_CALLS]now[ARGS]now"),
        (MISTRAL_IDS, "[TOOL_CALLS]now[CALL_ID]abc"),
        (MISTRAL_IDS, "[TOOL_CALLS]%s[ARGS]{}" % ("n" * 65)),
        (GENERIC, '{"tool_calls": []}'),
        (GENERIC, '{"tool_calls": [1]}'),
        (GENERIC, '{"tool_calls": {"name": "now"}}'),
        (GENERIC, '{"answer": {"tool_calls": []}}'),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_content_to_the_last_character(family: Family, answer: str) -> None:
    assert one(family, answer) == (answer, [])


def test_a_call_is_found_behind_one_that_is_none() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    bad = '<tool_call>{"name": "now", <tool_call>no'
    assert one(HERMES, bad + good) == (bad, [("now", "{}")])


@pytest.mark.parametrize(
    ("answer", "text", "arguments"),
    [
        ('{"name": "now", "arguments": {"a": [1, "b', "", '{"a": [1, "b'),
        ('{"name": "now", "arguments": {"a": nothing} more', "} more", '{"a": nothing'),
        ('{"name": "now", "arguments": {"a": [1}} more', "}} more", '{"a": [1'),
        ('{"name": "now", "arguments": {"a": 1}</tool_call> more', "more", '{"a": 1}'),
        ('{"name": "now", "arguments": {}, "b": [{}]}</tool_call>', "", "{}"),
        ('{"name": "now", "arguments": {}}</tool', "", "{}"),
    ],
)
def test_what_was_sent_as_a_call_stays_one(answer: str, text: str, arguments: str) -> None:
    assert one(HERMES, f"<tool_call>{answer}") == (text, [("now", arguments)])


def test_a_second_call_without_leave_is_content() -> None:
    tools = Tools(TOOLS.functions, parallel=False)
    call = '{"name": "now", "arguments": {}}'
    answer = f"<tool_call>{call}</tool_call><tool_call>{call}</tool_call>"
    assert parse(HERMES, [answer], tools) == (
        f"<tool_call>{call}</tool_call>",
        [("now", "{}")],
    )


@pytest.mark.parametrize(
    "answer",
    ["<tool_call>" + " " * 50_000, '<tool_call>{"arguments": {"a": "' + "x" * 50_000,
     '<tool_call>{"id": "' + "x" * 50_000, " " * 50_000, "<tool_call>" * 5_000, "<" * 50_000],
)  # fmt: skip
def test_what_is_held_back_is_bounded(answer: str) -> None:
    parser = Parser(HERMES, TOOLS, 1)
    sent = 0
    for start in range(0, len(answer), 100):
        sent += len(parser.feed(answer[start : start + 100]).text)
        assert start + 100 - sent <= MAX_HELD + 100
    assert sent + len(parser.finish().text) == len(answer)


def test_ids_depend_on_seed_and_place_alone() -> None:
    ids = {call_id(seed, index) for seed in range(20) for index in range(20)}
    assert len(ids) == 400
    assert all(id.startswith("call_") and id[5:].isalnum() and len(id) == 29 for id in ids)
    assert call_id(7, 3) == call_id(7, 3)
    short = call_id(7, 3, short=True)
    assert len(short) == 9 and short.isalnum() and short.isascii()


PARTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>"),
        *("<|/tool_call|>", "<|python_tag|>", "<think>", "</think>", "<tool", "{", "}", "[", "]"),
        *('"name"', '"now"', '"arguments"', '"parameters"', '"tool_calls"', '"id"', '"other"'),
        *(":", ",", ";", " ", "\n", " " * 40, "1", "-1.5e", "tru", "null", "\\", '"', "\\u12"),
        *('{"name": "now", "arguments": {', '{"tool_calls": [{"name": "now"', '"a": "b"', "}}"),
        *("now", "text", "x" * 70),
    ]
)
ANSWERS = st.lists(PARTS, max_size=20).map("".join)


@settings(max_examples=300)
@given(st.sampled_from(FAMILIES), ANSWERS, st.lists(st.integers(0, 200)), st.booleans())
def test_how_an_answer_is_cut_changes_nothing(
    family: Family, answer: str, cuts: list[int], parallel: bool
) -> None:
    tools = Tools(TOOLS.functions, parallel=parallel)
    whole = parse(family, [answer], tools)
    assert parse(family, list(answer), tools) == whole
    bounds = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    pieces = [answer[a:b] for a, b in pairwise(bounds)]
    assert parse(family, pieces, tools) == whole
    if not whole[1]:
        assert whole[0] == answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.booleans(), st.integers(1, 9))
def test_any_arguments_come_through_unchanged(
    value: dict[str, object], ascii_only: bool, size: int
) -> None:
    arguments = json.dumps(value, ensure_ascii=ascii_only)
    answer = f'<tool_call>\n{{"name": "now", "arguments": {arguments}}}\n</tool_call>'
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    assert parse(HERMES, pieces) == ("", [("now", arguments)])

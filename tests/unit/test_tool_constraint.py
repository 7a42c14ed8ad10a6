"""Grammars for calls, held against the engine that the llama_cpp plugin uses."""

import json
from collections.abc import Iterable
from dataclasses import replace

import llguidance
import pytest

from hxd.wire import Constraint, Tool, Tools
from hxd.worker.tools.constraint import constraint
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

WEATHER = Tool(
    "get_weather",
    "The weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
NOW = Tool("now")
MISTRAL_IDS = replace(MISTRAL_NAMED, call_ids=True)
FAMILIES = [GENERIC, HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED, MISTRAL_IDS, PHI, GRANITE]
PARIS = '{"city": "Paris"}'


class Bytes:
    """A vocabulary of the 256 bytes, control tokens, and an end."""

    def __init__(self, special: Iterable[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.special = {text: 256 + i for i, text in enumerate(special)}
        self.tokens += [text.encode() for text in self.special]
        self.eos_token_id = len(self.tokens)
        self.tokens.append(b"<end>")
        self.bos_token_id = None
        self.special_token_ids = [*self.special.values(), self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def read(self, text: str) -> list[int]:
        """Token ids of `text`, control tokens where it spells them."""
        found = []
        while text:
            for spelling, token in self.special.items():
                if text.startswith(spelling):
                    found.append(token)
                    text = text[len(spelling) :]
                    break
            else:
                found += text[0].encode()
                text = text[1:]
        return found


class Checker:
    def __init__(self, family: Family, tools: Tools, special: Iterable[str] = ()) -> None:
        self.vocabulary = Bytes(special)
        found = constraint(family, tools, self.vocabulary.special)
        assert found is not None
        self.constraint: Constraint = found
        self.grammar = llguidance.grammar_from("lark", found.text)
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self.vocabulary))

    def says(self, text: str) -> str:
        """`whole` if the answer may be `text`, `begun` if it may begin so, else `refused`."""
        if self.constraint.trigger is not None:
            _, trigger, text = text.partition(self.constraint.trigger)
            if not trigger:
                return "whole"
        matcher = llguidance.LLMatcher(self.tokenizer, self.grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        for token in self.vocabulary.read(text):
            if not matcher.consume_token(token):
                return "refused"
        return "whole" if matcher.is_accepting() else "begun"


def calls(family: Family, *made: tuple[str, str]) -> str:
    """Calls as models of the family write them."""
    key = family.arguments
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in made]
    match family.name:
        case "hermes":
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
        case "llama3":
            return "; ".join(objects)
        case "mistral-named":
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in made)
        case "generic":
            return f'{{"tool_calls": [{", ".join(objects)}]}}'
    return f"{family.opening}[{', '.join(objects)}]{family.closing}"


@pytest.fixture(params=["text", "control tokens"])
def special(request: pytest.FixtureRequest) -> bool:
    return request.param == "control tokens"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
class TestEveryFamily:
    def checker(self, family: Family, special: bool, *choice: object, **more: object) -> Checker:
        markers = family.markers if special else ()
        return Checker(family, Tools([WEATHER, NOW], *choice, **more), markers)  # type: ignore[arg-type]

    def test_a_call_may_be_made_when_the_model_wants(self, family: Family, special: bool) -> None:
        checker = self.checker(family, special)
        assert checker.says(calls(family, ("get_weather", PARIS))) == "whole"
        assert checker.says(calls(family, ("now", "{}"))) == "whole"
        assert checker.says("It is sunny in Paris.") == "whole"

    def test_a_call_must_be_made_when_it_is_required(self, family: Family, special: bool) -> None:
        checker = self.checker(family, special, "required")
        assert checker.constraint.trigger is None
        assert checker.says("It is") == "refused"
        assert checker.says("") == "begun"
        assert checker.says(calls(family, ("get_weather", PARIS))) == "whole"

    def test_only_the_named_function_can_be_called(self, family: Family, special: bool) -> None:
        checker = self.checker(family, special, "now", True)
        assert checker.says(calls(family, ("get_weather", PARIS))) == "refused"
        assert checker.says(calls(family, ("now", "{}"))) == "whole"
        assert checker.says(calls(family, ("now", "{}"), ("now", "{}"))) == "refused"

    @pytest.mark.parametrize("choice", ["auto", "required"])
    def test_a_second_call_needs_leave(self, family: Family, special: bool, choice: str) -> None:
        two = calls(family, ("get_weather", PARIS), ("now", "{}"))
        expected = "refused" if family.single else "whole"
        assert self.checker(family, special, choice).says(two) == expected
        assert self.checker(family, special, choice, parallel=False).says(two) == "refused"

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("nothing", "{}"),
            ("get_weather", "{}"),
            ("get_weather", '{"city": 3}'),
            ("get_weather", '{"city": "Paris", "days": "many"}'),
            ("get_weather", '{"city": "Paris", "more": 1}'),
            ("get_weather", "[]"),
            ("now", '{"a": 1}'),
            ("get_weather", '{"city":\n\n\n"Paris"}'),
        ],
    )
    def test_a_wrong_call_is_refused(
        self, family: Family, special: bool, name: str, arguments: str
    ) -> None:
        checker = self.checker(family, special)
        assert checker.says(calls(family, (name, arguments))) == "refused"

    def test_nothing_is_said_after_a_call(self, family: Family, special: bool) -> None:
        checker = self.checker(family, special)
        assert checker.says(calls(family, ("now", "{}")) + "Well") == "refused"

    def test_no_constraint_where_nothing_may_be_called(self, family: Family, special: bool) -> None:
        assert constraint(family, Tools([NOW], "none"), {}) is None
        assert constraint(family, Tools([]), {}) is None


@pytest.mark.parametrize("family", [LLAMA3, GENERIC], ids=lambda family: family.name)
def test_a_bare_answer_is_either_text_or_a_call(family: Family) -> None:
    checker = Checker(family, Tools([WEATHER, NOW]))
    assert checker.constraint.trigger is None
    assert checker.says("") == "whole"
    assert checker.says('In JSON: {"a": 1}') == "whole"
    assert checker.says('{"answer": 42}') == "refused"
    assert checker.says("\n" + calls(family, ("now", "{}"))) == "whole"


def test_llama3_may_call_behind_text_and_its_control_token() -> None:
    checker = Checker(LLAMA3, Tools([NOW]), ["<|python_tag|>"])
    call = calls(LLAMA3, ("now", "{}"))
    assert checker.says(f"Let me see.<|python_tag|>{call}") == "whole"
    assert checker.says("<|python_tag|>print(1)") == "refused"


def test_a_generic_answer_may_begin_with_control_tokens() -> None:
    checker = Checker(GENERIC, Tools([NOW]), ["<|channel|>", "<|message|>"])
    assert checker.says('<|channel|>final<|message|>{"answer": 42}') == "whole"
    assert checker.says('{"answer": 42}') == "refused"


def test_a_mistral_call_may_have_an_id_of_nine() -> None:
    old, new = Checker(MISTRAL, Tools([NOW])), Checker(MISTRAL_IDS, Tools([NOW]))
    call = '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "%s"}]'
    assert old.says(call % "abcDEF123") == "whole"
    assert old.says(call % "abc") == "refused"
    assert new.says("[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{}") == "whole"
    assert new.says("[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}") == "refused"


def test_hermes_calls_may_stand_on_one_line() -> None:
    checker = Checker(HERMES, Tools([NOW]))
    assert checker.says('<tool_call>{"name": "now", "arguments": {}}</tool_call>') == "whole"


def test_calls_come_to_an_end() -> None:
    checker = Checker(HERMES, Tools([NOW]))
    assert checker.says(calls(HERMES, *[("now", "{}")] * 32)) == "whole"
    assert checker.says(calls(HERMES, *[("now", "{}")] * 33)) == "refused"


@pytest.mark.parametrize(
    ("parameters", "arguments", "expected"),
    [
        ({}, "{}", "whole"),
        ({}, '{"a": 1}', "refused"),
        ({"type": "object"}, '{"a": 1}', "whole"),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1}', "whole"),
        ({"properties": {}, "additionalProperties": {"type": "null"}}, '{"z":null}', "whole"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"required": ["a"]}}}, '{"a": 1}', "whole"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"required": ["a"]}}}, "{}", "refused"),
        ({"properties": {"title": {"const": "x"}, "pattern": {"const": 1}}},
         '{"title": "x", "pattern": 1}', "whole"),
        ({"properties": {"a": {"type": "string", "pattern": "^(?!x)(.)\\1$"}}}, '{"a": "b"}',
         "whole"),
        ({"properties": {"a": {"type": "string", "format": "unheard-of"}}}, '{"a": "b"}', "whole"),
        ({"properties": {"a": {"const": {"title": "kept"}}}}, '{"a": {"title": "kept"}}', "whole"),
        ({"$schema": "http://example.invalid/", "properties": {}}, "{}", "whole"),
        ({"properties": {"n": {"$ref": "#"}}}, '{"n": {"n": {}}}', "whole"),
        ({"properties": {}, "x-guidance": {"item_separator": "}"}}, "{}", "whole"),
        ({"properties": {'}"}\nstart: /.*/\n': {"enum": ['"\\ %json {', "ü\u2028"]}}},
         json.dumps({'}"}\nstart: /.*/\n': "ü\u2028"}, ensure_ascii=False), "whole"),
    ],
)  # fmt: skip
def test_a_schema_is_held_to_as_far_as_the_engine_can(
    parameters: dict[str, object], arguments: str, expected: str
) -> None:
    checker = Checker(HERMES, Tools([Tool("f", "", parameters)]))
    assert checker.says(calls(HERMES, ("f", arguments))) == expected


def test_as_many_tools_as_are_allowed_make_one_grammar() -> None:
    tools = [Tool(f"f{i}", "", WEATHER.parameters) for i in range(128)]
    checker = Checker(HERMES, Tools(tools, "required"))
    assert checker.says(calls(HERMES, ("f99", PARIS), ("f0", PARIS))) == "whole"

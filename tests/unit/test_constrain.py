"""Constraints over a vocabulary of single bytes, so that every text can be tried."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

import psutil
import pytest

from hxd.hookspecs import RequestRefused
from hxd.wire import Constraint
from plugins.llama_cpp import constrain
from plugins.llama_cpp.constrain import Grammars, Matcher

END = 256
GRAMMARS = Grammars(
    [bytes([byte]) for byte in range(256)] + [b"</s>"],
    frozenset({END}),
    [END],
    lambda text: list(text.encode()),
)


def compiled(kind: str, text: Any, trigger: str | None = None) -> Matcher:
    spelled = text if isinstance(text, str) else json.dumps(text)
    return GRAMMARS.compile(Constraint(kind, spelled, trigger, param="here"))


def fits(matcher: Matcher, text: str) -> bool:
    """Whether `text` may be said, and the answer end behind it."""
    for byte in text.encode():
        allowed = matcher.allowed()
        if matcher.ended or allowed is None or not allowed[byte]:
            return False
        matcher.accept(byte)
    if matcher.ended:
        return True
    allowed = matcher.allowed()
    return allowed is not None and bool(allowed[END])


def words(letters: str, longest: int) -> list[str]:
    return [
        "".join(word) for n in range(longest + 1) for word in itertools.product(letters, repeat=n)
    ]


REGULAR = {
    'root ::= "a"': "a",
    'root ::= "a" | "b" ("a" | "b")+': "a|b[ab]+",
    'root ::= [ab]* "b"': "[ab]*b",
    'root ::= word "b"\nword ::= [ab]+': "[ab]+b",
    "root ::= [^a]{2}": "[^a]{2}",
    'root ::= "a"{1,2} "b"{0} "c"{2,}': "a{1,2}c{2,}",
    'root ::= ("a"*)* "b"?': "a*b?",
    'root ::= ("" | "a") ("b" | "")': "a?b?",
    "root ::=": "",
    'root ::=\n  "a"\n  | "b" # of (two\n  "c"': "a|bc",
    "root ::= [a-b] [c-]": "[ab][-c]",
    'root ::= "\\x61" "\\u0062" [\\x61-\\U00000062]': "ab[ab]",
    'root ::= Ab ab\nAb ::= "a"\nab ::= "b"': "ab",
    'root ::= start | 1st\nstart ::= "a"\n1st ::= "b"': "a|b",
}


@pytest.mark.parametrize("grammar", REGULAR)
def test_a_regular_grammar_allows_the_texts_of_the_same_regular_expression(grammar: str) -> None:
    allowed = [word for word in words("abc-", 3) if fits(compiled("gbnf", grammar), word)]
    assert allowed == [word for word in words("abc-", 3) if re.fullmatch(REGULAR[grammar], word)]


def balanced(text: str) -> bool:
    shorter = text.replace("()", "")
    return not text if shorter == text else balanced(shorter)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ("(" root ")")*',
        'root ::= "" | root "(" root ")"',
        'root ::= one*\none ::= "(" root ")"',
        'root ::= more | ""\nmore ::= root "(" root ")"',
    ],
)
def test_a_recursive_grammar_allows_the_texts_that_it_describes(grammar: str) -> None:
    allowed = [word for word in words("()", 6) if fits(compiled("gbnf", grammar), word)]
    assert allowed == [word for word in words("()", 6) if balanced(word)]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ("root ::= .", "\n"),
        ("root ::= .", "😀"),
        ("root ::= [^x]", "\n"),
        ('root ::= "\\"\\\\\\n/"', '"\\\n/'),
        ("root ::= [\\]\\[\\\\\"/^-]+", ']["/^-\\'),
        ("root ::= [&~|.]+", "&&~~||.."),
        ("root ::= [à-ÿ]+ [😀-😂]", "éè😁"),
        ('root ::= "\\u0000" [\\x01]', "\0\1"),
    ],
)  # fmt: skip
def test_every_character_means_itself(grammar: str, text: str) -> None:
    assert fits(compiled("gbnf", grammar), text)


def test_the_grammar_of_json_that_llama_cpp_ships_allows_json() -> None:
    grammar = r"""
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
        ws     ::= | " " | "\n" [ \t]{0,20}
    """
    assert fits(compiled("gbnf", grammar), '{"a": [1, -2.5e-3, "x\\n\\u00e9é", {}],\n  "b":true}')
    assert not fits(compiled("gbnf", grammar), '{"a": 01}')


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule `root`"),
        ('Root ::= "a"', "no rule `root`"),
        ('start: "a"', "line 1: expected a rule"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule 'root' is there already"),
        ('root ::= "a"\n\n  other', "line 3: there is no such rule"),
        ('root ::= "a', "line 1: this is no GBNF"),
        ("root ::= [a", "line 1: this is no GBNF"),
        ("root ::= []", "a set without characters"),
        ("root ::= [b-a]", "the wrong way round"),
        ("root ::= <[5]>", "this is no GBNF"),
        ('root ::= "\\q"', "no such escape"),
        ('root ::= "\\ud800"', "no such character"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a"{2,1}', "fewer at most"),
        ('root ::= "a"{1000000000}', "more than 10000 repetitions"),
        ('root ::= "a"' + "*" * 60_000, "repeated already"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "nested deeper than 64"),
        ('# ' + ")" * 60_000 + "\nroot ::= " + "(" * 60_000, "nested deeper than 64"),
        ('root ::= ("a"', "a group is still open"),
        ('root ::= "a")', "no group is open"),
        ('root ::= "' + "x" * 5_000 + '"', "a text of more than 4096"),
        ('root ::= ("a"{1000}){1000}', "the shortest text that fits"),
        ("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40))
         + '\nr40 ::= "a"', "the shortest text that fits"),
        ("\n".join(f'r{i} ::= "a"' for i in range(5_000)), "more than 4096 rules"),
        ("x" * (1 << 20), "the limit is"),
        ("root ::= x\nx ::= x", "no text of this model's tokens fits"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_grammar_that_is_none_is_refused_by_its_line(grammar: str, message: str) -> None:
    with pytest.raises(RequestRefused, match=re.escape(message)) as refused:
        compiled("gbnf", grammar)
    assert refused.value.param == "here"
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= r0\n" + "\n".join(f'r{i} ::= r{i + 1} "x"' for i in range(4_000))
        + '\nr4000 ::= "x"',
        "root ::= r0\n" + "\n".join(f'r{i} ::= "(" r{i + 1} r0? ")"' for i in range(4_000))
        + '\nr4000 ::= "x"',
    ],
)  # fmt: skip
def test_a_chain_of_4000_rules_harms_nothing(grammar: str) -> None:
    try:
        assert compiled("gbnf", grammar).allowed() is not None
    except RequestRefused as error:
        assert error.param == "here"


def referring(levels: int) -> dict[str, Any]:
    """A schema nested by references, each to an array of the next."""
    inner = {
        f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(levels)
    }
    return {"$defs": {**inner, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def test_a_schema_nested_2000_deep_by_references_is_compiled() -> None:
    assert fits(compiled("json_schema", referring(2_000)), "[]")


def test_a_schema_that_may_be_anything_of_a_union_of_references_is_compiled() -> None:
    schema = {
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {
            name: {
                "type": "object",
                "properties": {"kind": {"const": name}},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for name in "AB"
        },
    }
    assert fits(compiled("json_schema", schema), '{"kind": "A"}')
    assert not fits(compiled("json_schema", schema), '{"kind": "C"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 123456789},
        {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]},
        {"items": [{"multipleOf": 9973}] * 50},
        {"patternProperties": {f"^p{i}$": {} for i in range(300)}},
        {"allOf": [{"type": "string", "pattern": f"a.*b{i}"} for i in range(50)]},
        {"type": "string", "pattern": "(" * 60_000 + ")" * 60_000},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3_000)}},
        {"anyOf": [{"properties": {f"p{i}": {"type": "integer"}}} for i in range(1_500)]},
        {"const": "x" * 200_000},
        {"not": {"type": "string"}},
        {"type": "nonsense"},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"enum": []},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_a_schema_that_can_not_be_kept_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        compiled("json_schema", schema)
    assert refused.value.param == "here"
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("multiple", [0.01, 1e-7, 1e6, 3600, 97])
def test_multiples_of_usual_numbers_are_held(multiple: float) -> None:
    matcher = compiled("json_schema", {"type": "number", "multipleOf": multiple})
    assert fits(matcher, f"{multiple:.7f}".rstrip("0").rstrip("."))


def test_a_schema_does_not_choose_its_own_separators() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "x-guidance": {"item_separator": ";", "key_separator": "=", "lenient": True},
    }
    assert fits(compiled("json_schema", schema), '{"a":1,"b":2}')
    with pytest.raises(RequestRefused):
        compiled("json_schema", {"not": {}, "x-guidance": {"lenient": True}})


def test_a_compilation_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "MOST_SECONDS", 0.05)
    grammars = Grammars([b"a", b"</s>"], frozenset({1}), [1], lambda text: [0] * len(text))
    schema = {"allOf": [{"type": "string", "pattern": f"a.*b{i}"} for i in range(14)]}
    slow = [Constraint("json_schema", json.dumps(schema | {"maxLength": i})) for i in range(4)]
    started = time.monotonic()
    for constraint in slow:
        with pytest.raises(RequestRefused):
            grammars.compile(constraint)
    assert time.monotonic() - started < 2


def test_a_trigger_holds_the_grammar_back_until_its_text_came() -> None:
    matcher = compiled("gbnf", 'root ::= "x"', trigger="<t>")
    for byte in b"anything <t":
        assert matcher.allowed() is None
        matcher.accept(byte)
    matcher.accept(ord(">"))
    allowed = matcher.allowed()
    assert allowed is not None
    assert allowed.nonzero()[0].tolist() == [ord("x")]


def test_a_token_that_reaches_beyond_the_trigger_begins_the_grammar_or_leaves_it_waiting() -> None:
    pieces = [b"<t>", b"<t>x", b"<t>no", b"x", b"y", b"n", b"o", b"</s>"]
    grammars = Grammars(
        pieces, frozenset({7}), [7], lambda text: [pieces.index(letter.encode()) for letter in text]
    )

    def after(*tokens: int) -> list[int] | None:
        matcher = grammars.compile(Constraint("gbnf", 'root ::= "xy"', "<t>"))
        for token in tokens:
            matcher.accept(token)
        allowed = matcher.allowed()
        assert not matcher.failure
        return None if allowed is None else list(allowed.nonzero()[0])

    assert after(3, 0) == [3]
    assert after(1) == [4]
    assert after(2) is None
    assert after(2, 1) == [4]


def test_a_grammar_that_passes_a_limit_on_the_way_has_failed_and_not_ended() -> None:
    optional = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1_200)}}
    schema = {"type": "array", "prefixItems": [{"const": "x" * 20}, optional], "minItems": 2}
    matcher = compiled("json_schema", schema)
    for byte in f'["{"x" * 20}",{{'.encode():
        allowed = matcher.allowed()
        assert allowed is not None
        assert allowed[byte]
        matcher.accept(byte)
    assert "max is 2000" in matcher.failure
    assert not matcher.ended


def test_a_grammar_that_is_known_already_starts_anew_each_time() -> None:
    first, second = [compiled("gbnf", 'root ::= "ab" | "cd"') for _ in "ab"]
    first.accept(ord("a"))
    assert fits(second, "cd")
    assert fits(first, "b")
    assert fits(compiled("gbnf", 'root ::= "ab" | "cd"'), "ab")


def test_many_different_schemas_leave_no_memory_behind() -> None:
    def grow(start: int) -> int:
        for i in range(start, start + 200):
            compiled(
                "json_schema", {"properties": {f"a{i}": {"type": "string", "pattern": f"x{i}"}}}
            )
        return psutil.Process().memory_info().rss

    # The first hundreds fill what is kept on purpose.
    before = grow(0)
    assert grow(200) - before < 4 << 20


def test_a_list_of_9000_words_is_held() -> None:
    words = " | ".join(f'"w{i}"' for i in range(9_000))
    grammar = f'root ::= word (" " word)*\nword ::= {words}'
    assert fits(compiled("gbnf", grammar), "w8999 w1 w17")
    assert not fits(compiled("gbnf", grammar), "w9000")

import contextlib
import json
import sys
from typing import Any

import pytest

from hxd.hookspecs import RequestRefused
from hxd.wire import Tool, Tools
from hxd.worker.tools.schema import MAX_DEPTH, MAX_NODES, MAX_SIZE, check_schema, check_tools


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def refused(schema: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        check_schema(schema, "here")
    return caught.value


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
        {"$defs": {"tree": {"properties": {"next": {"$ref": "#/$defs/tree"}}}},
         "$ref": "#/$defs/tree"},
        {"items": {"$ref": "#"}},
        {"anyOf": [{"$ref": "#/$defs/a~1b%25"}], "$defs": {"a/b%": {}}},
        {"allOf": [{"$ref": "#/allOf/1"}, {"type": "string"}]},
        {"properties": {"$ref": {"type": "string"}, "enum": {"$ref": "#"}}},
        {"enum": [{"$ref": "nowhere"}], "const": {"$ref": "#/x"}, "default": {"$ref": "#/y"}},
        nested(MAX_DEPTH),
        {"enum": list(range(9_000))},
        '{"type": "object"}',
    ],
)  # fmt: skip
def test_schemas_as_people_write_them_pass(schema: Any) -> None:
    check_schema(schema, "here")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ([], "here: a schema is an object"),
        ("nonsense", "here: not JSON"),
        ("[" * 100_000, "here: not JSON, or nested too deeply"),
        (json.dumps("x" * 2 * MAX_SIZE), "here: 524290 characters"),
        (nested(MAX_DEPTH + 1), "nested deeper than 64"),
        ({"enum": list(range(MAX_NODES))}, "exceed 10000 values"),
        ({"enum": ["x" * MAX_SIZE]}, "here.enum.0: here the schemas of the request exceed 256 KiB"),
        ({"properties": {"x" * MAX_SIZE: {}}}, "exceed 256 KiB"),
        ({"$ref": "https://example.invalid/x"}, "$ref: nothing is at 'https://"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}}, "here.properties.a: $ref: nothing is at"),
        ({"$ref": "#/enum/0", "enum": [5]}, "nothing is at"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
         "leads back to itself"),
        ({"properties": {"a": {"anyOf": [{}, {"not": {"$ref": "#/properties/a"}}]}}},
         "here.properties.a.anyOf.1.not: $ref: leads back"),
        ({"maximum": float("inf")}, "here.maximum: a number beyond"),
        ({"maximum": 10**400}, "here.maximum: a number beyond"),
    ],
)  # fmt: skip
def test_a_hostile_schema_is_refused_by_its_place(schema: Any, says: str) -> None:
    error = refused(schema)
    assert says in str(error)
    assert error.param is not None and error.param.startswith("here")
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": list(range(MAX_NODES - 10))},
        {"properties": {f"p{i}": {"$ref": f"#/properties/p{i + 1}"} for i in range(3_000)}
         | {"p3000": {}}},
        {"allOf": [{"$ref": f"#/allOf/{i + 1}"} for i in range(3_000)] + [{}]},
        {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(900)}
         | {"d900": {}}, "$ref": "#/$defs/d0"},
        {"$ref": "#" + "/properties" * 20_000},
    ],
)  # fmt: skip
def test_checking_takes_work_in_proportion_to_the_schema(schema: dict[str, Any]) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with contextlib.suppress(RequestRefused):
            check_schema(schema, "here")
    finally:
        sys.setprofile(None)
    assert calls < 100 * MAX_NODES


def test_tools_as_people_write_them_pass() -> None:
    check_tools(Tools([Tool("a.b-C_9", "d", {"type": "object"}), Tool("b")]))
    check_tools(Tools([Tool("a")], "a", True))


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([Tool("")], "tools[0].function.name"),
        ([Tool("a"), Tool("a b")], "tools[1].function.name"),
        ([Tool('a"}\nstart: /.*/')], "tools[0].function.name"),
        ([Tool("a\n")], "tools[0].function.name"),
        ([Tool("é")], "tools[0].function.name"),
        ([Tool("a" * 65)], "tools[0].function.name"),
        ([Tool("a"), Tool("b"), Tool("a")], "tools[2].function.name"),
        ([Tool("a", "", {"type": "array"})], "tools[0].function.parameters"),
        ([Tool("a", "", {"type": ["object", "null"]})], "tools[0].function.parameters"),
        ([Tool("a", "", {"properties": {"x": {"$ref": "#/no"}}})],
         "tools[0].function.parameters.properties.x"),
        ([Tool("a", "x" * 300_000)], "tools[0].function.description"),
        ([Tool(f"t{i}", "", {"enum": [0] * 100}) for i in range(120)],
         "tools[98].function.parameters.enum."),
        ([Tool(f"t{i}") for i in range(129)], "tools"),
    ],
)  # fmt: skip
def test_hostile_tools_are_refused_by_their_place(tools: list[Tool], param: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_tools(Tools(tools))
    assert caught.value.param is not None and caught.value.param.startswith(param[:90])


def test_a_choice_must_be_among_the_tools() -> None:
    with pytest.raises(RequestRefused) as caught:
        check_tools(Tools([Tool("a")], "b", True))
    assert caught.value.param == "tool_choice"

"""Where an answer is checked: here only where the schema and the size of the answer bound the cost."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from batchfile.runner.output_schema import COST_MAX, PARTS_MAX, num_parts, place_of

REFERRED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {"Line": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
    "type": "object",
    "properties": {"first": {"$ref": "#/$defs/Line"}, "all": {"type": "array", "items": {"$ref": "#/$defs/Line"}}},
}


def parts(schema: Any) -> int | None:
    return num_parts(msgspec.json.encode(schema))


def twice(num: int, keyword: str = "allOf") -> dict[str, Any]:
    """Checking takes 2^num steps."""
    levels = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(num)}
    return {"$defs": levels | {f"d{num}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def test_what_is_usual_is_checked_here() -> None:
    usual = {"type": "object", "properties": {f"p{n}": {"type": "string", "title": "t"} for n in range(20)}}
    for schema in (usual, REFERRED, {"anyOf": [{"enum": [1, 2]}, {"const": None}]}, True):
        assert place_of(msgspec.json.encode(schema), 1_000) == "here"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a"},
        {"patternProperties": {"a": {}}},
        {"properties": {"a": {"pattern": "a"}}},
        {"format": "regex"},
        {"uniqueItems": True},
        {"unevaluatedProperties": False},
        {"contains": {}},
        {"if": {}},
        {"$dynamicRef": "#a"},
        {"$id": "https://example.com"},
        {"not-known": 1},
        {"$ref": "#"},
        {"$ref": "#/properties/a", "properties": {"a": {"items": {"$ref": "#/properties/a"}}}},
        {"$ref": "#/nowhere"},
        {"$ref": "#anchor"},
        {"$ref": "https://example.com"},
        {"$ref": "#/a~1b"},
        {"properties": 3},
        {"items": [{}]},
        {"allOf": 3},
        3,
        {"enum": list(range(PARTS_MAX + 1))},
        {"title": "x" * 70_000},
        *(twice(40, keyword) for keyword in ("allOf", "anyOf", "oneOf")),
    ],
)
def test_what_may_take_any_time_is_not(schema: Any) -> None:
    assert parts(schema) is None
    assert place_of(msgspec.json.encode(schema), 1) == "process"


def test_a_name_of_a_property_is_no_keyword() -> None:
    assert parts({"properties": {"pattern": {}, "$ref": {"type": "string"}}}) is not None


def test_what_is_behind_a_reference_counts_as_often_as_it_is_followed() -> None:
    counts = [parts(twice(num)) or 0 for num in range(1, 7)]
    assert [b / a > 1.5 for a, b in pairwise(counts)] == [True] * 5


def test_the_size_of_the_answer_counts() -> None:
    schema = msgspec.json.encode(REFERRED)
    num = num_parts(schema)
    assert num is not None
    assert place_of(schema, COST_MAX // num) == "here"
    assert place_of(schema, COST_MAX // num + 1) == "process"


def test_a_schema_nested_without_measure_is_not_counted() -> None:
    assert num_parts(b'{"not":' * 9_000 + b"{}" + b"}" * 9_000) is None

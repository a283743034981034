"""Which texts fit a schema, in which words they do not, and which schemas are none."""

from typing import Any

import msgspec
import pytest

from batchfile.schemas.rules import judged, kind_of, schema_problem

SUBJECT = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}


def encoded(schema: Any) -> bytes:
    return msgspec.json.encode(schema)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"subject": "hello"}', ""),
        (' {"subject": "hello", "more": 1}\n', ""),
        ('{"subject": 3}', "answer.subject does not fit properties/subject/type"),
        ("{}", "answer does not fit required"),
        ('{"subject": "hel', "the answer is not JSON"),
        ('Sure! {"subject": "hello"}', "the answer is not JSON"),
        ("", "the answer is not JSON"),
        ("NaN", "the answer is not JSON"),
        ("[" * 100_000, "the answer is not JSON"),
        ('{"subject": "\ud800"}', "the answer is not JSON"),
    ],
)
def test_an_answer_is_one_json_text_that_fits(text: str, why: str) -> None:
    assert kind_of(encoded(SUBJECT), text) == ("mismatch" if why else "fits")
    assert judged(encoded(SUBJECT), text).why == why


NOT_CONTAINED = "which it does not contain; copy the definition into its $defs"


def test_the_place_is_told_and_is_not_long() -> None:
    schema = {"properties": {"items": {"items": {"properties": {"n": {"pattern": "^(?!x)"}}}}}}
    found = judged(encoded(schema), '{"items": [{}, {"n": "xy"}]}')
    assert found.why == "answer.items[1].n does not fit properties/items/items/properties/n/pattern"
    name = "n" * 5_000
    assert len(judged(encoded({"properties": {name: {"type": "null"}}}), f'{{"{name}": 1}}').why) < 500


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objct"}, "objct"),
        ({"properties": 3}, "3 is not of type"),
        ({"pattern": "("}, "regex"),
        ({"$ref": "#/$defs/gone"}, f"it refers to '#/$defs/gone', {NOT_CONTAINED}"),
        *(
            ({name: given}, f"it refers to {given!r}, {NOT_CONTAINED}")
            for name, given in [
                ("$ref", "https://example.com/other"),
                ("$ref", "other.json"),
                ("$ref", "urn:a:b"),
                ("$ref", "#gone"),
                ("$dynamicRef", "https://example.com/other"),
            ]
        ),
        (
            {"$defs": {"a": {}}, "properties": {"a": {"$ref": "#/$defs/a"}, "c": {"anyOf": [{"$ref": "x.json"}]}}},
            f"it refers to 'x.json', {NOT_CONTAINED}",
        ),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "is unknown; remove it or name draft 4, 6, 7"),
    ],
)
def test_what_is_no_schema_is_told_in_one_line(schema: dict[str, Any], why: str) -> None:
    problem = schema_problem(schema)
    assert problem is not None
    assert why in problem
    assert "\n" not in problem
    assert judged(encoded(schema), "{}") == ("unusable", problem)
    assert schema_problem(SUBJECT) is None


@pytest.mark.parametrize("depth", [150, 100_000])
def test_a_schema_without_measure_is_unusable(depth: int) -> None:
    schema = b'{"properties":{"a":' * depth + b"{}" + b"}}" * depth
    assert judged(schema, "{}").kind == "unusable"


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    """The first is within the bound, the second is not, though it fits after a while."""
    schema = encoded({"type": "string", "pattern": r"^(a+)(a+)\1b|^a+$"})
    assert kind_of(schema, f'"{"a" * 200}"') == "fits"
    found = judged(schema, f'"{"a" * 800}"')
    assert found == ("mismatch", "answer takes more than 100,000 steps to compare with pattern")

"""What a value must be, in our own words, from the OpenAPI document: no answer repeats a library's exception. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_ANY: Schema = {}
_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def explain(document: Schema, method: str, path: str, keys: Iterable[str]) -> list[str]:
    """A sentence for each place, `a.b`, of the query or the body of an operation that does not fit."""
    method = "get" if method == "HEAD" else method.lower()
    operation = document.get("paths", _ANY).get(path, _ANY).get(method, _ANY)
    query = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "query"}
    body = operation.get("requestBody", _ANY).get("content", _ANY).get("application/json", _ANY).get("schema", _ANY)
    found = []
    for key in keys:
        if key in query:
            found.append(f"{key}: must be {_words(document, query[key].get('schema', _ANY))}")
        else:
            found.append(f"{key}: {_of_body(document, body, key.split('.'))}")
    return list(dict.fromkeys(found))


def _of_body(document: Schema, schema: Schema, path: list[str]) -> str:
    is_required = False
    for number, name in enumerate(path):
        schema = next(iter(_choices(document, schema)), _ANY)
        fields = schema.get("properties", _ANY)
        more = schema.get("additionalProperties", True)
        if name in fields:
            is_required = name in schema.get("required", ())
            schema = fields[name]
        elif isinstance(more, Mapping):
            schema, is_required = more, False
        elif more is False:
            return f"is not known here; there are {', '.join(sorted(fields))}"
        else:  # a place in a list, say: what holds for the whole is said
            return f"does not fit: {'.'.join(path[:number]) or 'the body'} must be {_words(document, schema)}"
    return f"{'is required, and ' if is_required else ''}must be {_words(document, schema)}"


def _choices(document: Schema, schema: Schema) -> list[Schema]:
    """Without references and null."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    several = [*schema.get("oneOf", []), *schema.get("anyOf", [])]
    if not several:
        return [] if schema.get("type") == "null" else [schema]
    return [one for inner in several for one in _choices(document, inner)]


def _words(document: Schema, schema: Schema) -> str:
    return " or ".join(dict.fromkeys(map(_of_one, _choices(document, schema)))) or "left out"


def _of_one(schema: Schema) -> str:
    values = [schema["const"]] if "const" in schema else [one for one in schema.get("enum", []) if one is not None]
    if values:
        shown = ", ".join(repr(value) for value in values)
        return f"one of {shown}" if len(values) > 1 else str(shown)
    kinds = schema.get("type", "object")
    kind = next(one for one in ([kinds] if isinstance(kinds, str) else kinds) if one != "null")
    span = _span(schema, "minimum", "maximum")
    for low, high, noun in (
        ("minLength", "maxLength", "characters"),
        ("minItems", "maxItems", "entries"),
        ("minProperties", "maxProperties", "keys"),
    ):
        size = _span(schema, low, high).removeprefix(" of ").removeprefix(" from ")
        span += f" with {size} {noun}" if size else ""
    return _NOUNS.get(str(kind), str(kind)) + span


def _span(schema: Schema, low_name: str, high_name: str) -> str:
    low, high = schema.get(low_name), schema.get(high_name)
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    if low is not None:
        return f" of at least {_number(low)}"
    return "" if high is None else f" of at most {_number(high)}"


def _number(value: float) -> str:
    return str(int(value) if value == int(value) else value)

"""Values that a JSON schema allows: each alternative, and each value of an enum, is in at least one of them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

PLAIN = {"string": ["x"], "integer": [1], "number": [0.5], "boolean": [True], "null": [None]}


class Samples:
    """`definitions`: what `$ref` names. Values have nothing of a schema in `skipped` or of one that allows anything."""

    def __init__(self, definitions: Mapping[str, Any], *, skipped: Collection[str] = (), has_null: bool = True) -> None:
        self._definitions = definitions
        self._skipped = set(skipped)
        self._has_null = has_null

    def of(self, schema: Any) -> list[Any]:
        return [value for value in self._of(schema) if self._has_null or value is not None]

    def _of(self, schema: Any) -> Iterator[Any]:
        if not isinstance(schema, dict):
            return
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            yield from () if name in self._skipped else self._of(self._definitions[name])
        for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
            yield from self._of(one)
        if "const" in schema:
            yield schema["const"]
        elif "enum" in schema:
            yield from schema["enum"]
        else:
            kinds = schema.get("type", [])
            for kind in [kinds] if isinstance(kinds, str) else kinds:
                yield from self._of_type(kind, schema)

    def _of_type(self, kind: str, schema: dict[str, Any]) -> Iterator[Any]:
        if kind == "array":
            yield from [[item] for item in self.of(schema.get("items"))] or [[]]
        elif kind != "object":
            yield from PLAIN[kind]
        elif "properties" in schema:
            choices = {name: self.of(one) for name, one in schema["properties"].items()}
            first = {name: values[0] for name, values in choices.items() if values}
            yield first
            yield from ({**first, name: value} for name, values in choices.items() for value in values[1:])
        else:
            yield from [{"1": value} for value in self.of(schema.get("additionalProperties"))] or [{}]


def is_anything(schema: dict[str, Any]) -> bool:
    return schema.keys().isdisjoint({"$ref", "anyOf", "oneOf", "allOf", "const", "enum", "type"})
